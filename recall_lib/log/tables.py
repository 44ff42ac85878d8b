"""The files of one table of the raw log, each looked at once: how it is written, which columns it has, how it is divided."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq

from recall_lib.config import OPTIONS, Input
from recall_lib.log import json_rows, streams, values
from recall_lib.log.dialect import Dialect, detect, has_breaks
from recall_lib.log.files import Place, find_files, format_of
from recall_lib.process.errors import DataRefused, NoInput

_SAMPLE = 1 << 17  # bytes of text that are looked at
_LEAST_PIECE, _MOST_PIECE = 4 << 20, 64 << 20  # bytes that a task reads, about
_OPENING = 1 << 18  # bytes that could be read in the time in which a file is opened
_THREADS = 16


@dataclass(frozen=True)
class File:
    """A file and what its first bytes, or its footer, show.

    Attributes:
        place: where it is.
        form: csv, json, parquet, orc or sessions.
        names: of its columns; of a JSON file those that its first rows have.
        types: of the columns of Parquet and ORC, by name.
        codec: how a text file is compressed; None: it is not.
        encoding: of a text file.
        dialect: of a CSV file.
        many_lines: a text file whose rows take several lines.
        groups: the bytes of each row group of Parquet, each stripe of ORC.
        is_empty: it has no byte of text.
    """

    place: Place
    form: str
    names: tuple[str, ...] = ()
    types: dict[str, pa.DataType] = field(default_factory=dict)
    codec: str | None = None
    encoding: str = "utf-8"
    dialect: Dialect | None = None
    many_lines: bool = False
    groups: tuple[int, ...] = ()
    is_empty: bool = False

    @property
    def columns(self) -> set[str]:
        """The names of its columns and of the folders above it."""
        return {name for name in self.names if name} | set(self.place.folders)

    @property
    def is_divisible(self) -> bool:
        """Whether its lines can be read from any byte on."""
        return not (self.codec or self.encoding != "utf-8" or self.many_lines or self.form in ("parquet", "orc"))


@dataclass(frozen=True)
class Piece:
    """A part of a file that one task reads: lines that begin at the bytes start to end, or row groups (stripes)."""

    file: File
    start: int = 0
    end: int | None = None
    groups: tuple[int, ...] = ()


_NAMES = {"id": "an id", "time": "a time", "number": "a number", "flag": "a click", "feature": "a feature", "list": "a feature"}


@dataclass(frozen=True)
class Need:
    """A column that is needed.

    Attributes:
        column: its name.
        role: what it is read as: id, time, number, flag, feature or list.
        is_required: whether every file must have it.
    """

    column: str
    role: str
    is_required: bool = True


@dataclass(frozen=True)
class Table:
    """A table of the raw log.

    Attributes:
        label: for messages, e.g. `the click log`.
        files: all of them.
    """

    label: str
    files: tuple[File, ...]

    @property
    def columns(self) -> set[str]:
        """The names of the columns that any file has."""
        return set().union(*(file.columns for file in self.files))

    def require(self, needs: Sequence[Need]) -> list[str]:
        """Check that the files have the columns that are needed; returns what to warn of.

        Raises:
            DataRefused: a column is missing, stands twice, or has a type that cannot be read as what it is needed for.
        """
        said: list[str] = []
        missing = sorted({need.column for need in needs} - self.columns)
        if any(file.form == "json" for file in self.files):  # whose first rows may lack a key that others have
            said += [f"the first rows of {self.label} have no {name!r}" for name in missing]
            missing = sorted({need.column for need in needs if need.is_required and need.column in missing})
        if missing:
            raise DataRefused(
                f"{self.label} has no column {missing}; it has {sorted(self.columns)}: map them in input.columns, "
                "input.item_columns or features.*.column"
            )
        for need in needs:
            lacking = [file for file in self.files if need.column not in file.columns and file.form != "json"]
            if lacking and need.is_required:
                raise DataRefused(
                    f"{lacking[0].place.path} has no column {need.column!r}, which other files of {self.label} have; it has "
                    f"{sorted(lacking[0].columns)}: mend or remove it"
                )
            if lacking:
                names = ", ".join(file.place.name for file in lacking[:3]) + (", ..." if len(lacking) > 3 else "")
                count = f"{len(lacking)} of {len(self.files)} files"
                said.append(f"{count} of {self.label} have no column {need.column!r} ({names}): it is null there")
            for file in self.files:
                if (times := file.names.count(need.column)) > 1:
                    raise DataRefused(f"{file.place.path} has {times} columns {need.column!r}: rename all but one")
                kind = file.types.get(need.column)
                if kind is not None and not values.fits(kind, need.role):
                    raise DataRefused(
                        f"column {need.column!r} of {file.place.path} is {kind}, which cannot be read as {_NAMES[need.role]}"
                        + self._other_type(need.column, kind)
                    )
        return said

    def _other_type(self, column: str, kind: pa.DataType) -> str:
        other = next((f for f in self.files if f.types.get(column, kind) != kind), None)
        return f"; in {other.place.path} it is {other.types[column]}" if other else ""


def open_table(settings: Input, path: str, label: str, form: str | None = None, header: Sequence[str] | None = None) -> Table:
    """Find the files of a table and look at the beginning of each.

    Args:
        settings: how they are read.
        path: below `input.path`.
        label: for messages.
        form: of the files; None: `input.file_format`, or what their names show.
        header: the names of the columns, where the files have no header.

    Raises:
        NoInput: no file matches, or no file has even a header.
        DataRefused: a file cannot be read, or its name does not show its format.
    """
    places = find_files(settings.path, path)
    form = form or settings.file_format
    strange = [place.path for place in places if not (form or format_of(place.name))]
    if strange:
        raise DataRefused(
            f"the name of {strange[0]} does not show its format: remove it, or set input.file_format (csv, json, parquet, orc)"
        )

    forms = {form or format_of(place.name) or "" for place in places}
    ignored = sorted(name for name in settings.option if all(name not in OPTIONS[one] for one in forms))
    if ignored and path == settings.clicks:
        raise DataRefused(f"input.options {ignored} cannot be used for {'/'.join(sorted(forms))} files: remove them")
    if header is not None and forms != {"csv"}:
        raise DataRefused(
            f"{label} has no header line to replace: remove its `header` from the config, or set input.file_format"
        )

    def look(place: Place) -> File:
        kind = form or format_of(place.name) or ""
        with reading(place):
            columnar = kind in ("parquet", "orc")
            return _columnar(place, kind) if columnar else _text(place, kind, settings.option, header)

    with ThreadPoolExecutor(_THREADS) as pool:
        files = tuple(file for file in pool.map(look, places) if not file.is_empty)
    if not files:
        raise NoInput(f"{settings.path}/{path} is empty: not even a header; check input.path and {label}")
    return Table(label, files)


@contextmanager
def reading(place: Place) -> Iterator[None]:
    """Turns what libraries raise for a file that cannot be read into one line that names it (DataRefused)."""
    try:
        yield
    except (*streams.UNREADABLE, DataRefused) as error:
        if isinstance(error, DataRefused) and place.path in str(error):
            raise
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataRefused(
            f"{place.path} cannot be read ({cause}): mend or remove it, or set input.file_format and input.options"
        ) from None


def _columnar(place: Place, form: str) -> File:
    with place.fs.open(place.path, "rb") as file:
        if form == "orc":
            stripes = orc.ORCFile(file)
            schema, groups = stripes.schema, tuple([place.size // max(stripes.nstripes, 1)] * stripes.nstripes)
        else:
            footer = pq.ParquetFile(file)
            schema = footer.schema_arrow
            groups = tuple(footer.metadata.row_group(n).total_byte_size for n in range(footer.num_row_groups))
    types = dict(zip(schema.names, schema.types, strict=True))
    return File(place, form, tuple(schema.names), types, groups=groups)


def _text(place: Place, form: str, options: Mapping[str, str], header: Sequence[str] | None) -> File:
    with place.fs.open(place.path, "rb") as file:
        head = file.read(16)
    codec = streams.codec_of(place.name, head)
    told = options.get("encoding", options.get("charset"))
    first = _sample(place, codec, "utf-8", 16) if codec else head
    encoding = codecs.lookup(told or streams.encoding_of(first) or "utf-8").name
    sample = _sample(place, codec, encoding, _SAMPLE)
    many = options.get("multiline", "").lower() == "true"
    found = File(place, form, codec=codec, encoding=encoding, is_empty=not sample)
    if form == "json" and sample:
        names, over_lines = json_rows.sniff(sample)
        return replace(found, names=names, many_lines=many or over_lines)
    if form == "csv" and sample:
        shown = {"sep": "\t"} if ".tsv" in place.name.lower() and "delimiter" not in options else {}
        dialect = detect(sample, {**shown, **options}, header)
        return replace(found, names=dialect.names, dialect=dialect, many_lines=many or has_breaks(sample, dialect))
    return found


def _sample(place: Place, codec: str | None, encoding: str, size: int) -> bytes:
    """The first lines of a file, as UTF-8: about so many bytes."""
    sample = b""
    with place.fs.open(place.path, "rb") as file:
        for chunk in streams.read_text(file, codec, encoding, size=size):
            sample += chunk
            if len(sample) > size:
                return sample[: sample.rfind(b"\n", 0, size) + 1 or size]
    return sample


def divide(table: Table, tasks: int) -> list[list[Piece]]:
    """The pieces that each task reads: about as many bytes each.

    Args:
        table: the files.
        tasks: how many there should be if the files are large enough.
    """
    total = sum(file.place.size + _OPENING for file in table.files)
    target = min(_MOST_PIECE, max(_LEAST_PIECE, total // tasks))
    bundles: list[list[Piece]] = []
    held = target
    for piece, size in ((piece, size) for file in table.files for piece, size in _pieces(file, target)):
        if held + size / 2 > target:
            bundles.append([])
            held = 0
        bundles[-1].append(piece)
        held += size + _OPENING
    return bundles


def _pieces(file: File, target: int) -> Iterator[tuple[Piece, int]]:
    size = file.place.size
    if file.form in ("parquet", "orc"):
        first, held = 0, 0
        for n, of_group in enumerate(file.groups):
            if n > first and held + of_group > target:
                yield Piece(file, groups=tuple(range(first, n))), held
                first, held = n, 0
            held += of_group
        yield Piece(file, groups=tuple(range(first, len(file.groups)))), held
    elif file.is_divisible and size > target * 3 // 2:
        starts = range(0, size, target)
        for start in starts:
            yield Piece(file, start, min(start + target, size)), min(target, size - start)
    else:
        yield Piece(file), size
