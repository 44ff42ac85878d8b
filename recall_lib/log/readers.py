"""Reads a piece of a table, whatever its format: batches of the wanted columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq

from recall_lib.log import csv_rows, json_rows, streams
from recall_lib.log.batch import BLANK, Batch, readable
from recall_lib.log.tables import Piece, reading

_ROWS = 1 << 16
# The only column of session lines.
LINE = "line"


def read(piece: Piece, wanted: Sequence[str]) -> Iterator[Batch]:
    """The rows of a piece.

    Args:
        piece: of a table.
        wanted: names of columns; a column that the file lacks is one of the folders above it, or null.

    Raises:
        DataRefused: the file cannot be read.
    """
    file = piece.file
    with reading(file.place), file.place.fs.open(file.place.path, "rb") as opened:
        for batch in _batches(opened, piece, wanted):
            for name, value in file.place.folders.items():
                if name in batch.columns and name not in file.names:
                    batch.columns[name] = pa.repeat(pa.scalar(value, pa.string()), batch.rows)
            yield batch


def _batches(opened: Any, piece: Piece, wanted: Sequence[str]) -> Iterator[Batch]:
    file = piece.file
    if file.form == "parquet":
        own = [name for name in wanted if name in file.names]
        found = pq.ParquetFile(opened).iter_batches(_ROWS, row_groups=list(piece.groups), columns=own)
        yield from (of_columns(batch, wanted) for batch in found)
    elif file.form == "orc":
        stripes = orc.ORCFile(opened)
        own = [name for name in wanted if name in file.names]
        for n in piece.groups:
            table = pa.Table.from_batches([stripes.read_stripe(n, own)])
            yield from (of_columns(batch, wanted) for batch in table.to_batches(_ROWS))
    else:
        chunks = streams.read_text(opened, file.codec, file.encoding, piece.start, piece.end)
        if file.form == "csv":
            assert file.dialect is not None
            skipped = _without_first(chunks, 0 if piece.start else file.dialect.skip)
            yield from csv_rows.read(skipped, file.dialect, wanted)
        elif file.form == "json":
            yield from json_rows.read(chunks, file.many_lines, wanted)
        else:
            yield from _lines(chunks)


def of_columns(rows: pa.RecordBatch, wanted: Sequence[str]) -> Batch:
    """A batch of Parquet, ORC or a catalog table; the text of a row is a JSON object of the wanted columns that it has."""
    views = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}  # few functions of Arrow take these
    rows = rows.cast(pa.schema([field.with_type(views.get(field.type, field.type)) for field in rows.schema]))
    columns = {name: rows.column(name) if name in rows.schema.names else pa.nulls(rows.num_rows) for name in wanted}

    def texts(some: Iterable[int]) -> list[str]:
        found = rows.take(pa.array(list(some), pa.int64())).to_pylist()
        return [json.dumps(row, ensure_ascii=False, default=_as_json) for row in found]

    return Batch(columns, rows.num_rows, texts, [])


def _as_json(value: Any) -> str:
    return readable(value) if isinstance(value, bytes) else str(value)


def _without_first(chunks: Iterable[bytes], skip: int) -> Iterator[bytes]:
    for chunk in chunks:
        yield chunk[skip:]
        skip = max(skip - len(chunk), 0)


def _lines(chunks: Iterable[bytes]) -> Iterator[Batch]:
    """Lines as they are."""
    rest, skip = b"", True
    for chunk in chunks:
        data = rest + (chunk.removeprefix(b"\xef\xbb\xbf") if skip else chunk)
        skip = skip and not chunk
        *whole, rest = data.split(b"\n")
        yield _batch_of_lines(whole)
    if rest:
        yield _batch_of_lines([rest])


def _batch_of_lines(lines: list[bytes]) -> Batch:
    rows = [line.removesuffix(b"\r") for line in lines if line.strip()]
    column = pa.array(rows, pa.binary())
    blank = [(BLANK, "")] * (len(lines) - len(rows))
    return Batch({LINE: column}, len(rows), lambda some: [readable(rows[n]) for n in some], blank)
