"""One publication, as it was when it was looked up: what is read is what its digest is recorded of."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from recall_lib.datasets import name_of
from recall_lib.store.schemas import enforce

StartSpark = Callable[[], SparkSession]


@dataclass(frozen=True)
class Publication:
    """A day of a dataset, or the part of it that further keys name.

    Another publication may take its place at any time. Its files have other names where executors write them, so that a reader
    of this one misses a file then and never reads another version's.

    Attributes:
        dataset: its name.
        dt: the day.
        keys: the further keys.
        folder: that holds it, as the file system names it.
        uri: the same as Spark and other processes name it.
        manifest: what is recorded of it.
        start_spark: gives the session that `read` needs.
    """

    dataset: str
    dt: str
    keys: Mapping[str, str]
    folder: str
    uri: str
    manifest: Mapping[str, Any]
    start_spark: StartSpark = field(repr=False, compare=False)

    @property
    def name(self) -> str:
        """E.g. samples/dt=2024-03-03/split=train."""
        return name_of(self.dataset, {"dt": self.dt, **self.keys})

    @property
    def digest(self) -> str:
        """Of its content."""
        return self.manifest["digest"]

    @property
    def inputs(self) -> Mapping[str, str]:
        """The digests of what it was made from, by name."""
        return self.manifest["inputs"]

    @property
    def local(self) -> bool:
        """Whether it lies on this machine's file system."""
        return self.uri.startswith("file://")

    @property
    def files(self) -> tuple[str, ...]:
        """The addresses of its files."""
        return tuple(f"{self.uri}/{file['name']}" for file in self.manifest["files"])

    def read(self, schema: StructType) -> DataFrame:
        """Its rows, without dt and further keys."""
        return read_all([self], schema, self.start_spark())


def read_all(publications: Iterable[Publication], schema: StructType, spark: SparkSession) -> DataFrame:
    """The rows of several publications of one dataset; of none an empty frame.

    Raises:
        DataRefused: their columns are not those of the schema.
    """
    found = list(publications)
    files = [name for one in found for name in one.files]
    if not files:
        return spark.createDataFrame([], schema)
    frame = spark.read.option("mergeSchema", "false").parquet(*files)
    return enforce(frame, schema, found[0].dataset)
