"""Daily learning on a small log: a chain of days, what serves a day whose model was not promoted, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs import events, pipeline, samples, train
from recall_lib.commands import query, simulator, status
from recall_lib.commands.status import PUBLISHED, STALE, Days
from recall_lib.config import Config, load_config
from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.process.errors import DataRefused
from recall_lib.store import schemas
from recall_lib.store.tables import Tables
from recall_lib.transforms.vocab import known_items
from tests.conftest import SPARK
from tests.oracle import Click, by_user, split_last_click

DAYS = ["2024-03-03", "2024-03-04"]
START = 1_709_424_000  # DAYS[0] 00:00 UTC
LEARN = ("vocab", "samples", "train")
INFER = ("vectors", "index", "popular", "top_n", "related", "metrics")
FEATURES = {"item_id": {"min_count": 8, "dim": 8}, "user": [{"name": "city", "min_count": 1, "dim": 2}]}
TRAINING = {"loss": "full_softmax", "batch_size": 64, "epochs": 4, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def log() -> simulator.Log:
    return simulator.simulate(users=80, items=60, days=5)


SECTIONS: dict[str, Any] = {
    "input": {"items": "items.csv", "max_reject_share": 0.2},
    "features": FEATURES | {"item": [{"name": "category", "min_count": 1, "dim": 8}]},
    "samples": {"window_size": 5},
    "model": {"tower": [8], "item_bias": True, "recency": {"feature": "category"}},
    "training": TRAINING,
    "top_n": {"n": 5},
    "evaluation": {"protocol": "day"},
}


@pytest.fixture
def config(make_config: Callable[..., Config], log: simulator.Log) -> Config:
    made = make_config(**SECTIONS)
    simulator.write_rows(log, Path(made.input.path))
    return made


@pytest.fixture(scope="module")
def ingested(spark: Any, log: simulator.Log, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with the events up to DAYS[1]."""
    folder = tmp_path_factory.mktemp("ingested")
    simulator.write_rows(log, folder / "log")
    places = {"input": SECTIONS["input"] | {"path": f"{folder}/log"}, "paths": {"root": f"{folder}/root"}, "spark": SPARK}
    events.run(Context(Config.model_validate(SECTIONS | places), DAYS[1], "test"), backfill=True)
    return folder / "root"


def changed(config_file: Path, *overrides: str) -> Config:
    return load_config(str(config_file), overrides)


def test_a_chain_of_days(
    config: Config, ingested: Path, tmp_path: Path, run_jobs: Callable[..., Context], log: simulator.Log
) -> None:
    """The second day starts from the first, trains on the first's clicks alone, and does as well as from scratch."""
    # By last clicks, as then nearly every user validates.
    base = ["evaluation.protocol=last_click", "features.item_id.min_count=1", "model.recency=null"]
    config = changed(file := tmp_path / "config.yaml", *base)
    daily_settings = [*base, "training.init=yesterday", "training.epochs=2"]
    tables = Tables(config)
    shutil.copytree(ingested, config.paths.root)
    run_jobs(config, DAYS[0], *LEARN)
    first = tables.get("models", DAYS[0]).manifest
    assert (first["init"], first["serving_dt"]) == ("scratch", DAYS[0])
    models = {}
    for name, settings in {
        "untrained": [*base, "training.max_steps=1", "training.learning_rate=1.0e-9"],
        "scratch": base,
        "yesterday": daily_settings,
    }.items():
        run_jobs(changed(file, *settings), DAYS[1], *(LEARN if name == "untrained" else LEARN[1:]))
        models[name] = tables.get("models", DAYS[1]).manifest
    with pytest.raises(DataRefused, match="or yesterday_days: run `recall samples"):
        run_jobs(config, DAYS[1], "train")
    daily = models["yesterday"]
    assert daily["init"] == "yesterday"
    assert daily["inputs"][f"models/dt={DAYS[0]}"] == first["version"]
    assert f"models/dt={DAYS[0]}" not in models["scratch"]["inputs"]
    assert daily["steps"] < models["scratch"]["steps"] / 2
    assert daily["targets"] == targets_of_the_last_day(log)
    hr = {name: model["validation"]["hr@10"] for name, model in models.items()}
    assert hr["yesterday"] > 1.2 * hr["untrained"], hr
    assert hr["yesterday"] > 0.9 * hr["scratch"], hr
    days = Days(changed(file, *daily_settings))
    assert days.day(DAYS[1], LEARN).state == PUBLISHED
    run_jobs(changed(file, *base, "training.epochs=1"), DAYS[0], "train")
    found = Days(days.config).day(DAYS[1], LEARN)
    assert (found.state, found.why) == (STALE, f"changed since: models/dt={DAYS[0]}")


