"""Parquet files written by the executors themselves, so that a batch of columns is a row group and not taken apart."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs
from pyspark import TaskContext
from pyspark.sql.types import StringType, StructField, StructType

# The address of a file that a task has finished.
WRITTEN = StructType([StructField("address", StringType())])


def write_files(batches: Iterable[tuple[str, pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    """Write the batches of each folder to one file there, a row group each.

    A task that is run again, now or in a later run, writes files of other names: whoever reads by the names of a manifest that
    has been replaced misses a file, and never reads another version's. Those of the attempt that Spark counts are yielded.

    Args:
        batches: (folder, rows); the folder is an address that every executor can write to. None is made here: of a job that
            failed, Python workers go on for a while, and must not bring back what was cleared away.

    Yields:
        WRITTEN.
    """
    task = TaskContext.get()
    assert task is not None, "runs in a Spark task"
    name = f"part-{task.partitionId():05}-{uuid.uuid4().hex}.parquet"
    writers: dict[str, pq.ParquetWriter] = {}
    with ExitStack() as stack:
        for folder, batch in batches:
            if folder not in writers:
                fs, path = url_to_fs(f"{folder}/{name}")
                writers[folder] = stack.enter_context(_writer(stack.enter_context(fs.open(path, "wb")), batch.schema))
            writers[folder].write_table(pa.Table.from_batches([batch]), row_group_size=max(batch.num_rows, 1))
    yield pa.RecordBatch.from_pydict({"address": pa.array([f"{folder}/{name}" for folder in writers], pa.string())})


def _writer(file: Any, schema: pa.Schema) -> pq.ParquetWriter:
    # Statistics of what lies in lists take time and spare no reader anything.
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=_repeating(schema), write_statistics=plain)


def _repeating(fields: Iterable[pa.Field], above: str = "") -> list[str]:
    """The columns below these fields whose values repeat, by their paths in Parquet: all but floats.

    A dictionary of numbers that are all different takes three times as long as the rest of the writing.
    """
    found = []
    for field in fields:
        path, kind = above + field.name, field.type
        if pa.types.is_list(kind):
            path, kind = f"{path}.list.element", kind.value_type
        if pa.types.is_struct(kind):
            found += _repeating([kind.field(i) for i in range(kind.num_fields)], f"{path}.")
        elif not pa.types.is_floating(kind):
            found.append(path)
    return found
