"""The files of a table of the raw log: a path or pattern below `input.path`, resolved exactly once."""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from fsspec.core import url_to_fs

from recall_lib.process.errors import DataRefused, NoInput

_FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".ndjson": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".orc": "orc",
}
_COMPRESSED = (".gz", ".gzip", ".bz2", ".zst", ".zstd", ".xz", ".lz4", ".snappy", ".deflate")
_NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class Place:
    """A file.

    Attributes:
        fs: its fsspec file system, which can be pickled.
        path: in the file system.
        size: bytes.
        folders: the values of the `key=value` folders above it, below `input.path`; they are columns of its rows.
    """

    fs: Any
    path: str
    size: int
    folders: dict[str, str | None]

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rsplit("/", 1)[-1]


def find_files(root: str, pattern: str) -> list[Place]:
    """The files that a file name, folder or pattern below a root stands for, in the order of their paths.

    A name that exists as it is written is that file, whatever letters it has. Otherwise `*`, `?` and `[...]` match within
    a name, `**` matches folders, and `{a,b}` stands for either. A folder stands for all files below it. Names that begin
    with `.` or `_` are no data, unless the pattern gives them. Links are followed; a file is read once.

    Args:
        root: `input.path`, a folder or an address.
        pattern: below the root, or a path from / or an address of its own.

    Raises:
        NoInput: no file matches.
        DataRefused: a link leads nowhere.
    """
    shown = pattern if _is_absolute(pattern) else f"{root.rstrip('/')}/{pattern}"
    if pattern.startswith("/"):
        (fs, _), base, below = url_to_fs("/"), "", pattern
    elif "://" in pattern:
        (fs, below), base = url_to_fs(pattern), ""
    else:
        (fs, base), below = url_to_fs(root), pattern
    base = base.rstrip("/")
    found: dict[str, Place] = {}
    for match in _matches(fs, base, below.rstrip("/")):
        for path, size in _files_below(fs, match, frozenset()) if fs.isdir(match) else [(match, fs.size(match) or 0)]:
            found.setdefault(_real(fs, path), Place(fs, path, size, _folders(path.removeprefix(base))))
    if not found:
        raise NoInput(f"no file matches {shown}: check input.path and the name")
    return sorted(found.values(), key=lambda place: place.path)


def format_of(name: str) -> str | None:
    """csv, json, parquet or orc, as the end of a file's name shows it; None: it does not."""
    name = name.lower()
    while name.endswith(_COMPRESSED):
        name = name.rsplit(".", 1)[0]
    return next((form for suffix, form in _FORMATS.items() if name.endswith(suffix)), None)


def _is_absolute(pattern: str) -> bool:
    return pattern.startswith("/") or "://" in pattern


def _matches(fs: Any, base: str, pattern: str) -> list[str]:
    whole = _joined(base, pattern)
    if fs.exists(whole):
        return [whole]
    found = {match for one in _without_braces(pattern) for match in _glob(fs, base, [part for part in one.split("/") if part])}
    return sorted(found)


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name.lstrip('/')}" if folder or name.startswith("/") else name


def _without_braces(pattern: str) -> list[str]:
    """`a{b,c}` as [ab, ac]; the innermost braces first."""
    braces = re.search(r"\{([^{}]*,[^{}]*)\}", pattern)
    if not braces:
        return [pattern]
    ways = [pattern[: braces.start()] + way + pattern[braces.end() :] for way in braces[1].split(",")]
    return [one for way in ways for one in _without_braces(way)]


def _glob(fs: Any, folder: str, parts: list[str]) -> Iterator[str]:
    if not parts:
        if fs.exists(folder or "/"):
            yield folder
        return
    part, *rest = parts
    literal = f"/{part}" if not folder and _is_local(fs) else _joined(folder, part)
    if part != "**" and (not set(part) & set("*?[") or fs.exists(literal)):
        yield from _glob(fs, literal, rest)
    elif fs.isdir(folder or "/"):
        if part == "**":
            yield from _glob(fs, folder, rest)
        for entry in fs.ls(folder or "/", detail=True):
            path = entry["name"].rstrip("/")
            name = path.rsplit("/", 1)[-1]
            if part == "**":
                if not _is_hidden(name) and _is_folder(fs, entry):
                    yield from _glob(fs, path, parts)
            elif fnmatch.fnmatchcase(name, part) and (part[0] in "._" or not _is_hidden(name)):
                yield from _glob(fs, path, rest)


def _files_below(fs: Any, folder: str, above: frozenset[str]) -> Iterator[tuple[str, int]]:
    """(path, bytes) of all files below a folder; a link back to a folder above is not followed."""
    real = _real(fs, folder)
    if real in above:
        return
    for entry in fs.ls(folder, detail=True):
        path = entry["name"].rstrip("/")
        name = path.rsplit("/", 1)[-1]
        if path == folder.rstrip("/") or _is_hidden(name) or name.endswith("._COPYING_"):
            continue
        if _is_folder(fs, entry):
            yield from _files_below(fs, path, above | {real})
        elif entry.get("islink") and not fs.exists(path):
            raise DataRefused(f"{path} is a link to a file that does not exist: mend or remove it")
        else:
            yield path, fs.size(path) if entry.get("islink") else entry.get("size") or 0


def _is_folder(fs: Any, entry: dict[str, Any]) -> bool:
    return entry["type"] == "directory" or ((entry["type"] != "file" or entry.get("islink", False)) and fs.isdir(entry["name"]))


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _is_local(fs: Any) -> bool:
    return "file" in (fs.protocol if isinstance(fs.protocol, tuple) else (fs.protocol,))


def _real(fs: Any, path: str) -> str:
    return os.path.realpath(path) if _is_local(fs) else path


def _folders(path: str) -> dict[str, str | None]:
    pairs = [part.split("=", 1) for part in path.split("/")[:-1] if "=" in part.strip("=")]
    return {unquote(key): None if value == _NULL_FOLDER else unquote(value) for key, value in pairs}
