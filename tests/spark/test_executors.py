"""What a Python worker still has to do between two of its tasks."""

import gc
import sys
from zipimport import zipimporter

import pyarrow as pa

from recall_lib.spark.executors import map_batches


def look(batches):
    rows = sum(batch.num_rows for batch in batches)
    zips = sum(isinstance(importer, zipimporter) for importer in sys.path_importer_cache.values())
    yield pa.RecordBatch.from_pydict({"rows": [rows], "zips": [zips], "frozen": [gc.get_freeze_count()]})


def test_a_worker_s_second_task_reads_no_zip_and_leaves_what_is_loaded_alone(spark):
    rows = spark.range(0, 1000, 1, 12)
    found = map_batches(rows, look, "rows long, zips long, frozen long").collect()
    assert sum(row["rows"] for row in found) == 1000
    later = [row for row in found if row["frozen"]]  # a worker's first task finds nothing frozen
    assert later
    assert all(row["zips"] == 0 for row in later)
