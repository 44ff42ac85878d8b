"""`recall pipeline` on small logs of both formats, end to end with nothing mocked."""

import gzip
import json
import os
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from jobs import pipeline
from recall_lib.commands import cli, simulator
from recall_lib.config import Config, load_config
from recall_lib.day.context import Context
from recall_lib.store import schemas
from recall_lib.store.tables import Tables
from tests import viewfs
from tests.conftest import SPARK

DT = "2024-03-03"  # of four days: the log holds a later click
START = 1_709_424_000  # DT 00:00 UTC
FEATURES = {
    "item_id": {"min_count": 1, "dim": 8},
    "user": [{"name": "city", "min_count": 1, "dim": 2}],
    "item": [{"name": "tags", "min_count": 1, "dim": 4, "multi": True}],
}
TINY: dict[str, Any] = {
    "features": FEATURES,
    "samples": {"window_size": 5},
    "model": {"tower": [8]},
    "training": {"batch_size": 64, "num_negatives": 3, "epochs": 1, "launcher": "process"},
    "top_n": {"n": 10, "filter_seen": True},
}
# So that every job has a table to make.
WITH_ITEMS: dict[str, Any] = {
    **TINY,
    "features": {**FEATURES, "item": [{"name": "tags", "min_count": 1, "dim": 8, "multi": True}]},
    "model": {"tower": [8], "item_rows": "both"},
}
SLIPS = {"max_reject_share": 0.2}  # the simulator's slips weigh more in a log as small as this
RECOMMENDERS = {"model", "popular", "recent_popular", "item_knn"}
METRICS = {f"{name}@{k}" for name in ("hr", "recall", "ndcg", "coverage", "popularity") for k in (10, 50, 200)} | {"mrr"}


@pytest.fixture(scope="module")
def log() -> simulator.Log:
    return simulator.simulate(users=50, items=60, days=4)


def clicked(log: simulator.Log, before: int | None = None) -> dict[str, set[str]]:
    """{user: the items clicked}, of clicks before a second."""
    chosen = (log.click == 1) & (log.time < (before or log.time.max() + 1))
    own = defaultdict(set)
    for user, item in zip(log.readers["user_id"][log.user[chosen]], log.articles["article_id"][log.item[chosen]], strict=True):
        own[str(user)].add(str(item))
    return own


def assert_published(ctx: Context, own: dict[str, set[str]], protocol: str) -> None:
    """The top-N table fits the clicks before it; metrics and report are there."""
    rows = ctx.tables.get("top_n", DT).read(schemas.TOP_N).collect()
    assert sorted(row["user_id"] for row in rows) == sorted(own)
    catalogue = set().union(*own.values())
    for row in rows:
        items = [item for item, _ in row["items"]]
        scores = [score for _, score in row["items"]]
        assert all(better >= worse for better, worse in pairwise(scores))
        assert len(set(items)) == len(items) == min(10, len(catalogue - own[row["user_id"]]))
        assert set(items) <= catalogue - own[row["user_id"]]
    assert {row["model_version"] for row in rows} == {ctx.tables.get("models", DT).manifest["version"]}
    assert {row["source"] for row in rows} == {"model"}
    metrics = read_metrics(ctx.config)
    assert (metrics["protocol"], metrics["status"]) == (protocol, "final")
    assert metrics["users"] > 10
    assert metrics.keys() & RECOMMENDERS == RECOMMENDERS
    for name in RECOMMENDERS:
        assert metrics[name].keys() == METRICS
        assert 0 <= metrics[name]["hr@10"] <= metrics[name]["hr@50"] <= metrics[name]["hr@200"] <= 1
    assert b"<html" in ctx.tables.fs.cat_file(f"{ctx.tables.get('reports', DT).folder}/report.html")


def read_metrics(config: Config) -> dict[str, Any]:
    tables = Tables(config)
    return dict(tables.read_json(f"{tables.get('metrics', DT).folder}/metrics.json"))


