"""Vocabulary and samples are a function of the log's rows and the settings, whatever Spark does with them (SPEC 3.9)."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import jobs.events
from recall_lib.config import Config
from recall_lib.day.context import Context
from recall_lib.samples.build import SPLITS, TRAIN, VALIDATION
from recall_lib.store.folders import MANIFEST
from tests.conftest import Cluster

DT = "2024-01-03"
FIRST_SECOND = 1_704_067_200  # 2024-01-01 00:00 UTC
HOUR, HOURS = 3_600, 75
HEADER = "user_id,article_id,expo_time,click,city,phone,tags,labels"
ITEMS = 40
CLICKS_OF_USERS = [1_300, *[1, 2, 3, 12, 40] * 30]  # the first user's are several runs
# Between the two configs: features with a vocabulary and hashed ones, of users and items, single- and multi-valued.
FEATURES_OF_ROWS = {
    "item_id": {"min_count": 2},
    "user": [{"name": "city", "min_count": 2}, {"name": "phone", "buckets": 5}],
    "item": [{"name": "tags", "min_count": 2, "multi": True}, {"name": "labels", "buckets": 7, "multi": True}],
}
FEATURES_OF_SESSIONS = {
    "item_id": {"min_count": 2},
    "user": [{"name": "user_id", "min_count": 9}, {"name": "province", "min_count": 3}],
    "item": [{"name": "category", "min_count": 3}, {"name": "topic", "column": "category", "buckets": 4}],
}
F_SAMPLES = {"max_history": 800, "window_size": 50, "order": "newest_first", "subsample_threshold": 0.01}
F_SAMPLES |= {"max_targets_per_user": 400, "negatives_per_positive": 3, "negatives_alpha": 0.75}
P_SAMPLES = {"window_size": 20, "start_token": True, "negatives_per_positive": 2}


@dataclass(frozen=True)
class Way:
    """A way to compute the same, nothing of which may show in the result.

    Attributes:
        files: of the raw log, whose rows are in an order of their own for each number.
        coalesce: whether Spark may join small partitions of a shuffle.
        split_bytes: of a task that reads files.
    """

    partitions: int
    files: int = 1
    coalesce: bool = True
    split_bytes: int = 1 << 27


WAYS = [
    Way(3),
    Way(24, files=7, split_bytes=1 << 24),
    Way(8, files=7, coalesce=False),
    Way(1, files=7),
]


def tags_of(item: int) -> str:
    return "_".join(f"t{(item + n) % 7}" for n in range(item % 4))


def by_day(make_config: Callable[..., Config], partitions: int) -> tuple[Config, list[str], list[str]]:
    """F's settings, protocol `day`; clicks by the hour, so that a user has several at a time, and of one item at it."""
    rng = random.Random(1)
    rows = set()
    for user, clicks in enumerate(CLICKS_OF_USERS):
        for _ in range(clicks):
            item, time = int(ITEMS * rng.random() ** 2), FIRST_SECOND + rng.randrange(HOURS) * HOUR
            tags = tags_of(item)
            rows.add(f"u{user},i{item},{time},1,c{rng.randrange(3)},p{user % 9},{tags},{tags}")
    config = make_config(
        features=FEATURES_OF_ROWS,
        samples=F_SAMPLES,
        evaluation={"protocol": "day"},
        training={"launcher": "horovod", "ranks": 3},
        spark={"master": "local[2]", "partitions": partitions},
    )
    return config, [HEADER], sorted(rows)


def by_position(make_config: Callable[..., Config], partitions: int) -> tuple[Config, list[str], list[str]]:
    """P's settings, protocol `last_click`; a line a user."""
    rng = random.Random(2)
    lines = []
    for user, clicks in enumerate(CLICKS_OF_USERS):
        items = [int(ITEMS * rng.random() ** 2) for _ in range(clicks)]
        session = ";".join(f"i{item}:k{item % 5}:{tags_of(item)}" for item in items)
        lines.append(f"u{user}\tprovince {user % 4}\tc{user % 3}\t{session}\tp{user % 9}")
    config = make_config(
        input={"format": "sessions", "ordering": "position"},
        features=FEATURES_OF_SESSIONS,
        samples=P_SAMPLES,
        spark={"master": "local[2]", "partitions": partitions},
    )
    return config, [], lines


