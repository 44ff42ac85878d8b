"""How publications are made: written under `_staging`, digested, audited, and swapped in by two renames."""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from pyspark.sql import DataFrame, Row
from pyspark.sql.types import StringType, StructField, StructType

from recall_lib import __version__
from recall_lib.config import Audits, Config
from recall_lib.store import locks
from recall_lib.store.audits import audit
from recall_lib.store.catalog import Catalog
from recall_lib.store.digests import EMPTY_DIGEST, content_digests
from recall_lib.store.folders import MANIFEST, Folders
from recall_lib.store.publication import Publication
from recall_lib.store.schemas import enforce


@dataclass(frozen=True)
class Place:
    """Where a run publishes.

    Attributes:
        folders: the root's folders.
        catalog: gets each publication before its folder is swapped in; None without `tables.database`.
        config: recorded in the manifests.
        audits: thresholds; None: nothing is audited.
        run_id: the run's id.
    """

    folders: Folders
    catalog: Catalog | None
    config: Config
    audits: Audits | None
    run_id: str


class Staged:
    """Publications that are being made in one pass.

    Attributes:
        inputs: the digest of each input, by name; the block may add to it.
        facts: counts and other facts for the manifests. They override values recorded by default. The block may add to them.
        folder: a local folder for files that are not tables; files put into it are published.
        published: the publications, once the block has ended.
    """

    def __init__(
        self,
        place: Place,
        dataset: str,
        by: str,
        parts: Mapping[str, dict[str, str]],
        inputs: Mapping[str, str],
        facts: Mapping[str, Any],
    ) -> None:
        """No folder is made yet.

        Args:
            place: where they will be published.
            dataset: the dataset of all of them.
            by: the key in which they differ (dt or a further key); "" if there is only one.
            parts: dt and further keys of each publication, by its value of `by`.
            inputs: see the class.
            facts: see the class.
        """
        self.inputs, self.facts = dict(inputs), dict(facts)
        self.published: list[Publication] = []
        self._place, self._folders, self._dataset = place, place.folders, dataset
        self._by, self._parts = by, parts
        same = {key: value for part in parts.values() for key, value in part.items() if key != by}
        self.path = self._folders.aside("_staging", f"{place.run_id}-{dataset}", same.pop("dt", "all"), same)
        self._contents: dict[str, tuple[int, str]] | None = None
        self._started = time.monotonic()

    @property
    def publication(self) -> Publication:
        """The only publication; ValueError if there are several."""
        (only,) = self.published
        return only

    @property
    def address(self) -> str:
        """The folder in which tasks write files; with several publications, each has a folder `<key>=<value>` in it."""
        return self._folders.uri(self.path)

    def write(self, frame: DataFrame, schema: StructType) -> None:
        """Publish the rows of a frame; its partitions become the files.

        Args:
            frame: the rows; with several publications it also has the column in which they differ.
            schema: of the table, without that column.
        """
        writer = enforce(frame, self._columns(schema), self._dataset).write.mode("overwrite")
        (writer.partitionBy(self._by) if self._by else writer).parquet(self.address)
        self._digest(schema)

    def keep(self, written: Iterable[Row], schema: StructType) -> None:
        """Publish the files that tasks have written below `address`.

        Args:
            written: the collected rows of writing.WRITTEN; files in other folders are ignored.
            schema: of the files.
        """
        kept = {address for (address,) in written}
        for path in self._folders.fs.find(self.path):
            if self._folders.uri(path) not in kept:  # from a task attempt that Spark does not count
                self._folders.fs.rm(path)
        self._digest(schema)

    def _columns(self, schema: StructType) -> StructType:
        return StructType([*schema, StructField(self._by, StringType())]) if self._by else schema

    def _digest(self, schema: StructType) -> None:
        written = self._folders.start_spark().read.schema(self._columns(schema)).parquet(self.address)
        self._contents = content_digests(written, self._by or None)

    def _part(self, value: str) -> str:
        return f"{self.path}/{self._by}={value}" if self._by else self.path

    def _make_folders(self) -> None:
        for value in self._parts:
            self._folders.fs.makedirs(self._part(value), exist_ok=True)

    @contextmanager
    def swapped_in(self) -> Iterator[Staged]:
        """Publish what the block has written if it ends without an error; remove the staging folders in any case."""
        self._make_folders()
        try:
            with tempfile.TemporaryDirectory(prefix="recall-") as folder:
                self.folder = Path(folder)
                yield self
                self._make_folders()  # Spark makes none for a part without rows; gc may have removed one that stayed empty
                for file in sorted(self.folder.iterdir()):
                    self._folders.fs.put_file(str(file), f"{self.path}/{file.name}")
            # All are digested and audited before the first is swapped in.
            for candidate in [self._candidate(value) for value in self._parts]:
                self.published.append(_swap_in(candidate, self._place))
        finally:
            with suppress(OSError):  # a task that Spark gave up on wrote one more file meanwhile: remove again
                self._folders.remove(self.path)
            self._folders.remove(self.path)

    def _candidate(self, value: str) -> Publication:
        """The publication in a staged folder, audited."""
        keys, folder = dict(self._parts[value]), self._part(value)
        dt = keys.pop("dt")
        files = _files(self._folders, folder)
        if self._contents is None:
            content: dict[str, Any] = {"digest": hashlib.sha256("".join(file["sha256"] for file in files).encode()).hexdigest()}
        else:
            rows, digest = self._contents.get(value, (0, EMPTY_DIGEST))
            content = {"rows": rows, "digest": digest}
        row_groups = sum(len(file.get("row_groups", ())) for file in files)
        manifest = {
            "dataset": self._dataset,
            "dt": dt,
            **keys,
            **content,
            "config": self._place.config.model_dump(mode="json"),
            "versions": {"recall": __version__, "python": platform.python_version()},
            "run_id": self._place.run_id,
            "published_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._started, 3),
            "inputs": self.inputs,
            **self.facts,
            "files": files,
            **({"row_groups": row_groups} if row_groups else {}),
        }
        found = Publication(self._dataset, dt, keys, folder, self._folders.uri(folder), manifest, self._folders.start_spark)
        results = audit(found, self._before, self._place.audits) if self._place.audits else {}
        return replace(found, manifest=manifest | ({"audits": results} if results else {}))

    def _before(self, found: Publication) -> Publication | None:
        """The publication of the last published day before this one's."""
        earlier = [day for day in self._folders.days(found.dataset) if day < found.dt]
        return self._folders.look(found.dataset, earlier[-1], **found.keys) if earlier else None


