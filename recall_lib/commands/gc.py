"""Remove what is no longer needed: days past `retention`, and files of runs that died.

    recall gc --config conf/mine.yaml --dry-run

It never removes a day that `retention` keeps, the day that models/latest.json names, a day whose
model serves a kept day, or files that a run may be writing. While any run is active it keeps all
events, because the run may be reading them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from recall_lib.config import load_config
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command
from recall_lib.process.errors import Busy, UsageError
from recall_lib.spark.session import start
from recall_lib.store import locks
from recall_lib.store.datasets import DATASETS
from recall_lib.store.folders import MANIFEST, named_aside
from recall_lib.store.serving import serving_day
from recall_lib.store.tables import Tables

# A staging folder in which nothing has changed for so long is of a run that died, if its run holds no lock.
DEAD_AFTER = timedelta(hours=1)


@dataclass(frozen=True)
class Garbage:
    """A folder or file below the root that can go.

    Attributes:
        path: of it.
        why: for people.
        locks: those that keep runs from it meanwhile.
        day: (table, dt) if it is all of a day, which leaves the catalog too.
    """

    path: str
    why: str
    locks: tuple[str, ...] = ()
    day: tuple[str, str] | None = None


def main(argv: Sequence[str] | None = None) -> int:
    """`recall gc --config F [--keep-days N] [--dry-run]`."""
    options = parser("gc", __doc__, "--config")
    options.add_argument("--keep-days", type=int, metavar="N", help="keep each table's N newest days; overrides `retention`")
    options.add_argument("--dry-run", action="store_true", help="show what would be removed, and remove nothing")

    def collect(args: argparse.Namespace) -> None:
        if args.keep_days is not None and args.keep_days < 1:
            raise UsageError("--keep-days must be at least 1: the newest day is what the next one is made from")
        config = load_config(args.config, args.overrides)
        tables = Tables(config, start_spark=lambda: start(config.spark, "recall gc"))
        found = list(garbage(tables, args.keep_days))
        verb = "would remove" if args.dry_run else "removes"
        for item in found:
            messages.say("gc", f"{verb} {item.path.removeprefix(tables.root + '/')}: {item.why}")
            if not args.dry_run:
                try:
                    remove(tables, item)
                except Busy as error:
                    messages.say("gc", f"leaves it: {error}")
        if not found:
            messages.say("gc", "nothing to remove")

    return run_command(options, collect, argv)


def garbage(tables: Tables, keep_days: int | None = None) -> Iterator[Garbage]:
    """What can go now; `keep_days` takes the place of every setting of `retention`."""
    fs = tables.fs
    at_work = locks.holders(tables.config.paths.root)
    alive = {owner.run_id for owner in at_work.values()}
    for folder in tables.inside("_staging"):
        if folder.rsplit("/", 1)[-1].split("-")[0] not in alive and _quiet_for(tables, folder) > DEAD_AFTER:
            yield Garbage(folder, "of a run that died")
    expired = {
        (dataset, dt)
        for dataset, dt in _expired(tables, keep_days)
        if not (at_work if _of_events(dataset) else f"dt={dt}" in at_work)
    }
    # Before the days: what is left of one by a kill must not come back from here.
    for folder in tables.inside("_retired"):
        dataset, dt, keys = named_aside(folder)
        if fs.exists(f"{tables.path(dataset, dt, **keys)}/{MANIFEST}") or (dataset, dt) in expired:  # else readers are given it
            yield Garbage(folder, "an old version, left behind", _locks_of(dataset, dt))
    for dataset, dt in sorted(expired):
        newest = keep_days or getattr(tables.config.retention, DATASETS[dataset].retention)
        yield Garbage(tables.path(dataset, dt), f"past the {newest} newest days", _locks_of(dataset, dt), (dataset, dt))
    for folder in tables.inside("_versions"):
        yield from _old_versions(tables, folder, expired)
    kept = keep_days or tables.config.retention.models_days
    for file in tables.inside("_checkpoints"):
        dataset, dt, _ = named_aside(file)
        model = tables.find(dataset, dt)
        if model and fs.modified(f"{model}/{MANIFEST}") > fs.modified(file):
            yield Garbage(file, "the model is published", _locks_of(dataset, dt))
        elif not model and kept and len([day for day in tables.days(dataset) if day > dt]) >= kept:
            yield Garbage(file, f"past the {kept} newest days", _locks_of(dataset, dt))


def remove(tables: Tables, item: Garbage) -> None:
    """Remove a folder or file; manifests first, so that what is left by a kill counts as unpublished.

    Raises:
        Busy: a run has one of its locks.
    """
    with ExitStack() as held:
        for name in item.locks:
            held.enter_context(locks.held(tables.config.paths.root, name, tables.run_id))
        if item.day and _of_events(item.day[0]):
            locks.require_no_other_day(tables.config.paths.root, tables.run_id)
        with suppress(FileNotFoundError):  # whose it was, or another gc, came first
            for manifest in [name for name in tables.fs.find(item.path) if name.endswith(f"/{MANIFEST}")]:
                tables.fs.rm_file(manifest)
            if item.day and tables.catalog:  # after the manifests: what has one is taken into the catalog again
                tables.catalog.drop(*item.day)
            tables.fs.rm(item.path, recursive=True)


def _of_events(dataset: str) -> bool:
    return DATASETS[dataset].retention == "events_days"


def _locks_of(dataset: str, dt: str) -> tuple[str, ...]:
    return ("events", f"dt={dt}") if _of_events(dataset) else (f"dt={dt}",)


def _old_versions(tables: Tables, folder: str, expired: set[tuple[str, str]]) -> Iterator[Garbage]:
    """What the catalog has turned away from so long ago that no reader is at it any more."""
    dataset, dt, keys = named_aside(folder)
    if (dataset, dt) in expired:
        yield Garbage(folder, "of a day that goes")
    elif tables.catalog:
        current = tables.catalog.location(dataset, dt, keys)
        for version in tables.catalog.versions(dataset, dt, keys):
            # Long after the current one came; and not one that is about to follow it.
            if version != current and all(_quiet_for(tables, folder) > DEAD_AFTER for folder in {version, current or version}):
                yield Garbage(version, "an old version in the catalog")


def _expired(tables: Tables, keep_days: int | None) -> Iterator[tuple[str, str]]:
    latest = tables.latest("models")
    in_use = {latest["dt"]} if latest else set()
    kept = keep_days or tables.config.retention.tables_days or 0
    models = [tables.get("models", day) for day in tables.days("models")[-kept:]]
    in_use |= {serving_day(model) for model in models if serving_day(model) != model.dt}
    for row in DATASETS.values():
        keep = keep_days or getattr(tables.config.retention, row.retention)
        days = tables.days_with_folders(row.name)
        yield from ((row.name, dt) for dt in days[: -keep if keep else 0] if dt not in in_use)


def _quiet_for(tables: Tables, folder: str) -> timedelta:
    """How long nothing has changed in a folder."""
    try:
        return datetime.now(UTC) - max(map(tables.fs.modified, [folder, *tables.fs.find(folder)]))
    except FileNotFoundError:  # somebody is at work in it
        return timedelta(0)


if __name__ == "__main__":
    sys.exit(main())