def targets_of_the_last_day(log: simulator.Log) -> int:
    """Training clicks of DAYS[0], the first of all of a user left out."""
    chosen = (log.click == 1) & (log.time < START + 86_400)
    columns = (log.user[chosen], log.item[chosen], log.time[chosen])
    clicks = [Click(str(user), str(item), time) for user, item, time in zip(*columns, strict=True)]
    return sum(click.time >= START for own in by_user(clicks).values() for click in split_last_click(own)[0][1:])


@pytest.mark.proof
def test_a_day_whose_model_is_not_promoted(
    config: Config, ingested: Path, tmp_path: Path, run_jobs: Callable[..., Context], capsys: pytest.CaptureFixture[str]
) -> None:
    """Everything of the day is made with the model, the vocabulary and the ids of the one before; users are the day's."""
    file = tmp_path / "config.yaml"
    shutil.copytree(ingested, config.paths.root)
    run_jobs(config, DAYS[0], "vocab", "items", "samples", "train", "vectors", "index", "popular", "top_n")
    worse = changed(file, "training.max_hr_drop=0.1", "training.epochs=1")
    measured(config, 1.0)
    capsys.readouterr()
    pipeline.run(ctx := Context(worse, DAYS[1], "test"))
    said = capsys.readouterr().out
    assert said.count("not promoted: validation hr@10") == 1
    assert f"models/dt={DAYS[0]}, which serves {DAYS[1]} in its place" in said
    tables = ctx.tables
    models = {day: tables.get("models", day).manifest for day in DAYS}
    assert models[DAYS[1]]["serving_dt"] == DAYS[0]
    assert models[DAYS[1]]["inputs"][f"models/dt={DAYS[0]}"] == models[DAYS[0]]["version"]
    latest = tables.read_json(f"{tables.root}/models/latest.json")
    assert latest == {"dt": DAYS[0], "version": models[DAYS[0]]["version"]}
    known = [{r["item_id"] for r in known_items(tables.get("vocab", day).read(schemas.VOCAB)).collect()} for day in DAYS]
    assert known[1] - known[0], "the log must have new items"
    for kind in ("item", "user"):
        assert tables.get("vectors", DAYS[1], kind=kind).manifest["model_version"] == models[DAYS[0]]["version"]
    # The weights are those of the earlier day's items, the prior in front of them is the later day's own.
    items, users = (
        [{row[key]: row["vector"] for row in tables.get("vectors", day, kind=kind).read(schema).collect()} for day in DAYS]
        for key, schema, kind in (("item_id", schemas.ITEM_VECTORS, "item"), ("user_id", schemas.USER_VECTORS, "user"))
    )
    assert items[1].keys() == known[0]
    assert all(items[0][item][1:] == vector[1:] for item, vector in items[1].items())
    assert any(items[0][item][0] != vector[0] for item, vector in items[1].items())
    same = [users[0].get(user) == vector for user, vector in users[1].items()]
    assert any(same), "users without a click on the day between look as they did"
    assert not all(same), "histories are the later day's"
    rows = tables.get("top_n", DAYS[1]).read(schemas.TOP_N).collect()
    assert {row["model_version"] for row in rows} == {models[DAYS[0]]["version"]}
    assert {item for row in rows for item, _ in row["items"]} <= known[0]
    assert {row["source"] for row in rows} == {"model", "popular"}
    metrics = tables.read_json(f"{tables.get('metrics', DAYS[1]).folder}/metrics.json")
    assert metrics["users"] > 10
    assert metrics["model"]["hr@10"] > 0
    assert Days(worse).day(DAYS[1]).why == ""
    assert_shown(file, capsys, models[DAYS[1]]["validation"]["hr@10"])
    clicked = ",".join(sorted(known[0])[:2])
    assert query.main(["--config", str(file), "--dt", DAYS[1], "--history", clicked]) == 0
    assert {line.split("\t")[1] for line in capsys.readouterr().out.splitlines()} <= known[0]
    # A better one is promoted, and what the other served is stale then.
    measured(config, 0.0)
    run_jobs(worse, DAYS[1], "train")
    assert tables.read_json(f"{tables.root}/models/latest.json")["dt"] == DAYS[1]
    assert Days(worse).day(DAYS[1]).why == "changed since: models, vocab"
    # And if it is not, after all, latest goes back to who serves in its place.
    measured(config, 1.0)
    run_jobs(worse, DAYS[1], "train")
    assert tables.read_json(f"{tables.root}/models/latest.json") == latest


