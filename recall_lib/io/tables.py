"""The dated tables under `paths.root`: where they lie, how they are read, how they are published whole.

A dataset's day is one folder, `<root>/<dataset>/dt=<day>[/<key>=<value>]`, of Parquet or artefact files and a
`_manifest.json`, which names the files with their sha256, rows, content digest, inputs and settings, and is the truth of
success. A publication is written aside under `_staging`, audited, and swapped in by two renames; a reader that comes
between them finds the old version under `_retired`. With `tables.database` the catalog is told first (see catalog.py).
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import Column, DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, StringType, StructField, StructType

from recall_lib import __version__
from recall_lib.config import Config
from recall_lib.datasets import DATASETS, other_settings
from recall_lib.errors import DataRefused
from recall_lib.io import audits, locks
from recall_lib.io.addresses import resolve
from recall_lib.io.catalog import Catalog
from recall_lib.schemas import enforce

MANIFEST = "_manifest.json"
_ASIDE = re.compile(r"(?P<dataset>\w+)-dt=(?P<dt>\d{4}-\d\d-\d\d)(?:-(?P<key>\w+)=(?P<value>\w+))?")


class Tables:
    """The datasets of one root, seen by one run."""

    def __init__(self, config: Config, run_id: str | None = None, spark: SparkSession | None = None) -> None:
        """`spark` may be left out by commands that read artefacts and manifests only."""
        self.config = config
        self.run_id = run_id or uuid.uuid4().hex[:12]
        self.spark = spark
        self.fs, self.root, self._prefix = resolve(config.paths.root)
        self.local = self._prefix == "file://"

    @cached_property
    def catalog(self) -> Catalog | None:
        """The tables of `tables.database`; None where none is asked for."""
        database = self.config.tables.database
        return Catalog(self, database) if database and self.spark else None

    # -- where ---------------------------------------------------------------------------------------------------------
    def path(self, dataset: str, dt: str, **keys: str) -> str:
        """The folder of one publication, as the file system names it."""
        return "/".join([self.root, dataset, f"dt={dt}", *(f"{key}={value}" for key, value in keys.items())])

    def uri(self, path: str) -> str:
        """The same path as Spark names it."""
        return self._prefix + path

    def aside(self, area: str, dataset: str, dt: str, keys: Mapping[str, str]) -> str:
        """The folder of a publication in `_staging`, `_retired` or `_versions`."""
        name = "-".join([dataset, f"dt={dt}", *(f"{key}={value}" for key, value in keys.items())])
        return f"{self.root}/{area}/{name}"

    def find(self, dataset: str, dt: str, **keys: str) -> str | None:
        """The folder that holds the published version now, or None."""
        target = self.path(dataset, dt, **keys)
        # The first is looked at twice: between the two looks a publication may have come to its end.
        for folder in (target, self.aside("_retired", dataset, dt, keys), target):
            if self.fs.exists(f"{folder}/{MANIFEST}"):
                return folder
        return None

    def days(self, dataset: str) -> list[str]:
        """The published days of a dataset without further keys, ascending."""
        return [day for day in self.days_with_folders(dataset) if self.find(dataset, day)]

    def days_with_folders(self, dataset: str) -> list[str]:
        """The days of which a dataset has anything, published or not, ascending."""
        names = [path.rsplit("/", 1)[-1] for path in self.inside(dataset)]
        days = {name.removeprefix("dt=") for name in names if name.startswith("dt=")}
        # A day can be there alone, between a publication's renames or where a run died between them.
        return sorted(days | {dt for name, dt, _ in map(named_aside, self.inside("_retired")) if name == dataset})

    def inside(self, area: str) -> list[str]:
        """The paths directly below a folder of the root, ascending; none if it is not there."""
        try:
            return sorted(path.rstrip("/") for path in self.fs.ls(f"{self.root}/{area}", detail=False))
        except FileNotFoundError:
            return []

    def publications(self, dataset: str) -> list[tuple[str, dict[str, str]]]:
        """(dt, further keys) of all that is published of a dataset, ascending."""
        folder = f"{self.root}/{dataset}"
        paths = self.fs.find(folder) if self.fs.isdir(folder) else []
        places = [path[len(folder) + 1 :].split("/")[:-1] for path in paths if path.endswith(f"/{MANIFEST}")]
        found = [dict(part.split("=", 1) for part in place) for place in places]
        published = [(keys.pop("dt"), keys) for keys in found]
        for name, dt, keys in map(named_aside, self.inside("_retired")):  # as in days_with_folders
            if name == dataset and (dt, keys) not in published:
                published.append((dt, keys))
        return sorted(published, key=str)

    # -- read ----------------------------------------------------------------------------------------------------------
    def folder(self, dataset: str, dt: str, **keys: str) -> str:
        """The folder of a publication that must be there.

        Raises:
            DataRefused: it is not published.
        """
        folder = self.find(dataset, dt, **keys)
        if folder is None:
            what = "/".join([dataset, f"dt={dt}", *(f"{key}={value}" for key, value in keys.items())])
            raise DataRefused(f"{what} is not published under {self.root}: run `recall {DATASETS[dataset].job} --dt {dt}`")
        return folder

    def files(self, dataset: str, dt: str, **keys: str) -> tuple[str, ...]:
        """The URIs of a publication's files (DataRefused if it is not there)."""
        folder = self.folder(dataset, dt, **keys)
        return tuple(self.uri(f"{folder}/{file['name']}") for file in self.read_json(f"{folder}/{MANIFEST}")["files"])

    def manifest(self, dataset: str, dt: str, **keys: str) -> dict[str, Any]:
        """The manifest of a publication (DataRefused if it is not there)."""
        while True:
            folder = self.folder(dataset, dt, **keys)
            with suppress(FileNotFoundError):  # replaced between the look and the read: it is looked for anew
                return self.read_json(f"{folder}/{MANIFEST}")

    def require_settings(self, dataset: str, dt: str, *only: str, **keys: str) -> dict[str, Any]:
        """The manifest of a publication that was made with the settings of now.

        Args:
            dataset: of it.
            dt: of it.
            only: the settings that count, in place of all that the dataset's declaration names.
            keys: of it.

        Raises:
            DataRefused: it is not there, or was made with others.
        """
        manifest = self.manifest(dataset, dt, **keys)
        changed = other_settings(dataset, manifest["config"], self.config, only=only)
        if changed:
            raise DataRefused(
                f"{dataset}/dt={dt} was made with other settings in {', '.join(changed)}: take those again, or run "
                f"`recall {DATASETS[dataset].job} --dt {dt}` and what follows it with these"
            )
        return manifest

    def read_json(self, path: str) -> dict[str, Any]:
        """A JSON object."""
        loaded: dict[str, Any] = json.loads(self.fs.cat_file(path))
        return loaded

    def read(self, dataset: str, dt: str, schema: StructType, **keys: str) -> DataFrame:
        """One publication, without its dt column."""
        return self._read([self.folder(dataset, dt, **keys)], schema, dataset)

    def read_days(self, dataset: str, days: list[str], schema: StructType) -> DataFrame:
        """Several days of a dataset, without their dt column; no day gives an empty frame."""
        return self._read([self.folder(dataset, day) for day in days], schema, dataset)

    def _read(self, folders: list[str], schema: StructType, name: str) -> DataFrame:
        assert self.spark is not None, "reading a table needs a Spark session"
        files = [f"{folder}/{file['name']}" for folder in folders for file in self.read_json(f"{folder}/{MANIFEST}")["files"]]
        if not files:
            return self.spark.createDataFrame([], schema)
        frame = self.spark.read.option("mergeSchema", "false").parquet(*map(self.uri, files))
        return enforce(frame, schema, name)

    # -- publish -------------------------------------------------------------------------------------------------------
    def publish(
        self,
        frame: DataFrame | Callable[[str], DataFrame],
        schema: StructType,
        dataset: str,
        dt: str,
        *,
        inputs: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
        **keys: str,
    ) -> dict[str, Any]:
        """Write a frame as one publication; its manifest gets rows and a digest that knows no order and no partitions.

        Args:
            frame: fits `schema`; its partitions become the files. Or, where executors write themselves: given the address of a
                folder, a frame whose tasks write files there and name them (writing.WRITTEN).
            inputs: digest of each publication it was made from, by name.
            facts: counts and other facts for the manifest.

        Returns:
            The manifest.
        """
        with self._staged(dataset, dt, keys) as staging:
            if isinstance(frame, DataFrame):
                enforce(frame, schema, dataset).write.mode("overwrite").parquet(self.uri(staging))
            else:
                self._write(frame, staging)
            assert self.spark is not None
            written = self.spark.read.schema(schema).parquet(self.uri(staging))
            rows, digest = content_digests(written).get("", (0, EMPTY_DIGEST))
            found = {"rows": rows, "digest": digest, "inputs": dict(inputs or {}), **(facts or {})}
            return self._swap_in(staging, dataset, dt, keys, self._audited(staging, dataset, dt, found))

    def publish_days(
        self, frame: DataFrame, schema: StructType, dataset: str, days: list[str], *, facts: Mapping[str, Any] | None = None
    ) -> None:
        """Write a frame with a `dt` column as one publication per listed day, in one pass; a day without rows is empty.

        All days are written, digested and audited before the first is swapped in.
        """
        frame = enforce(frame, StructType([*schema, StructField("dt", StringType())]), dataset)
        with self._staged(dataset, "days", {}) as staging:
            frame.write.mode("overwrite").partitionBy("dt").parquet(self.uri(staging))
            contents = self._contents(staging, schema, "dt")
            audited = {}
            for day in days:
                folder, found = f"{staging}/dt={day}", _described(contents.get(day), {"inputs": {}, **(facts or {})})
                self.fs.makedirs(folder, exist_ok=True)
                audited[day] = self._audited(folder, dataset, day, found)
            for day, found in audited.items():
                self._swap_in(f"{staging}/dt={day}", dataset, day, {}, found)

    def publish_splits(
        self,
        write: Callable[[str], DataFrame],
        schema: StructType,
        dataset: str,
        dt: str,
        splits: list[str],
        *,
        inputs: Mapping[str, str],
        facts: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Publish what executors write themselves, a publication per listed split.

        Args:
            write: as `frame` of `publish`.
            schema: of the files.
            inputs: digest of each publication it was made from, by name.
            facts: further ones for the manifest of every split.

        Returns:
            The manifest of each split.
        """
        with self._staged(dataset, dt, {}) as staging:
            for split in splits:
                self.fs.makedirs(f"{staging}/split={split}")
            self._write(write, staging)
            contents = self._contents(staging, schema, "split")
            return [
                self._swap_in(
                    f"{staging}/split={split}",
                    dataset,
                    dt,
                    {"split": split},
                    _described(contents.get(split), {"inputs": dict(inputs), **(facts or {})}),
                )
                for split in splits
            ]

    def _write(self, write: Callable[[str], DataFrame], staging: str) -> None:
        written = {f"{staging}/{path}" for (path,) in write(self.uri(staging)).collect()}
        for path in self.fs.find(staging):
            if path not in written:  # of an attempt that failed or came second
                self.fs.rm(path)

    def _contents(self, folder: str, schema: StructType, by: str) -> dict[str, tuple[int, str]]:
        assert self.spark is not None
        columns = StructType([*schema, StructField(by, StringType())])
        return content_digests(self.spark.read.schema(columns).parquet(self.uri(folder)), by)

    @contextmanager
    def publish_files(
        self,
        dataset: str,
        dt: str,
        *,
        inputs: Mapping[str, str] | None = None,
        facts: dict[str, Any] | None = None,
        **keys: str,
    ) -> Iterator[Path]:
        """A local folder to fill with artefact files; they are published when the block ends without an error.

        `facts` is read at the end, so that the block may add to it; the digest is the sha256 of the files' sha256.
        """
        import tempfile

        with self._staged(dataset, dt, keys) as staging, tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
            self.fs.makedirs(staging, exist_ok=True)  # it stood empty for as long as the block took: gc may have been there
            for file in sorted(Path(folder).iterdir()):
                self.fs.put_file(str(file), f"{staging}/{file.name}")
            found = {"inputs": dict(inputs or {}), **(facts or {})}
            self._swap_in(staging, dataset, dt, keys, self._audited(staging, dataset, dt, found))

    @contextmanager
    def amended(self, dataset: str, dt: str, **keys: str) -> Iterator[str]:
        """A second copy of a publication's Parquet files, whose rows may be made fewer; it takes the first one's place.

        To what was made from it, it is the same publication: digest, settings and time stay, and the manifest's `amended` says
        when it was changed and by how many rows. The block must write under new names only: an old one may be a hard link.
        """
        folder = self.folder(dataset, dt, **keys)
        manifest = self.read_json(f"{folder}/{MANIFEST}")
        with self._staged(dataset, dt, keys) as staging:
            for file in manifest.pop("files"):
                self.link(f"{folder}/{file['name']}", f"{staging}/{file['name']}")
            yield staging
            manifest.pop("row_groups", None)
            rows = sum(self._footer(path)["rows"] for path in self.fs.ls(staging, detail=False))
            note = {
                "run_id": self.run_id,
                "at": datetime.now(UTC).isoformat(timespec="seconds"),
                "rows_before": manifest["rows"],
            }
            notes = [*manifest.get("amended", ()), note]
            self._swap_in(staging, dataset, dt, keys, manifest | {"rows": rows, "amended": notes})

    def drop_old_versions(self, dataset: str, dt: str, **keys: str) -> None:
        """Remove every version of a publication but the current one, whoever may be reading it."""
        if self.fs.exists(f"{self.path(dataset, dt, **keys)}/{MANIFEST}"):
            self._remove(self.aside("_retired", dataset, dt, keys))
        if self.catalog:
            self.catalog.keep_current(dataset, dt, keys)

    def link(self, source: str, target: str) -> None:
        """Give a file a second name: a hard link where the file system has such, else a copy."""
        getattr(self.fs, "link", self.fs.cp_file)(source, target)

    @contextmanager
    def _staged(self, dataset: str, dt: str, keys: Mapping[str, str]) -> Iterator[str]:
        staging = self.aside("_staging", f"{self.run_id}-{dataset}", dt, keys)
        self.started = time.monotonic()
        self.fs.makedirs(staging, exist_ok=True)
        try:
            yield staging
        finally:
            with suppress(OSError):  # a task that Spark has given up put one more file there
                self._remove(staging)
            self._remove(staging)

    def _audited(self, folder: str, dataset: str, dt: str, facts: dict[str, Any]) -> dict[str, Any]:
        """The facts of a staged publication with the results of its audits (DataRefused if one fails)."""
        results = audits.audit(self, folder, dataset, dt, facts)
        return {**facts, "audits": results} if results else facts

    def _swap_in(
        self, staging: str, dataset: str, dt: str, keys: Mapping[str, str], facts: Mapping[str, Any]
    ) -> dict[str, Any]:
        files = []
        for path in sorted(self.fs.ls(staging, detail=False)):
            name = path.rsplit("/", 1)[-1]
            if name.startswith((".", "_")):  # Hadoop's checksums and _SUCCESS: the manifest has both
                self.fs.rm(path)
            else:
                files.append({"name": name, "bytes": self.fs.size(path), "sha256": self._sha256(path), **self._footer(path)})
        row_groups = sum(len(file.get("row_groups", ())) for file in files)
        manifest: dict[str, Any] = {
            "dataset": dataset,
            "dt": dt,
            **keys,
            "digest": hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest(),
            "config": self.config.model_dump(mode="json"),
            "versions": {"recall": __version__, "python": platform.python_version()},
            "run_id": self.run_id,
            "published_at": _now(),
            "seconds": round(time.monotonic() - self.started, 3),
            **facts,
            "files": files,
            **({"row_groups": row_groups} if row_groups else {}),
        }
        self.fs.pipe_file(f"{staging}/{MANIFEST}", json.dumps(manifest, indent=1, sort_keys=True).encode())
        locks.require_kept()
        if self.catalog and dataset in self.catalog.declared:
            self.catalog.swap_in(dataset, dt, keys, staging)  # before the folder: a day with a manifest is published everywhere
        target, retired = self.path(dataset, dt, **keys), self.aside("_retired", dataset, dt, keys)
        self.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
        if self.fs.exists(f"{target}/{MANIFEST}"):
            self._remove(retired)
            self.fs.makedirs(retired.rsplit("/", 1)[0], exist_ok=True)
            self.fs.mv(target, retired, recursive=True)
        self._remove(target)  # a folder without a manifest was never published
        self.fs.mv(staging, target, recursive=True)
        with suppress(OSError):  # it is published; what a reader on NFS has open stays until the next publication or gc
            self._remove(retired)
        return manifest

    def _footer(self, path: str) -> dict[str, Any]:
        """Rows a row group, and values a list column, of a Parquet file: what training plans its steps from."""
        if not path.endswith(".parquet"):
            return {}
        with self.fs.open(path, "rb") as file:
            meta = pq.read_metadata(file)
        groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
        leaves = [group.column(j) for group in groups for j in range(group.num_columns)]
        values: dict[str, int] = {}
        for leaf in leaves:
            name, *nested = leaf.path_in_schema.split(".")
            if nested:
                values[name] = values.get(name, 0) + leaf.num_values
        return {"rows": meta.num_rows, "row_groups": [group.num_rows for group in groups], "values": values}

    def point_to_latest(self, dataset: str, dt: str, *, in_place_of: str | None = None, **facts: str) -> None:
        """Move `<dataset>/latest.json` to this day, never back to an older one (a backfill), unless it names `in_place_of`."""
        path = f"{self.root}/{dataset}/latest.json"
        with locks.held(self.config.paths.root, f"{dataset}-latest", self.run_id, wait_s=60):  # from the look to the move
            now = self.read_json(path)["dt"] if self.fs.exists(path) else ""
            if now > dt and now != in_place_of:
                return
            self.fs.pipe_file(f"{path}.tmp", json.dumps({"dt": dt, **facts}).encode())
            self.fs.mv(f"{path}.tmp", path)

    def _remove(self, folder: str) -> None:
        if self.fs.exists(folder):
            with suppress(FileNotFoundError):  # gc came first
                self.fs.rm(folder, recursive=True)

    def _sha256(self, path: str) -> str:
        with self.fs.open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()


def content_digests(frame: DataFrame, by: str | None = None) -> dict[str, tuple[int, str]]:
    """(rows, digest) per value of column `by`: equal for equal rows in any order and any number of partitions or files.

    Without `by` the whole frame is one group named "".
    """
    key = F.col(by) if by else F.lit("")
    # A hash skips nulls and does not tell where a list ends: both are hashed too.
    columns: list[Column] = []
    for field in frame.schema:
        if field.name != by:
            column = F.col(f"`{field.name}`")
            columns += [column, F.size(column) if isinstance(field.dataType, ArrayType) else column.isNull()]
    sums = [F.sum(F.xxhash64(F.lit(salt), *columns).cast("decimal(38,0)")).cast("string") for salt in (1, 2)]
    rows = frame.groupBy(key.alias("key")).agg(F.count(F.lit(1)), *sums).collect()
    return {key: (count, _digest(count, *totals)) for key, count, *totals in rows}


def named_aside(path: str) -> tuple[str, str, dict[str, str]]:
    """(dataset, dt, keys) by the name of a folder of `Tables.aside`, or of a checkpoint."""
    name = _ASIDE.match(path.rstrip("/").rsplit("/", 1)[-1])
    assert name, f"no publication has the name {path}"
    return name["dataset"], name["dt"], {name["key"]: name["value"]} if name["key"] else {}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _described(contents: tuple[int, str] | None, facts: Mapping[str, Any]) -> dict[str, Any]:
    rows, digest = contents or (0, EMPTY_DIGEST)
    return {"rows": rows, "digest": digest, **facts}


def _digest(rows: int, *sums: str | None) -> str:
    return hashlib.sha256(json.dumps([rows, *sums]).encode()).hexdigest()


EMPTY_DIGEST = _digest(0, None, None)
