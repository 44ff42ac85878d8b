"""Petastorm's reader of Parquet files on today's pyarrow, numpy and Python, which no longer have all that it asks for.

Only Petastorm sees what it is given back: a module that it imports exists while it is imported, and a name that it looks up
later is put into its own modules. Versions that still have these names are treated like all others.

The lines named here are those of petastorm 0.12.1. Version 0.13.1 works too, but asks for an old setuptools that torch
excludes, copies each row group once more, and loses row groups without `_Ventilator`.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType, SimpleNamespace
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec import AbstractFileSystem

# Module and class that an `import` asks for; the code that would use them, for HDFS and for writing, is never reached.
_IMPORTED = {
    "pyarrow.filesystem": "LocalFileSystem",  # utils.py:23
    "pyarrow.hdfs": "HadoopFileSystem",  # hdfs/namenode.py:24
    "distutils.version": "LooseVersion",  # hdfs/namenode.py:19, gone since Python 3.12
}


@contextmanager
def _importable() -> Iterator[None]:
    kept = {module: sys.modules[module] for module in _IMPORTED if module in sys.modules}
    for module, name in _IMPORTED.items():
        sys.modules[module] = ModuleType(module)
        setattr(sys.modules[module], name, type(name, (), {}))
    try:
        yield
    finally:
        for module in _IMPORTED:
            del sys.modules[module]
        sys.modules.update(kept)


with _importable():
    from petastorm import TransformSpec, arrow_reader_worker, make_batch_reader, reader, unischema
    from petastorm.etl import dataset_metadata
    from petastorm.transform import edit_field
    from petastorm.workers_pool import ventilator
    from petastorm.workers_pool.thread_pool import WorkerTerminationRequested

__all__ = ["TransformSpec", "Unreadable", "edit_field", "make_batch_reader"]


class Unreadable(Exception):
    """A file that pyarrow cannot read: its name, and why."""


class ParquetDataset:
    """Files by their names in a file system (reader.py:420, arrow_reader_worker.py:132, etl/dataset_metadata.py:402)."""

    # A folder may have these, a list of files does not. Petastorm would unpickle a part of common_metadata.
    metadata = common_metadata = partitions = None

    def __init__(self, path_or_paths: list[str], filesystem: AbstractFileSystem, **unused: Any) -> None:
        self.fs = filesystem
        self.pieces = [ParquetDatasetPiece(path, filesystem.open) for path in path_or_paths]


class ParquetDatasetPiece(NamedTuple):
    """A file or, with `row_group`, one of its row groups (etl/dataset_metadata.py:334)."""

    path: str
    open_file_func: Callable[[str], IO[bytes]]
    row_group: int | None = None
    partition_keys: tuple[()] = ()

    def get_metadata(self) -> pq.FileMetaData:
        """The file's footer (etl/dataset_metadata.py:333, unischema.py:317)."""
        with self._opened() as file:
            return file.metadata

    def read(self, columns: Iterable[str], partitions: None) -> pa.Table:
        """Columns of the row group (arrow_reader_worker.py:291)."""
        with self._opened() as file:
            return file.read_row_group(self.row_group, columns=list(columns))

    @contextmanager
    def _opened(self) -> Iterator[pq.ParquetFile]:
        try:
            with self.open_file_func(self.path) as file, pq.ParquetFile(file) as parquet:
                yield parquet
        except (pa.ArrowException, OSError, ValueError) as error:
            raise Unreadable(f"{self.path}: {' '.join(str(error).split())}") from error


class _Worker(arrow_reader_worker.ArrowReaderWorker):
    """Puts an error into the queue of results like a result.

    Petastorm's thread would first print it with its traceback (workers_pool/thread_pool.py:72). Then it would wait for room
    in the queue, and if nobody reads the queue any more, the reader's join() would wait with it forever.
    """

    def process(self, *args: Any, **keywords: Any) -> None:
        try:
            super().process(*args, **keywords)
        except WorkerTerminationRequested:
            raise
        except Exception as error:
            self.publish_func(error)


class _Ventilator(ventilator.ConcurrentVentilator):
    """Hands out all row groups before the first result is asked for; the number of epochs must be finite.

    Petastorm hands out a few at a time, in a thread. Its reader ends if no row group is being read and, asked next, all
    have been handed out (workers_pool/thread_pool.py:157). It loses those that are handed out between the two questions.
    """

    def start(self) -> None:
        self._max_ventilation_queue_size = math.inf
        self._ventilate()


reader.ArrowReaderWorker = _Worker  # reader.py:329
reader.ConcurrentVentilator = _Ventilator  # reader.py:665
for _module in (reader, arrow_reader_worker, dataset_metadata):
    _module.pq = SimpleNamespace(ParquetDataset=ParquetDataset, ParquetDatasetPiece=ParquetDatasetPiece)
for _module in (arrow_reader_worker, unischema):  # arrow_reader_worker.py:65, unischema.py:481 and 491
    _module.np = SimpleNamespace(**vars(np) | {"unicode_": np.str_, "string_": np.bytes_})
