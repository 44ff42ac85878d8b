"""Two names for one place: the path that fsspec uses, and the address that Spark and other processes use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs


def resolve(address: str) -> tuple[Any, str, str]:
    """The file system of a path or address, the path in it, and the prefix that turns such a path into an address.

    The prefix holds the host, which some file systems (HDFS) leave out of their paths. It keeps the scheme as it was given:
    fsspec treats s3:// and s3a:// alike, Spark does not.
    """
    fs, path = url_to_fs(address)
    return fs, path, "file://" if "file" in fs.protocol else address.rstrip("/").removesuffix(path)


@contextmanager
def open_parquet(address: str) -> Iterator[pq.ParquetFile]:
    """A Parquet file, open during the block; read it with `use_threads=False`.

    pyarrow's threads may still hold the Python file when a read returns. If the interpreter ends before they let go of it, the
    process aborts (exit code 134).
    """
    fs, path = url_to_fs(address)
    with fs.open(path, "rb") as file, pq.ParquetFile(file, pre_buffer=False) as parquet:
        yield parquet


def read_parquet(address: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The rows of a Parquet file, read by the calling thread alone."""
    with open_parquet(address) as parquet:
        return parquet.read(columns, use_threads=False)


def read_batches(address: str, rows: int) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in batches of up to `rows`, read by the calling thread alone."""
    with open_parquet(address) as parquet:
        yield from parquet.iter_batches(rows, use_threads=False)
