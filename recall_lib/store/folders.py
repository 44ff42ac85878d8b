"""Where publications lie under one root, and how they are found there.

A publication is one folder, `<root>/<dataset>/dt=<day>[/<key>=<value>]`, with Parquet or artefact files and a
`_manifest.json`. The manifest lists the files with their sha256, and records rows, content digest, inputs and settings. A
folder is published if it has a manifest. A new publication replaces an old one by two renames; a reader that comes between
them finds the old version under `_retired`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from recall_lib.process.errors import DataRefused
from recall_lib.store.datasets import DATASETS, name_of
from recall_lib.store.filesystems import resolve
from recall_lib.store.publication import Publication, StartSpark

MANIFEST = "_manifest.json"
_ASIDE = re.compile(r"(?P<dataset>\w+)-dt=(?P<dt>\d{4}-\d\d-\d\d)(?:-(?P<key>\w+)=(?P<value>\w+))?")


class Folders:
    """The folders of one root."""

    def __init__(self, root: str, start_spark: StartSpark) -> None:
        """`root`: a path or an address; `start_spark`: returns the session, called when a table is read."""
        self.fs, self.root, self._prefix = resolve(root)
        self.local = self._prefix == "file://"
        self.start_spark = start_spark

    # -- where ---------------------------------------------------------------------------------------------------------
    def path(self, dataset: str, dt: str, **keys: str) -> str:
        """The folder of one publication, as the file system names it."""
        return f"{self.root}/{name_of(dataset, {'dt': dt, **keys})}"

    def uri(self, path: str) -> str:
        """The same path as Spark names it."""
        return self._prefix + path

    def aside(self, area: str, dataset: str, dt: str, keys: Mapping[str, str]) -> str:
        """The folder of a publication in `_staging`, `_retired` or `_versions`."""
        name = "-".join([dataset, f"dt={dt}", *(f"{key}={value}" for key, value in keys.items())])
        return f"{self.root}/{area}/{name}"

    def inside(self, area: str) -> list[str]:
        """The paths directly below a folder of the root, ascending; empty if the folder does not exist."""
        try:
            return sorted(path.rstrip("/") for path in self.fs.ls(f"{self.root}/{area}", detail=False))
        except FileNotFoundError:
            return []

    # -- what is published ---------------------------------------------------------------------------------------------
    def find(self, dataset: str, dt: str, **keys: str) -> str | None:
        """The folder that holds the published version now, or None."""
        target = self.path(dataset, dt, **keys)
        # The target is checked twice: between the first check and that of `_retired` a publication may finish.
        for folder in (target, self.aside("_retired", dataset, dt, keys), target):
            if self.fs.exists(f"{folder}/{MANIFEST}"):
                return folder
        return None

    def look(self, dataset: str, dt: str, **keys: str) -> Publication | None:
        """A publication as it is now; None if it does not exist."""
        while folder := self.find(dataset, dt, **keys):
            with suppress(FileNotFoundError):  # replaced after `find`: look again
                manifest = self.read_json(f"{folder}/{MANIFEST}")
                return Publication(dataset, dt, keys, folder, self.uri(folder), manifest, self.start_spark)
        return None

    def get(self, dataset: str, dt: str, **keys: str) -> Publication:
        """A publication that must exist (DataRefused if it does not)."""
        found = self.look(dataset, dt, **keys)
        if found is None:
            raise DataRefused(
                f"{name_of(dataset, {'dt': dt, **keys})} is not published under {self.root}: "
                f"run `recall {DATASETS[dataset].job_of(keys)} --dt {dt}`"
            )
        return found

    def days(self, dataset: str) -> list[str]:
        """The published days of a dataset without further keys, ascending."""
        return [day for day in self.days_with_folders(dataset) if self.find(dataset, day)]

    def days_with_folders(self, dataset: str) -> list[str]:
        """The days for which a dataset has a folder, published or not, ascending."""
        names = [path.rsplit("/", 1)[-1] for path in self.inside(dataset)]
        days = {name.removeprefix("dt=") for name in names if name.startswith("dt=")}
        # A day may lie under `_retired` alone: between a publication's two renames, or after a run died between them.
        return sorted(days | {dt for name, dt, _ in map(named_aside, self.inside("_retired")) if name == dataset})

    def publications(self, dataset: str) -> list[tuple[str, dict[str, str]]]:
        """(dt, further keys) of every publication of a dataset, ascending."""
        folder = f"{self.root}/{dataset}"
        paths = self.fs.find(folder) if self.fs.isdir(folder) else []
        places = [path[len(folder) + 1 :].split("/")[:-1] for path in paths if path.endswith(f"/{MANIFEST}")]
        found = [dict(part.split("=", 1) for part in place) for place in places]
        published = [(keys.pop("dt"), keys) for keys in found]
        for name, dt, keys in map(named_aside, self.inside("_retired")):  # as in days_with_folders
            if name == dataset and (dt, keys) not in published:
                published.append((dt, keys))
        return sorted(published, key=str)

    def latest(self, dataset: str) -> dict[str, Any] | None:
        """The content of `<dataset>/latest.json`: a day and facts about it; None if the file does not exist."""
        with suppress(FileNotFoundError):
            return self.read_json(f"{self.root}/{dataset}/latest.json")
        return None

    # -- files ---------------------------------------------------------------------------------------------------------
    def read_json(self, path: str) -> dict[str, Any]:
        """The JSON object in a file."""
        loaded: dict[str, Any] = json.loads(self.fs.cat_file(path))
        return loaded

    def write_json(self, path: str, content: Mapping[str, Any]) -> None:
        """Put a JSON object in a file, in place of the one that is there."""
        self.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        self.fs.pipe_file(f"{path}.tmp", json.dumps(content).encode())
        self.fs.mv(f"{path}.tmp", path)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name: a hard link if the file system supports it, else a copy."""
        getattr(self.fs, "link", self.fs.cp_file)(source, target)

    def remove(self, folder: str) -> None:
        """Remove a folder if it exists; another process may remove it at the same time."""
        if self.fs.exists(folder):
            with suppress(FileNotFoundError):  # e.g. gc removed it first
                self.fs.rm(folder, recursive=True)


def named_aside(path: str) -> tuple[str, str, dict[str, str]]:
    """(dataset, dt, keys), parsed from the name of a folder of `Folders.aside` or of a checkpoint."""
    name = _ASIDE.match(path.rstrip("/").rsplit("/", 1)[-1])
    assert name, f"no publication has the name {path}"
    return name["dataset"], name["dt"], {name["key"]: name["value"]} if name["key"] else {}
