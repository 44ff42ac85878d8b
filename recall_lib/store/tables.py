"""The dated tables under `paths.root`, as one run reads and publishes them.

With `tables.database` each publication enters the catalog before its folder is swapped in (see catalog.py).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

from pyspark.sql import SparkSession

from recall_lib.config import Audits, Config
from recall_lib.process.errors import DataRefused
from recall_lib.store import locks
from recall_lib.store.catalog import Catalog
from recall_lib.store.datasets import DATASETS, other_settings
from recall_lib.store.folders import Folders
from recall_lib.store.publication import Publication, StartSpark
from recall_lib.store.publishing import Place, Staged, footer


def _no_spark() -> SparkSession:
    raise RuntimeError("this command reads no tables: it was given no way to start Spark")


class Tables(Folders):
    """The datasets of one root, as one run sees them."""

    def __init__(self, config: Config, run_id: str | None = None, start_spark: StartSpark = _no_spark) -> None:
        """`start_spark` is called when a table is first read or written; artefacts and manifests do not need Spark."""
        super().__init__(config.paths.root, start_spark)
        self.config = config
        self.run_id = run_id or uuid.uuid4().hex[:12]

    @cached_property
    def catalog(self) -> Catalog | None:
        """The catalog's tables in `tables.database`; None if that is not set."""
        database = self.config.tables.database
        return Catalog(self, database, self.config.features) if database else None

    def require_settings(self, dataset: str, dt: str, *only: str, **keys: str) -> Publication:
        """A publication that was made with the current settings.

        Args:
            dataset: its dataset.
            dt: its day.
            only: compare only these settings, in place of the `settings` in the dataset's declaration.
            keys: its further keys.

        Raises:
            DataRefused: it is not published, or was made with other settings.
        """
        found = self.get(dataset, dt, **keys)
        changed = other_settings(dataset, found.manifest["config"], self.config, only=only)
        if changed:
            raise DataRefused(
                f"{dataset}/dt={dt} was made with other settings in {', '.join(changed)}: restore the old values, or run "
                f"`recall {DATASETS[dataset].job_of(keys)} --dt {dt}` and the jobs after it with the new ones"
            )
        return found

    def publishing(
        self,
        dataset: str,
        dt: str | Sequence[str],
        *,
        inputs: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
        **keys: str | Sequence[str],
    ) -> AbstractContextManager[Staged]:
        """Publish what the block writes, once it ends without an error.

            with tables.publishing("popular", dt, inputs={"vocab": vocab.digest}) as staged:
                staged.write(frame, schemas.POPULAR)  # or staged.keep(files), or files put into staged.folder
            staged.publication

        The manifest of a table records the number of rows and a digest that does not depend on order or partitions. For other
        files the digest is the sha256 of the files' sha256 values.

        Args:
            dataset: the dataset.
            dt: the day; or several days, which are then published in one pass.
            inputs: the digest of each input, by name.
            facts: counts and other facts for the manifest.
            keys: further keys. One of them may have several values if dt has one.
        """
        return self._publishing(dataset, dt, keys, inputs or {}, facts or {}, self.config.audits)

    def _publishing(
        self,
        dataset: str,
        dt: str | Sequence[str],
        keys: Mapping[str, str | Sequence[str]],
        inputs: Mapping[str, str],
        facts: Mapping[str, Any],
        audits: Audits | None,
    ) -> AbstractContextManager[Staged]:
        given = {"dt": dt, **keys}
        several = {key: values for key, values in given.items() if not isinstance(values, str)}
        ((by, values),) = several.items() or [("", [""])]
        parts = {value: {key: str(one) for key, one in (given | ({by: value} if by else {})).items()} for value in values}
        catalog = self.catalog if DATASETS[dataset].columns else None
        place = Place(self, catalog, self.config, audits, self.run_id)
        return Staged(place, dataset, by, parts, inputs, facts).swapped_in()

    @contextmanager
    def amended(self, publication: Publication) -> Iterator[str]:
        """Republish a publication without some of its rows: the block edits a copy of its Parquet files in the given folder.

        For the tables made from it, it stays the same publication: digest, settings and time do not change. The manifest's
        `amended` records when rows were removed, and how many there were before. The block must write under new names only,
        because an existing file may be a hard link.
        """
        manifest = {key: fact for key, fact in publication.manifest.items() if key not in ("files", "row_groups")}
        with self._publishing(publication.dataset, publication.dt, publication.keys, {}, manifest, None) as staged:
            for file in publication.manifest["files"]:
                self.link(f"{publication.folder}/{file['name']}", f"{staged.path}/{file['name']}")
            yield staged.path
            at = datetime.now(UTC).isoformat(timespec="seconds")
            note = {"run_id": self.run_id, "at": at, "rows_before": manifest["rows"]}
            staged.facts["rows"] = sum(footer(self, path)["rows"] for path in self.fs.ls(staged.path, detail=False))
            staged.facts["amended"] = [*manifest.get("amended", ()), note]

    def drop_old_versions(self, publication: Publication) -> None:
        """Remove every version of a publication except the current one, even if it is being read."""
        dataset, dt, keys = publication.dataset, publication.dt, publication.keys
        if self.find(dataset, dt, **keys) == self.path(dataset, dt, **keys):
            self.remove(self.aside("_retired", dataset, dt, keys))
        if self.catalog:
            self.catalog.keep_current(dataset, dt, keys)

    def point_to_latest(self, dataset: str, dt: str, *, in_place_of: str | None = None, **facts: str) -> None:
        """Point `<dataset>/latest.json` to this day, unless it names a newer one (a backfill) other than `in_place_of`."""
        path = f"{self.root}/{dataset}/latest.json"
        with locks.held(self.config.paths.root, f"{dataset}-latest", self.run_id, wait_s=60):  # from the read to the move
            now = (self.latest(dataset) or {"dt": ""})["dt"]
            if now > dt and now != in_place_of:
                return
            self.write_json(path, {"dt": dt, **facts})
