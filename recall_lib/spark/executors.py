"""Functions from Arrow batches to Arrow batches that run in executors, in Python workers that many tasks share."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from zipimport import zipimporter

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

Batches = Iterable[pa.RecordBatch]


def map_batches(rows: DataFrame, work: Callable[[Batches], Iterator[pa.RecordBatch]], schema: StructType | str) -> DataFrame:
    """Apply `work` to each partition: `mapInArrow`, with less overhead per task.

    Args:
        rows: any frame.
        work: gets the batches of a partition, yields the result's batches; it is pickled.
        schema: of the result.
    """
    return rows.mapInArrow(partial(_work, work=work), schema)


def _work(batches: Batches, work: Callable[[Batches], Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    yield from work(batches)
    _freeze()
    # Before each task PySpark invalidates the importers' caches. Up to Python 3.11 the importers of pyspark.zip then read its
    # whole directory again, which takes 80 ms (python/cpython#103200). The next import that needs one makes it again.
    for path, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimporter):
            del sys.path_importer_cache[path]


@cache
def _freeze() -> None:
    """Once per worker: exclude all objects loaded so far from the garbage collection that follows each task."""
    gc.collect()
    gc.freeze()
