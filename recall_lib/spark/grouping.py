"""Brings all clicks of a user together: a shuffle of packed columns instead of rows.

Each task packs its rows into one piece of Arrow columns per target partition. Spark shuffles the pieces, and a function gets
all rows of a partition as one table. At ten million clicks this is about four times as fast as shuffling and sorting rows. A
partition needs the memory of its rows, about 100 bytes per click. `partitions_for` plans enough partitions to keep this small;
a very active user still adds all their clicks to one partition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np
import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from recall_lib.spark.executors import map_batches

# Rows that a task packs at once.
_PIECE_ROWS = 1 << 18
# Clicks per partition, about: a user with a million clicks is then not a straggler.
_PARTITION_ROWS = 1 << 20
_LEAST_PARTITIONS = 8

Kernel = Callable[[pa.Table], Iterator[pa.RecordBatch]]


def partitions_for(rows: int, multiple_of: int = 1) -> int:
    """Number of partitions for this many clicks, a multiple of `multiple_of`; it depends on the data, not on the cluster."""
    wanted = max(_LEAST_PARTITIONS, -(-rows // _PARTITION_ROWS))
    return -(-wanted // multiple_of) * multiple_of


def map_users(rows: DataFrame, partitions: int, kernel: Kernel, schema: StructType) -> DataFrame:
    """Apply a function to whole users.

    Args:
        rows: with column user_id; the kernel gets all columns.
        partitions: number of partitions of the result.
        kernel: gets all rows of all users of a partition, in no particular order.
        schema: of the rows that the kernel yields.

    Returns:
        The rows that the kernel yields. The partition of a user depends only on user_id and `partitions`.
    """
    # The same hash as `repartition` below uses. A piece carries the user_id of its first row and so reaches this partition.
    partition = F.pmod(F.hash("user_id"), F.lit(partitions)).alias("_partition")
    pieces = map_batches(rows.select("*", partition), _pack, "user_id string, piece binary")
    return map_batches(pieces.repartition(partitions, "user_id"), partial(_unpack, kernel=kernel), schema)


def _pack(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for table in _gathered(batches):
        partition = table.column("_partition").to_numpy()
        order = np.argsort(partition, kind="stable")
        table = table.drop_columns(["_partition"]).take(pa.array(order)).combine_chunks()
        first = np.flatnonzero(np.diff(partition[order], prepend=-1))
        pieces = [_serialised(table.slice(a, b - a)) for a, b in zip(first, [*first[1:], table.num_rows], strict=True)]
        yield pa.RecordBatch.from_arrays(
            [table.column("user_id").take(pa.array(first)).combine_chunks(), pa.array(pieces, pa.binary())],
            ["user_id", "piece"],
        )


def _gathered(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    held: list[pa.RecordBatch] = []
    rows = 0
    for batch in batches:
        held.append(batch)
        rows += batch.num_rows
        if rows >= _PIECE_ROWS:
            yield pa.Table.from_batches(held)
            held, rows = [], 0
    if rows:
        yield pa.Table.from_batches(held)


def _serialised(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _unpack(batches: Iterable[pa.RecordBatch], kernel: Kernel) -> Iterator[pa.RecordBatch]:
    pieces = [pa.ipc.open_stream(piece.as_buffer()).read_all() for batch in batches for piece in batch.column("piece")]
    if pieces:
        yield from kernel(pa.concat_tables(pieces).combine_chunks())