def _swap_in(candidate: Publication, place: Place) -> Publication:
    """Publish a staged publication, in place of the one that is published now."""
    folders, dataset, dt, keys = place.folders, candidate.dataset, candidate.dt, candidate.keys
    text = json.dumps(candidate.manifest, indent=1, sort_keys=True)
    folders.fs.pipe_file(f"{candidate.folder}/{MANIFEST}", text.encode())
    locks.require_kept()
    if place.catalog:
        place.catalog.swap_in(candidate)  # before the folder, so that a day with a manifest is also in the catalog
    target, retired = folders.path(dataset, dt, **keys), folders.aside("_retired", dataset, dt, keys)
    folders.fs.makedirs(target.rsplit("/", 1)[0], exist_ok=True)
    if folders.fs.exists(f"{target}/{MANIFEST}"):
        folders.remove(retired)
        folders.fs.makedirs(retired.rsplit("/", 1)[0], exist_ok=True)
        folders.fs.mv(target, retired, recursive=True)
    folders.remove(target)  # a folder without a manifest was never published
    folders.fs.mv(candidate.folder, target, recursive=True)
    with suppress(OSError):  # it is published; files that a reader on NFS has open stay until the next publication or gc
        folders.remove(retired)
    return replace(candidate, folder=target, uri=folders.uri(target))


def _files(folders: Folders, folder: str) -> list[dict[str, Any]]:
    """The files of a staged folder, for its manifest; files that Hadoop added are removed."""
    files = []
    for path in sorted(folders.fs.ls(folder, detail=False)):
        name = path.rsplit("/", 1)[-1]
        if name.startswith((".", "_")):  # Hadoop's checksums and _SUCCESS, which the manifest replaces
            folders.fs.rm(path)
            continue
        with folders.fs.open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        files.append({"name": name, "bytes": folders.fs.size(path), "sha256": sha256, **footer(folders, path)})
    return files


def footer(folders: Folders, path: str) -> dict[str, Any]:
    """Rows, rows per row group and values per list column of a Parquet file: training plans its steps from these.

    {} for other files.
    """
    if not path.endswith(".parquet"):
        return {}
    with folders.fs.open(path, "rb") as file:
        meta = pq.read_metadata(file)
    groups = [meta.row_group(i) for i in range(meta.num_row_groups)]
    leaves = [group.column(j) for group in groups for j in range(group.num_columns)]
    values: dict[str, int] = {}
    for leaf in leaves:
        name, *nested = leaf.path_in_schema.split(".")
        if nested:
            values[name] = values.get(name, 0) + leaf.num_values
    return {"rows": meta.num_rows, "row_groups": [group.num_rows for group in groups], "values": values}