def sample_digests(config: Config) -> dict[str, str]:
    tables = Tables(config)
    splits = {split: tables.get("samples", DT, split=split).manifest["digest"] for split in ("train", "validation", "test")}
    return {"vocab": tables.get("vocab", DT).manifest["digest"], **splits}


def fingerprints(config: Config) -> dict[str, str]:
    """What may not change when nothing has: the digest of every table, and the model's version."""
    tables = Tables(config)
    vectors = {kind: tables.get("vectors", DT, kind=kind).manifest["digest"] for kind in ("user", "item")}
    found = {name: tables.get(name, DT).manifest["digest"] for name in ("top_n", "popular", "related", "metrics")}
    return {"model": tables.get("models", DT).manifest["version"], **sample_digests(config), **vectors, **found}


class Day(NamedTuple):
    """A published day of rows.

    Attributes:
        file: its config.
        folder: of this machine, where its root and its log lie.
        root: the root's name in the folder.
    """

    file: Path
    folder: Path
    root: str


@pytest.fixture(scope="module")
def day(spark: Any, log: simulator.Log, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Day]:
    """The day by one command, on a root that no local path leads to, with odd characters in its name."""
    folder, name = tmp_path_factory.mktemp("day"), "a #1 100%25 ü"
    (work := folder / "work").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        here = viewfs.mount(spark, folder, patch)
        simulator.write_rows(log, here / "log" / name)
        sections: dict[str, Any] = {
            **WITH_ITEMS,
            "input": {"path": f"{viewfs.STORE}/log/{name}", "items": "items.csv", **SLIPS},
            "evaluation": {"protocol": "day"},
            "paths": {"root": f"{viewfs.STORE}/{name}"},
            "spark": SPARK,
        }
        file = folder / "config.yaml"
        file.write_text(yaml.safe_dump(sections), encoding="utf-8")
        started_in = Path.cwd()  # of the JVM and its Python workers too
        before = set(os.listdir(started_in))
        patch.chdir(work)
        assert cli.main(["pipeline", "--config", str(file), "--dt", DT]) == 0
        yield Day(file, here, name)
        new = [path for path in {*os.listdir(started_in)} - before if path.startswith(("viewfs", "data"))]
        assert new == os.listdir(work) == [], "something took the address for a path"


def test_rows_by_day_and_once_more(day: Day, log: simulator.Log) -> None:
    config = load_config(str(day.file))
    ctx = Context(config, DT, "test")
    assert ctx.tables.days("events") == ["2024-03-01", "2024-03-02", DT]
    assert_published(ctx, clicked(log, START), "day")
    for dataset in ("vocab", "items", "models", "index", "popular", "top_n", "related", "metrics", "reports"):
        assert (day.folder / day.root / dataset / f"dt={DT}/_manifest.json").exists(), dataset
    first, run_id = fingerprints(config), ctx.tables.get("top_n", DT).manifest["run_id"]
    pipeline.run(Context(config, DT, "test"))
    assert Tables(config).get("top_n", DT).manifest["run_id"] != run_id
    assert fingerprints(config) == first


def test_every_tool_on_another_file_system(day: Day, capsys: pytest.CaptureFixture[str]) -> None:
    root = f"{day.root} again"
    shutil.copytree(day.folder / day.root, day.folder / root)
    of_root = ["--config", str(day.file), "--set", f"paths.root={json.dumps(f'{viewfs.STORE}/{root}', ensure_ascii=False)}"]
    of_day = [*of_root, "--dt", DT]
    for command in (
        *(["query", *of_day, *asked] for asked in (["--user", "u00003"], ["--item", "a00003"], ["--history", "a00003"])),
        ["dump", "samples", *of_day, "--split", "test"],
        ["status", *of_root],
        ["gc", *of_root],
        ["forget", *of_root, "--user", "u00003"],
    ):
        assert cli.main(command) == 0, (command, capsys.readouterr().err)
    assert f"forget: top_n/dt={DT}: 1 row" in capsys.readouterr().out
    assert not [path for area in ("_staging", "_retired", "_checkpoints") for path in (day.folder / root / area).glob("*")]


