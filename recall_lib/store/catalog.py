"""The dated tables as external tables of Spark's catalog: `spark.table("recall.top_n").where("dt = '2024-03-03'")`.

The files of each publication are also linked into a folder that never changes, `<root>/_versions/<partition>/<id>/`. One
transaction of the metastore points the partition to this folder, so readers see either the old version or the new one. Spark
caches the listing of a folder until the application ends. A version's folder never changes, so a cached listing is never out
of date. The previous version stays for its readers until the next publication or `recall gc`.

`swap_in` needs nothing but a publication of audited Parquet files. A table format with its own transactions (Iceberg, Delta)
could be supported by a class with the same methods that overwrites the partition with the publication's rows.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from contextlib import suppress

from pyspark.errors import AnalysisException
from pyspark.sql.types import StringType, StructField, StructType

from recall_lib.config import Features
from recall_lib.process.errors import UsageError
from recall_lib.store import schemas
from recall_lib.store.datasets import DATASETS
from recall_lib.store.folders import Folders
from recall_lib.store.publication import Publication


def declared(features: Features) -> dict[str, tuple[StructType, tuple[str, ...]]]:
    """{table: (its columns in the files, the columns it is partitioned by)}; datasets of other files are left out."""
    rows = [row for row in DATASETS.values() if row.columns]
    return {row.name: (schemas.named(row.columns, features), ("dt", *filter(None, [row.key]))) for row in rows if row.columns}


def create_table(dataset: str, features: Features, database: str, root: str) -> str:
    """The SQL statement that declares a table."""
    schema, keys = declared(features)[dataset]
    columns = [f"  `{field.name}` {field.dataType.simpleString()}" for field in _with_keys(schema, keys)]
    return (
        f"CREATE TABLE IF NOT EXISTS {database}.{dataset} (\n" + ",\n".join(columns) + "\n)\n"
        f"USING parquet\nPARTITIONED BY ({', '.join(keys)})\nLOCATION {_text(f'{root}/{dataset}')}"
    )


def _with_keys(schema: StructType, keys: tuple[str, ...]) -> StructType:
    return StructType([*schema, *(StructField(key, StringType()) for key in keys)])


class Catalog:
    """The tables of one database, over the folders of one root."""

    def __init__(self, folders: Folders, database: str, features: Features) -> None:
        """Raises UsageError if the session's catalog is in memory, because it would end with the session."""
        self.folders, self.database, self.features = folders, database, features
        self.spark = folders.start_spark()
        self.declared = declared(features)
        if self.spark.conf.get("spark.sql.catalogImplementation", "in-memory") == "in-memory":
            raise UsageError(
                "tables.database needs a catalog that outlives the session: set spark.conf to "
                "{spark.sql.catalogImplementation: hive, spark.hadoop.hive.metastore.uris: 'thrift://host:9083'}"
            )

    def swap_in(self, publication: Publication) -> None:
        """Point the partition to a publication's files; queries that start later read them.

        Raises:
            DataRefused: the table exists with other columns.
        """
        dataset, dt, keys = publication.dataset, publication.dt, publication.keys
        self._require_table(dataset)
        before, version = self.location(dataset, dt, keys), self._version(publication)
        if before:
            location = _text(self.folders.uri(version))
            self.spark.sql(f"{self._alter(dataset)} PARTITION ({_spec(dt, keys)}) SET LOCATION {location}")
        else:
            self._add(dataset, dt, keys, version)
            self._add_what_is_published(dataset)
        self._keep(dataset, dt, keys, before, version)

    def _alter(self, dataset: str) -> str:
        return f"ALTER TABLE {self.database}.{dataset}"

    def _version(self, publication: Publication) -> str:
        """Link a publication's files into a new folder that never changes; returns the folder."""
        version = f"{self._versions(publication.dataset, publication.dt, publication.keys)}/{uuid.uuid4().hex}"
        self.folders.fs.makedirs(version)
        for path in self.folders.fs.ls(publication.folder, detail=False):
            self.folders.link(path, f"{version}/{path.rsplit('/', 1)[-1]}")
        return version

    def _add(self, dataset: str, dt: str, keys: Mapping[str, str], version: str) -> None:
        location = self.folders.uri(version)
        self.spark.sql(f"{self._alter(dataset)} ADD IF NOT EXISTS PARTITION ({_spec(dt, keys)}) LOCATION {_text(location)}")

    def _add_what_is_published(self, dataset: str) -> None:
        """Add the partitions of publications that were made without a catalog. Called whenever a partition is new."""
        rows = self.spark.sql(f"SHOW PARTITIONS {self.database}.{dataset}").collect()
        known = {row["partition"] for row in rows}
        for dt, keys in self.folders.publications(dataset):
            found = self.folders.look(dataset, dt, **keys)
            if found and found.name.removeprefix(f"{dataset}/") not in known:
                with suppress(FileNotFoundError):  # another run is replacing it, and adds it, or removes it
                    self._add(dataset, dt, keys, self._version(found))

    def keep_current(self, dataset: str, dt: str, keys: Mapping[str, str]) -> None:
        """Remove every version except the current one, even if it is being read."""
        if dataset in self.declared:
            self._keep(dataset, dt, keys, self.location(dataset, dt, keys))

    def _keep(self, dataset: str, dt: str, keys: Mapping[str, str], *kept: str | None) -> None:
        for version in self.versions(dataset, dt, keys):
            if version not in kept:
                self.folders.fs.rm(version, recursive=True)

    def location(self, dataset: str, dt: str, keys: Mapping[str, str]) -> str | None:
        """The folder that a partition is read from; None if the partition or the table does not exist."""
        try:
            rows = self.spark.sql(f"DESCRIBE FORMATTED {self.database}.{dataset} PARTITION ({_spec(dt, keys)})").collect()
        except AnalysisException:
            return None
        uri: str = next(row["data_type"] for row in rows if row["col_name"] == "Location")
        return f"{self._versions(dataset, dt, keys)}/{uri.rsplit('/', 1)[-1]}"

    def versions(self, dataset: str, dt: str, keys: Mapping[str, str]) -> list[str]:
        """The folders of all versions of a partition that still exist."""
        return self.folders.inside(self._versions(dataset, dt, keys).removeprefix(f"{self.folders.root}/"))

    def drop(self, dataset: str, dt: str) -> None:
        """Drop a day's partition from its table; the folders of its versions stay."""
        if self.spark.catalog.tableExists(f"{self.database}.{dataset}"):
            self.spark.sql(f"ALTER TABLE {self.database}.{dataset} DROP IF EXISTS PARTITION ({_spec(dt, {})})")

    def _versions(self, dataset: str, dt: str, keys: Mapping[str, str]) -> str:
        return self.folders.aside("_versions", dataset, dt, keys)

    def _require_table(self, dataset: str) -> None:
        self.spark.sql(f"CREATE DATABASE IF NOT EXISTS {self.database}")
        root = self.folders.uri(self.folders.root)
        self.spark.sql(create_table(dataset, self.features, self.database, root))
        name = f"{self.database}.{dataset}"
        schemas.enforce(self.spark.table(name), _with_keys(*self.declared[dataset]), name)


def _text(value: str) -> str:
    """A value as a string literal in Spark SQL."""
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _spec(dt: str, keys: Mapping[str, str]) -> str:
    return ", ".join(f"{key} = '{value}'" for key, value in {"dt": dt, **keys}.items())