def measured(config: Config, hr: float) -> None:
    """Set what was measured of the earlier day's model: a few users of a small log tell good from bad by chance."""
    path = Path(config.paths.root) / "models" / f"dt={DAYS[0]}" / "_manifest.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps(manifest | {"validation": manifest["validation"] | {"hr@10": hr}}))


def assert_shown(file: Path, capsys: pytest.CaptureFixture[str], hr: float) -> None:
    assert status.main(["--config", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"serves: {DAYS[0]}" in said
    assert f"latest model: {DAYS[0]}" in said
    assert status.main(["--config", str(file), "--dt", DAYS[1]]) == 0
    assert f"init: scratch, validation hr@10 {hr:.4f}, serves: {DAYS[0]}" in capsys.readouterr().out


def test_the_last_clicks_are_scored_with_the_serving_days_vocabulary(
    config: Config, ingested: Path, tmp_path: Path, run_jobs: Callable[..., Context]
) -> None:
    """With protocol `last_click` too, and the same as by the stored split where both days have the same vocabulary."""
    file = tmp_path / "config.yaml"
    plain = changed(file, "evaluation.protocol=last_click", "model.recency=null", "training.epochs=1")
    shutil.copytree(ingested, plain.paths.root)
    ctx = run_jobs(plain, DAYS[0], *LEARN, *(job for job in INFER if job != "related"))
    folder, path = Path(ctx.tables.root), "models/dt={}/_manifest.json"
    for dataset in ("vocab", "models", "samples", "index"):
        shutil.copytree(folder / dataset / f"dt={DAYS[0]}", folder / dataset / f"dt={DAYS[1]}")
    manifest = json.loads((folder / path.format(DAYS[0])).read_text())
    (folder / path.format(DAYS[1])).write_text(json.dumps(manifest | {"serving_dt": DAYS[0]}))
    shutil.rmtree(folder / "samples" / f"dt={DAYS[1]}" / "split=test")
    stored = ctx.tables.read_json(f"{ctx.tables.get('metrics', DAYS[0]).folder}/metrics.json")
    # The same clicks are before both days.
    shutil.rmtree(folder / "events" / f"dt={DAYS[0]}", ignore_errors=True)
    run_jobs(plain, DAYS[1], "metrics")
    made = ctx.tables.read_json(f"{ctx.tables.get('metrics', DAYS[1]).folder}/metrics.json")
    assert made["model"] == stored["model"]
    assert made["users"] == stored["users"] > 10


@pytest.mark.parametrize("job", [pipeline, samples, train])
def test_a_day_without_the_one_before_is_refused_before_anything(
    config: Config, tmp_path: Path, job: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recall_lib.spark.session.start", lambda *_: pytest.fail("a Spark session was started"))
    arguments = ["--config", str(tmp_path / "config.yaml"), "--dt", DAYS[1], "--set", "training.init=yesterday"]
    assert main(job.run, arguments) == 2
    said = capsys.readouterr().err
    assert f"models/dt={DAYS[0]}, which is not published: run {DAYS[0]}, or start {DAYS[1]} anew" in said
    assert len(said.splitlines()) == 1
    assert {path.name for path in Path(config.paths.root).iterdir()} <= {"_locks"}
