"""One publication as it was when it was looked up, so that the rows that are read are those of its recorded digest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.types import StructType

from recall_lib.store.datasets import name_of
from recall_lib.store.schemas import enforce

StartSpark = Callable[[], SparkSession]


@dataclass(frozen=True)
class Publication:
    """A day of a dataset, or the part of the day that further keys name.

    Another publication may replace it at any time. Executors write each publication's files under new names. A reader of a
    replaced publication therefore fails on a missing file, and never reads rows of another version.

    Attributes:
        dataset: the dataset's name.
        dt: the day.
        keys: the further keys.
        folder: its folder, as a path of the file system.
        uri: the same folder, as an address for Spark and other processes.
        manifest: the content of its `_manifest.json`.
        start_spark: returns the session that `read` needs.
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
    def name_in_day(self) -> str:
        """Its name within its day, e.g. samples/split=train. Manifests of the same day name it so among their inputs."""
        return name_of(self.dataset, self.keys)

    @property
    def digest(self) -> str:
        """The digest of its content."""
        return self.manifest["digest"]

    @property
    def inputs(self) -> Mapping[str, str]:
        """The digest of each of its inputs, by name."""
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
        """Its rows, without the columns dt and further keys."""
        return read_all([self], schema, self.start_spark())


def read_all(publications: Iterable[Publication], schema: StructType, spark: SparkSession) -> DataFrame:
    """The rows of several publications of one dataset; an empty frame if there are none.

    Raises:
        DataRefused: their columns are not those of the schema.
    """
    found = list(publications)
    files = [name for one in found for name in one.files]
    if not files:
        return spark.createDataFrame([], schema)
    frame = spark.read.option("mergeSchema", "false").parquet(*files)
    return enforce(frame, schema, found[0].dataset)
