"""A day's state is read from its manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recall_lib.commands import cli
from recall_lib.commands.status import FAILED, MISSING, PUBLISHED, STALE, Days, state_of
from recall_lib.config import Config, load_config
from recall_lib.process import messages
from recall_lib.store import datasets, locks
from recall_lib.store.digests import EMPTY_DIGEST

DT = "2024-01-03"
EVENTS = {"2024-01-01": "e1", "2024-01-02": "e2", DT: "e3"}
KNOWN = {"events/dt=2024-01-01": "e1", "events/dt=2024-01-02": "e2"}


def manifest(digest: str, at: str = "2024-02-01T10:00:00+00:00", **inputs: str) -> dict[str, Any]:
    return {"digest": digest, "inputs": inputs, "published_at": at, "seconds": 1.5, "run_id": "r", "files": [], "rows": 2}


def whole() -> dict[str, dict[str, Any]]:
    """The manifests of a day whose model is all there is of it."""
    return {
        "vocab": manifest("v", **KNOWN),
        "samples/split=train": manifest("t", **KNOWN, vocab="v"),
        "samples/split=validation": manifest("w", **KNOWN, vocab="v"),
        "models": manifest("m", vocab="v", **{"samples/split=train": "t", "samples/split=validation": "w"}),
    }


def state(manifests: dict[str, dict[str, Any]], events: dict[str, str] = EVENTS, **options: Any) -> tuple[str, str]:
    return state_of(list(whole()), manifests, events, DT, options.pop("failure", None), **options)


def test_a_day_is_published_when_all_is_there_and_made_from_what_is_there() -> None:
    assert state(whole()) == (PUBLISHED, "")
    assert state({}) == (MISSING, "")
    assert state(without(whole(), "models")) == (MISSING, "without models")


def without(manifests: dict[str, dict[str, Any]], *names: str) -> dict[str, dict[str, Any]]:
    return {name: found for name, found in manifests.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "events", "why"),
    [
        ({}, EVENTS | {"2024-01-02": "other"}, "events/dt=2024-01-02"),
        ({}, EVENTS | {"2023-12-31": "e0"}, "events/dt=2023-12-31"),
        ({}, without(EVENTS, "2024-01-02"), "events/dt=2024-01-02"),
        ({"vocab": manifest("other", **KNOWN)}, EVENTS, "vocab"),
        ({"samples/split=train": manifest("other", **KNOWN, vocab="v")}, EVENTS, "samples/split=train"),
    ],
)
def test_a_changed_input_makes_it_stale(change: dict[str, Any], events: dict[str, str], why: str) -> None:
    assert state(whole() | change, events) == (STALE, f"changed since: {why}")


YESTERDAY = "2024-01-02"


def test_the_model_that_a_day_started_from_is_an_input() -> None:
    found = whole()
    found["models"]["inputs"][f"models/dt={YESTERDAY}"] = "m0"
    assert state(found, others={f"models/dt={YESTERDAY}": "m0"}) == (PUBLISHED, "")
    for others in ({f"models/dt={YESTERDAY}": "m1"}, {}):
        assert state(found, others=others) == (STALE, f"changed since: models/dt={YESTERDAY}")


def test_what_another_days_model_serves_is_made_from_that_day() -> None:
    others = {f"models/dt={YESTERDAY}": "m0", f"vocab/dt={YESTERDAY}": "v0"}
    found = whole() | {
        "vectors/kind=item": manifest("x", vocab="v0", models="m0"),
        "popular": manifest("p", vocab="v"),  # of the day's own vocabulary all the same
    }

    def judged(serving: str, others: dict[str, str]) -> str:
        return state_of(
            list(found), found | {"models": found["models"] | {"serving_dt": serving}}, EVENTS, DT, None, True, others
        )[1]

    assert judged(YESTERDAY, others) == ""
    assert judged(YESTERDAY, others | {f"models/dt={YESTERDAY}": "m1"}) == "changed since: models"
    assert judged(DT, {}) == "changed since: models, vocab", "it was promoted after all"


def test_what_is_no_input_makes_nothing_stale() -> None:
    assert state(whole(), EVENTS | {DT: "other", "2024-01-04": "e4", "2023-12-31": EMPTY_DIGEST}) == (PUBLISHED, "")
    snapshot = {name: found | {"inputs": {f"events/dt={DT}": "e3"}} for name, found in whole().items()}
    assert state(snapshot, ordered=False) == (PUBLISHED, "")
    assert state(snapshot, without(EVENTS, DT), ordered=False) == (STALE, f"changed since: events/dt={DT}")
    assert state(whole(), without(EVENTS, "2024-01-01")) == (PUBLISHED, ""), "the oldest clicks have passed their retention"
    assert state(whole(), {DT: "e3"}) == state(whole(), {}) == (PUBLISHED, "")
    assert state(snapshot, EVENTS | {DT: "other"}, ordered=False) == (STALE, f"changed since: events/dt={DT}")


def test_metrics_wait_for_the_day_and_the_report_for_metrics() -> None:
    found = {"metrics": manifest("x") | {"status": "pending"}, "reports": manifest("r", metrics="x")}
    before = without(EVENTS, DT)
    assert state_of(list(found), found, before, DT, None) == (PUBLISHED, "")
    assert state_of(list(found), found, EVENTS, DT, None) == (STALE, f"changed since: events/dt={DT}")
    later = found | {"metrics": manifest("y") | {"status": "final"}}
    assert state_of(list(later), later, before, DT, None) == (STALE, "changed since: metrics")


def test_a_failure_counts_until_all_is_published_after_it() -> None:
    failure = {"code": 3, "message": "no", "at": "2024-02-01T10:00:00+00:00"}
    assert state(whole(), failure=failure) == (FAILED, "exit 3: no")
    assert state({}, failure=failure)[0] == FAILED
    anew = {name: found | {"published_at": "2024-02-01T10:00:01+00:00"} for name, found in whole().items()}
    assert state(anew, failure=failure)[0] == PUBLISHED
    assert state(anew | {"vocab": whole()["vocab"]}, failure=failure)[0] == FAILED


def test_publications_are_in_the_order_of_the_pipeline() -> None:
    from jobs import pipeline

    order = ["events", "vocab", "items", "samples", "train", "vectors", "index", "popular", "top_n", "related"]
    order += ["metrics", "report"]
    assert [stage.__name__ for stage in pipeline.STAGES] == [f"jobs.{job}" for job in order]
    assert list(datasets.required(Config())) == order
    assert datasets.required(Config())["vectors"] == ("vectors/kind=item",)
    assert datasets.required(Config())["top_n"] == ("vectors/kind=user", "top_n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with the manifests of `whole`, of three days of events, and metrics."""
    manifests = {f"events/dt={day}": manifest(digest) for day, digest in EVENTS.items()}
    manifests |= {name.replace("/", f"/dt={DT}/") if "/" in name else f"{name}/dt={DT}": m for name, m in whole().items()}
    manifests[f"models/dt={DT}"] |= {"version": "abcdef0123456789", "validation": {"ndcg@10": 0.25}}
    manifests[f"metrics/dt={DT}"] = manifest("x") | {"status": "final"}
    for name, found in manifests.items():
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "_manifest.json").write_text(json.dumps(found))
    (tmp_path / f"metrics/dt={DT}/metrics.json").write_text(json.dumps({"users": 7, "model": {"hr@10": 0.125}}))
    return tmp_path


