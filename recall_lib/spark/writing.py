"""Parquet files written by the executors themselves, so that each Arrow batch becomes one row group."""

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
    """Write the batches of each folder to one file in it, one row group per batch.

    Every attempt of a task, and every later run, writes files with new names. A reader that uses a replaced manifest therefore
    fails on a missing file and never reads another version's rows. The yielded rows name the files of the attempt that counts.

    Args:
        batches: (folder, rows); the folder is an address that every executor can write to. This function creates no folders:
            after a failed job, Python workers live on for a moment, and they must not recreate a folder that was removed.

    Yields:
        Rows of WRITTEN.
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
    # Statistics of values in lists take time to write, and no reader uses them.
    plain = [field.name for field in schema if not pa.types.is_nested(field.type)]
    return pq.ParquetWriter(file, schema, compression="zstd", use_dictionary=_repeating(schema), write_statistics=plain)


def _repeating(fields: Iterable[pa.Field], above: str = "") -> list[str]:
    """The Parquet paths of the columns below these fields whose values repeat: all except floats.

    Building a dictionary of numbers that all differ takes three times as long as the rest of the writing.
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