def test_a_day_without_clicks_is_published_empty(day: Day, log: simulator.Log, tmp_path: Path) -> None:
    """The tables that know its clicks are made of none of them; the others are those of the same clicks before it."""
    shutil.copytree(day.folder / "log" / day.root, tmp_path / "log")
    shutil.copytree(day.folder / day.root, tmp_path / "root")
    (tmp_path / "log" / "clicks" / f"{DT}.csv").unlink()
    of_the_day = ("events", "rejects", "samples", "metrics", "reports")
    for dataset in of_the_day:
        shutil.rmtree(tmp_path / "root" / dataset / f"dt={DT}")
    places = [f"paths.root={tmp_path}/root", f"input.path={tmp_path}/log"]
    config = load_config(str(day.file), places)
    pipeline.run(Context(config, DT, "test"), jobs={"events", "samples", "metrics", "report"})
    tables = Tables(config)
    assert tables.get("events", DT).manifest["rows"] == 0
    assert tables.get("top_n", DT).manifest["rows"] == len(clicked(log, START))
    metrics = read_metrics(config)
    assert (metrics["status"], metrics["users"], metrics["users_new"], metrics["users_repeat"]) == ("final", 0, 0, 0)
    assert tables.get("reports", DT).files


def test_sessions(spark: Any, make_config: Callable[..., Config], log: simulator.Log) -> None:
    source = {"format": "sessions", "ordering": "position", "clicks": "sessions.txt", **SLIPS}
    config = make_config(input=source, **TINY, evaluation={"protocol": "last_click"})
    simulator.write_sessions(log, Path(config.input.path) / "sessions.txt")
    pipeline.run(ctx := Context(config, DT, "test"))
    assert_published(ctx, clicked(log), "last_click")


def first_users(source: Path, target: Path, separator: str, users: int = 60) -> None:
    """Copies the lines of the first users."""
    target.parent.mkdir(exist_ok=True)
    with gzip.open(source, "rt", encoding="utf-8") as lines, target.open("w", encoding="utf-8") as kept:
        for line in lines:
            user = line.split(separator, 1)[0]
            if user.isdigit() and int(user) > users:
                break
            kept.write(line)


@pytest.mark.proof
def test_both_forms_of_one_log_in_any_partitions_give_equal_samples(
    real_data: Path, make_config: Callable[..., Config], run_jobs: Callable[..., Context], tmp_path: Path
) -> None:
    first_users(real_data / "ml-1m" / "clicks.csv.gz", tmp_path / "log" / "clicks.csv", ",")
    first_users(real_data / "ml-1m" / "sessions.txt.gz", tmp_path / "log" / "sessions.txt", "\t")
    (tmp_path / "log" / "items.csv.gz").write_bytes((real_data / "ml-1m" / "items.csv.gz").read_bytes())
    forms = [
        {"clicks": "clicks.csv", "items": "items.csv.gz", "ordering": "position"},
        {"clicks": "sessions.txt", "format": "sessions", "ordering": "position"},
    ]
    user, item = [{"name": "user_id"}, {"name": "city"}], [{"name": "category"}, {"name": "tags", "multi": True}]
    features = {"item_id": {"min_count": 2, "dim": 8}, "user": user, "item": item}
    samples = {"window_size": 5, "negatives_per_positive": 2, "subsample_threshold": 0.001}
    found = []
    for partitions, form in enumerate(forms, start=2):
        spark = {"master": "local[2]", "partitions": partitions}
        config = make_config(spark=spark, input=form, features=features, samples=samples, model={"tower": [8]})
        tables = run_jobs(config, DT, "events", "vocab", "samples").tables
        events = tables.get("events", DT).manifest
        found.append({"events": events["digest"], "rows": events["rows"], **sample_digests(config)})
    assert found[0]["rows"] > 5_000
    assert found[0] == found[1]
