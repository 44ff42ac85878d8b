"""Tables of the raw log as frames: tasks read the pieces of files in Python, and Spark reads catalog tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import pyarrow as pa
from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.pandas.types import from_arrow_schema, to_arrow_type

from recall_lib.config import Input
from recall_lib.log import readers
from recall_lib.log.clicks import Mapping
from recall_lib.log.files import Place
from recall_lib.log.tables import File, Piece, Table, divide, open_table
from recall_lib.process.errors import NoInput
from recall_lib.spark.executors import Batches, map_batches

# Rows that a piece has at most, for the places of rows in their table.
_PIECE_ROWS = 1 << 36


def open_source(
    spark: SparkSession, settings: Input, path: str, label: str, form: str | None = None, header: Sequence[str] | None = None
) -> Table:
    """What `log.tables.open_table` gives; with file_format `table`, a catalog table as if it were one file.

    Raises:
        NoInput: no file or table matches, or the files do not even have a header.
        DataRefused: a file cannot be read.
    """
    if form or settings.file_format != "table":
        return open_table(settings, path, label, form, header)
    try:
        schema = spark.table(path).schema
    except AnalysisException:
        raise NoInput(f"there is no table {path}: check input.clicks and input.items") from None
    types = {field.name: to_arrow_type(field.dataType) for field in schema}
    return Table(label, (File(Place(None, path, 0, {}), "table", tuple(types), types),))


def read(spark: SparkSession, table: Table, mapping: Mapping) -> DataFrame:
    """The rows of a table as a mapping of log/clicks.py gives them, each with its fate.

    Args:
        spark: the session.
        table: has what the mapping needs (Table.require).
        mapping: Clicks, Entries or Lines.
    """
    wanted = list(dict.fromkeys(need.column for need in mapping.needs))
    schema = from_arrow_schema(mapping.schema)
    first = table.files[0]
    if first.form == "table":
        # Under names of our own: mapInArrow cannot take a name with a dot or a backtick.
        columns = [F.col("`" + name.replace("`", "``") + "`").alias(f"c{n}") for n, name in enumerate(wanted)]
        work = partial(_map_rows, source=first.place.path, mapping=mapping, wanted=wanted)
        return map_batches(spark.table(first.place.path).select(*columns), work, schema)
    tasks = divide(table, int(spark.conf.get("spark.sql.shuffle.partitions") or 1))
    numbered, n = [], 0
    for pieces in tasks:
        numbered.append(list(enumerate(pieces, n)))
        n += len(pieces)
    ids = spark.range(0, len(tasks), 1, len(tasks))
    return map_batches(ids, partial(_read_pieces, tasks=numbered, mapping=mapping, wanted=wanted), schema)


def _read_pieces(
    batches: Batches, tasks: list[list[tuple[int, Piece]]], mapping: Mapping, wanted: list[str]
) -> Iterator[pa.RecordBatch]:
    for task in [n.as_py() for batch in batches for n in batch.column(0)]:
        for nth, piece in tasks[task]:
            first = nth * _PIECE_ROWS
            for rows in readers.read(piece, wanted):
                yield mapping.map(rows, piece.file.place.name, first)
                first += rows.rows


def _map_rows(batches: Batches, source: str, mapping: Mapping, wanted: list[str]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        yield mapping.map(readers.of_columns(batch.rename_columns(wanted), wanted), source, None)