def write_log(way: Way, folder: Path, header: list[str], lines: list[str]) -> None:
    """The raw log in the way's order and number of files."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    lines = random.Random(way.files).sample(lines, len(lines))
    for n in range(way.files):
        text = "".join(f"{line}\n" for line in [*header, *lines[n :: way.files]])
        (folder / f"{n}.{'csv' if header else 'txt'}").write_text(text, encoding="utf-8")


@pytest.fixture
def set_spark(spark: Any) -> Iterator[Callable[[Way], None]]:
    """Sets the session as a way says, and in the end back."""
    names = ["spark.sql.adaptive.coalescePartitions.enabled", "spark.sql.files.maxPartitionBytes"]
    before = {name: spark.conf.get(name) for name in names}

    def apply(way: Way) -> None:
        for name, value in zip(names, (str(way.coalesce).lower(), str(way.split_bytes)), strict=True):
            spark.conf.set(name, value)

    yield apply
    for name, value in before.items():
        spark.conf.set(name, value)


def manifests(ctx: Context) -> dict[str, dict[str, Any]]:
    samples = {split: ctx.tables.get("samples", DT, split=split).manifest for split in SPLITS}
    return {"vocab": ctx.tables.get("vocab", DT).manifest, **samples}


def contents(ctx: Context) -> dict[str, Any]:
    """Rows and digests, and the files that training reads: their number, row groups and bytes, so their order of rows too."""
    found = manifests(ctx)
    rows: dict[str, Any] = {name: (manifest["rows"], manifest["digest"]) for name, manifest in found.items()}
    for split in (TRAIN, VALIDATION):
        rows[f"{split} files"] = [(file["row_groups"], file["sha256"]) for file in found[split]["files"]]
    return rows


@pytest.mark.parametrize(("log_of", "ways"), [(by_day, WAYS[:2]), pytest.param(by_position, WAYS, marks=pytest.mark.proof)])
def test_nothing_depends_on_how_it_is_computed(
    log_of: Callable[..., Any],
    ways: list[Way],
    set_spark: Any,
    make_config: Callable[..., Config],
    run_jobs: Any,
    tmp_path: Path,
) -> None:
    first: dict[str, Any] = {}
    ingested = 0
    for way in ways:
        config, header, lines = log_of(make_config, way.partitions)
        set_spark(way)
        if ingested != way.files:
            write_log(way, tmp_path / "log" / "clicks", header, lines)
            shutil.rmtree(tmp_path / "root" / "events", ignore_errors=True)
            jobs.events.run(Context(config, DT), backfill=True)
            ingested = way.files
        ctx = run_jobs(config, DT, "vocab", "samples")
        assert ctx.spark.conf.get("spark.sql.shuffle.partitions") == str(way.partitions)
        found = contents(ctx)
        first = first or found
        assert found == first, way
    assert all(first[name][0] > 3 for name in ("vocab", *SPLITS)), first
    assert len(first["train files"]) > 1


# Its functions are those of a script, which Spark sends along: executors call this one and not the module's own.
KILLED = """
    import os
    import sys
    from pathlib import Path
    from types import SimpleNamespace
    from unittest import mock

    import psutil
    from pyspark import TaskContext

    import jobs.samples
    from recall_lib.config import load_config
    from recall_lib.day.context import Context
    from recall_lib.samples import build
    from recall_lib.transforms import samples

    config, dt, killed = sys.argv[1:]


    def die_once(table, recipe):
        for batch in build.split_samples(table, recipe):  # the executor's own
            yield batch  # the file has been begun
            if TaskContext.get().partitionId() >= 3 and not os.path.exists(killed):
                executor = psutil.Process().parent().parent()
                assert "CoarseGrainedExecutorBackend" in " ".join(executor.cmdline())
                Path(killed).write_text(str(executor.pid))
                executor.kill()


    with mock.patch.object(samples, "build", SimpleNamespace(split_samples=die_once)):
        jobs.samples.run(Context(load_config(config), dt))
"""


@pytest.mark.proof
def test_a_killed_executor_changes_nothing(
    make_config: Callable[..., Config], run_jobs: Any, cluster: Cluster, tmp_path: Path
) -> None:
    config, header, lines = by_position(make_config, 3)
    write_log(Way(3), tmp_path / "log" / "clicks", header, lines)
    ctx = run_jobs(config, DT, "events", "vocab", "samples")
    undisturbed, before = contents(ctx), manifests(ctx)
    cluster.run(KILLED, str(tmp_path / "config.yaml"), DT, str(tmp_path / "killed"))
    assert not Path("/proc", (tmp_path / "killed").read_text()).exists()
    assert contents(ctx) == undisturbed
    after = manifests(ctx)
    for split in SPLITS:
        assert after[split]["run_id"] != before[split]["run_id"]
        folder = Path(ctx.tables.get("samples", DT, split=split).folder)
        assert {path.name for path in folder.iterdir()} == {MANIFEST, *(file["name"] for file in after[split]["files"])}
    aside = [path for area in ("_staging", "_retired") for path in (tmp_path / "root" / area).glob("*")]
    assert not aside