@pytest.fixture
def config_file(root: Path) -> str:
    file = root / "config.yaml"
    file.write_text(json.dumps({"paths": {"root": str(root)}, "evaluation": {"protocol": "day"}}))
    return str(file)


def test_overview_and_details(
    root: Path, config_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recall_lib.spark.session.start", lambda *_: pytest.fail("a Spark session was started"))
    with locks.held(str(root), "dt=2024-01-05", "running"):
        assert cli.main(["status", "--config", config_file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "3 days of events, 2024-01-01 to 2024-01-03" in lines[0]
    # The splits' seconds are those of one pass.
    assert lines[2].split()[:6] == [DT, MISSING, "abcdef012345", "0.2500", "0.1250", "6.0"]
    assert "without vectors/kind=item" in lines[2]
    assert lines[3].split()[:2] == ["2024-01-05", MISSING]
    assert "running: run running (pid" in lines[3]
    assert cli.main(["status", "--config", config_file, "--dt", DT]) == 0
    said = capsys.readouterr().out
    assert "samples/split=train       2     1.5" in said
    assert "2 days of events, vocab" in said
    assert "init: -, validation hr@10 -, serves: 2024-01-03" in said


@pytest.mark.parametrize(
    ("then", "why"),
    [
        ({"training": {"epochs": 1, "launcher": "spark", "of_another_version": 1}}, ""),
        ({"training": {"epochs": 2}}, "made with other settings: training.epochs"),
        ({"features": {"item": []}, "model": {"tower": [64, 8]}}, "made with other settings: model"),
        ({"top_n": {"n": 5}}, ""),  # of a table that is made of the model, not of the model
    ],
)
def test_other_settings_make_a_day_stale(root: Path, config_file: str, then: dict[str, Any], why: str) -> None:
    file = root / f"models/dt={DT}/_manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": then}))
    day = Days(load_config(config_file)).day(DT, ["vocab", "train"])
    assert (day.state, day.why) == ((STALE, why) if why else (PUBLISHED, ""))


def test_what_was_off_and_is_on_makes_a_day_stale(root: Path, config_file: str) -> None:
    file = root / f"models/dt={DT}/_manifest.json"
    then = load_config(config_file).model_dump(mode="json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"config": then}))
    for now, why in {
        "training.early_stopping=2": "made with other settings: training.early_stopping",
        "model.temperature=0.05": "made with other settings: model",
        "training.scratch_every=7": "",
    }.items():
        assert Days(load_config(config_file, [now])).day(DT, ["vocab", "train"]).why == why


def test_json_has_a_line_a_day(config_file: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(messages._VARIABLE, "{}")  # so that what the command leaves there is put back
    assert cli.main(["status", "--config", config_file, "--log-format", "json"]) == 0
    clicks, day = map(json.loads, capsys.readouterr().out.splitlines())
    assert "3 days of events" in clicks["message"]
    assert (day["stage"], day["row"]["day"], day["row"]["state"], day["row"]["seconds"]) == ("status", DT, MISSING, "6.0")


def test_a_day_is_judged_by_the_jobs_that_are_asked_for(root: Path, config_file: str) -> None:
    days = Days(load_config(config_file))
    assert days.day(DT, ["vocab", "train"]).state == PUBLISHED
    assert days.day(DT, ["vocab", "popular"]).why == "without popular"
    assert days.day("2024-01-04", ["events"]).state == MISSING
    assert days.known() == [DT]
