"""Work on the executors' side: functions from Arrow batches to Arrow batches, in workers that many tasks share."""

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
    """What `work` yields for each partition; `mapInArrow`, with less to do for Spark at each task.

    Args:
        rows: any.
        work: gets the batches of a partition; pickled.
        schema: of what it yields.
    """
    return rows.mapInArrow(partial(_work, work=work), schema)


def _work(batches: Batches, work: Callable[[Batches], Iterator[pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    yield from work(batches)
    _freeze()
    # Before each task PySpark invalidates what importers remember; up to Python 3.11 those of pyspark.zip then read its whole
    # directory again, 80 ms of work (python/cpython#103200). They come back with the next import that needs them.
    for path, importer in list(sys.path_importer_cache.items()):
        if isinstance(importer, zipimporter):
            del sys.path_importer_cache[path]


@cache
def _freeze() -> None:
    """Once a worker: what is loaded by now stays, and the collection of garbage after each task need not look at it."""
    gc.collect()
    gc.freeze()
