"""Rows of a CSV file. pyarrow reads blocks of whole lines; a block that holds odd lines is read line by line.

A line is a row. A quoted value may hold line breaks where the lines together have the right number of fields; otherwise
a quote that is not closed costs its own line alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.csv as pa_csv

from recall_lib.log.batch import BLANK, MALFORMED, Batch, readable
from recall_lib.log.dialect import LONGEST_RECORD, Dialect
from recall_lib.process.errors import DataRefused

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BLANK_LINES = (b"\n\n", b"\n\r", b"\r\r")
_LONGEST_LINE = 64 << 20
_STAND_IN = b"\x1f"  # for a separator of several bytes, in blocks that do not hold it


def read(chunks: Iterable[bytes], dialect: Dialect, wanted: Sequence[str]) -> Iterator[Batch]:
    """The rows of a stream of text.

    Args:
        chunks: UTF-8, from the first row on.
        dialect: how it is written.
        wanted: names of columns.

    Raises:
        DataRefused: a line is longer than 64 MiB.
    """
    rest = b""
    for chunk in chunks:
        data = rest + chunk
        cut = data.rfind(b"\n") + 1 or data.rfind(b"\r", 0, -1) + 1  # the last \r may be half of a line end
        if not cut:
            rest = data
            if len(rest) > _LONGEST_LINE:
                raise DataRefused(f"a line is longer than {_LONGEST_LINE >> 20} MiB")
            continue
        batch, left = _parsed(data[:cut], dialect, wanted, last=False)
        rest = left + data[cut:]
        yield batch
    if rest:
        yield _parsed(rest if rest.endswith((b"\n", b"\r")) else rest + b"\n", dialect, wanted, last=True)[0]


def _parsed(block: bytes, dialect: Dialect, wanted: Sequence[str], *, last: bool) -> tuple[Batch, bytes]:
    """The rows of a block of whole lines, and the end of it that belongs to the next block."""
    quoted = bool(dialect.quote) and dialect.quote in block
    plain = dialect.escape == dialect.quote or not quoted
    odd = not plain or dialect.comment or len(dialect.names) == 1 or (quoted and block.count(dialect.quote) % 2)
    batch = None if odd else _by_arrow(block, dialect, wanted, quoted)
    return (batch, b"") if batch else _by_line(block, dialect, wanted, last)


def _by_arrow(block: bytes, dialect: Dialect, wanted: Sequence[str], quoted: bool) -> Batch | None:
    """The rows of a block in which each line is a record; None: it is no such block."""
    text, sep = block, dialect.sep
    if len(sep) > 1:
        if quoted or _STAND_IN in block:
            return None
        text, sep = block.replace(sep, _STAND_IN), _STAND_IN
    invalid: list[int] = []

    def note(row: pa_csv.InvalidRow) -> str:
        invalid.append(row.number)
        return "skip"

    places = _places(dialect, wanted)
    names = [str(n) for n in range(len(dialect.names))]
    used = [names[n] for n in sorted(set(places.values()))] or names[:1]
    try:
        table = pa_csv.read_csv(
            pa.py_buffer(text),
            pa_csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=names),
            pa_csv.ParseOptions(
                delimiter=sep.decode(),
                quote_char=dialect.quote.decode() if quoted else False,
                newlines_in_values=False,
                ignore_empty_lines=False,
                invalid_row_handler=note,
            ),
            pa_csv.ConvertOptions(
                check_utf8=False,
                include_columns=used,
                column_types=dict.fromkeys(used, pa.binary()),
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    lines = _Lines(block)
    if table.num_rows + len(invalid) != len(lines):
        return None
    odd = np.array(invalid, np.int64) - 1
    others, rescued = _sorted_out([lines[n] for n in odd], dialect)
    kept = np.delete(np.arange(len(lines)), odd)
    if block[:1] in b"\r\n" or any(ends in block for ends in _BLANK_LINES):  # for pyarrow a row of empty values
        is_row = np.array([len(lines[n]) > 0 for n in kept.tolist()])
        others += [(BLANK, "")] * int((~is_row).sum())
        table, kept = table.filter(pa.array(is_row)), kept[is_row]
    columns = {name: _column(table, names[place], [row[place] for _, row in rescued]) for name, place in places.items()}

    def texts(rows: Iterable[int]) -> list[str]:
        return [readable(lines[int(kept[n])] if n < table.num_rows else rescued[n - table.num_rows][0]) for n in rows]

    return _batch(columns, table.num_rows + len(rescued), wanted, texts, others)


def _column(table: pa.Table, name: str, more: list[bytes]) -> pa.Array:
    chunks = [*table.column(name).chunks, *([pa.array(more, pa.binary())] if more else [])]
    return pa.concat_arrays(chunks) if chunks else pa.array([], pa.binary())


def _sorted_out(lines: Iterable[bytes], dialect: Dialect) -> tuple[list[tuple[str, str]], list[tuple[bytes, list[bytes]]]]:
    """Of lines with too few or too many fields: what is no row, and the rows that only end with one more separator."""
    others, rescued = [], []
    for line in lines:
        fields = dialect.fields(line)
        if dialect.is_no_row(line):
            others.append((BLANK, ""))
        elif _fits(fields, dialect):
            rescued.append((line, fields or []))
        else:
            others.append((MALFORMED, readable(line)))
    return others, rescued


def _fits(fields: list[bytes] | None, dialect: Dialect) -> bool:
    """Whether a row has as many fields as the header; one separator more or less at the end makes no difference."""
    columns = len(dialect.names)
    if fields is None or len(fields) == columns:
        return fields is not None
    return (len(fields) == columns + 1 and not fields[-1]) or (len(fields) == columns - 1 > 0 and not dialect.names[-1])


class _Lines:
    """The lines of a block; they are looked for only where one is asked for, or a \\r stands alone."""

    def __init__(self, block: bytes) -> None:
        self._block = block
        self._ends: npt.NDArray[np.int64] | None = None
        returns = block.count(b"\r")
        self._alone = returns - block.count(b"\r\n") if returns else 0

    def __len__(self) -> int:
        return self._block.count(b"\n") + self._alone

    def __getitem__(self, nth: int) -> bytes:
        if self._ends is None:
            letters = np.frombuffer(self._block, np.uint8)
            is_end = letters == ord("\n")
            if self._alone:
                is_end |= (letters == ord("\r")) & (np.append(letters[1:], 0) != ord("\n"))
            self._ends = np.flatnonzero(is_end)
        start = self._ends[nth - 1] + 1 if nth else 0
        return self._block[start : self._ends[nth]].removesuffix(b"\r")


def _by_line(block: bytes, dialect: Dialect, wanted: Sequence[str], last: bool) -> tuple[Batch, bytes]:
    rows: list[list[bytes]] = []
    lines: list[bytes] = []
    others: list[tuple[str, str]] = []
    at, left = 0, b""
    while at < len(block):
        stop, after = next(_LINE_END.finditer(block, at)).span()
        line = block[at:stop]
        fields = dialect.fields(line)
        if fields is None and dialect.breaks:
            stop, after = _record_end(block, at, dialect, last)
            if not after:
                left = block[at:]
                break
            line = block[at:stop]
            fields = dialect.fields(line)
        if dialect.is_no_row(line):
            others.append((BLANK, ""))
        elif _fits(fields, dialect):
            rows.append(fields or [])
            lines.append(line)
        else:
            others.append((MALFORMED, readable(line)))
        at = after
    columns = {name: pa.array([row[place] for row in rows], pa.binary()) for name, place in _places(dialect, wanted).items()}
    return _batch(columns, len(rows), wanted, lambda some: [readable(lines[n]) for n in some], others), left


def _record_end(block: bytes, at: int, dialect: Dialect, last: bool) -> tuple[int, int]:
    """Where the record of a line that ends inside quotes ends, before and after its line end.

    That is the line's own end if no lines together are a record, and (0, 0) if the record may end in the next block.
    """
    ends = _LINE_END.finditer(block, at)
    first = next(ends).span()
    before = first[1]
    for end in ends:
        if end.start() - at > LONGEST_RECORD:
            return first
        if dialect.quote in block[before : end.start()]:
            fields = dialect.fields(block[at : end.start()])
            if fields is not None:
                return end.span() if _fits(fields, dialect) else first
        before = end.end()
    return first if last or len(block) - at > LONGEST_RECORD else (0, 0)


def _places(dialect: Dialect, wanted: Sequence[str]) -> dict[str, int]:
    return {name: dialect.names.index(name) for name in wanted if name in dialect.names}


def _batch(
    columns: dict[str, pa.Array],
    rows: int,
    wanted: Sequence[str],
    texts: Callable[[Iterable[int]], list[str]],
    others: list[tuple[str, str]],
) -> Batch:
    lacking = {name: pa.nulls(rows, pa.binary()) for name in wanted if name not in columns}
    return Batch(columns | lacking, rows, texts, others)
