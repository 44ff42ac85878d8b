"""A file system that no local path leads to: viewfs://data/m is a folder of this machine.

`viewfs://` is what Hadoop's client has built in for both sides to see: Spark finds its folders by a mount table, and fsspec
is told of it, in every process, as any package would tell it.
"""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from pyspark.sql import SparkSession

STORE = "viewfs://data/m"
PACKAGE = """
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

class Mounted(DirFileSystem):
    protocol = "viewfs"

    def __init__(self, **options):
        super().__init__({folder!r}, LocalFileSystem(), **options)
"""


def mount(spark: SparkSession, folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make STORE a folder below `folder`, for Spark, this process and the session's Python workers; returns that folder."""
    site, here = folder / "site", folder / "data/m"
    facts = site / "mounted-1.dist-info"
    for made in (facts, here):
        made.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mounted\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[fsspec.specs]\nviewfs = mounted:Mounted\n")
    (site / "mounted.py").write_text(PACKAGE.format(folder=str(folder)))
    patch.syspath_prepend(site)
    patch.setitem(spark.sparkContext.environment, "PYTHONPATH", str(site))
    fsspec.process_entries()
    spark.sparkContext._jsc.hadoopConfiguration().set("fs.viewfs.mounttable.data.link./m", f"file://{here}")
    return here
