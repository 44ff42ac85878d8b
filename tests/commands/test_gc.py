"""`recall gc` removes what is past retention or left behind, and nothing else."""

import json
import os
import time
from pathlib import Path

import pytest

from recall_lib.commands import cli
from recall_lib.commands.gc import DEAD_AFTER, Garbage, garbage, remove
from recall_lib.process.errors import Busy
from recall_lib.store import locks
from recall_lib.store.folders import MANIFEST
from recall_lib.store.tables import Tables

DAYS = [f"2024-01-0{n}" for n in range(1, 6)]


@pytest.fixture
def tables(make_config):
    """Five days of three datasets; `latest` is the oldest model."""
    tables = Tables(make_config(retention={"events_days": 4, "tables_days": 2}))
    for dt in DAYS:
        for dataset, keys in (("events", {}), ("models", {}), ("samples", {"split": "train"}), ("samples", {"split": "test"})):
            with tables.publishing(dataset, dt, facts={"rows": 1}, **keys) as staged:
                (staged.folder / "x").write_text(dt)
    tables.point_to_latest("models", DAYS[0])
    (Path(tables.root) / "log").mkdir()
    return tables


def gc(tmp_path, *argv):
    return cli.main(["gc", "--config", str(tmp_path / "config.yaml"), *argv])


def files(tables):
    return {path.removeprefix(f"{tables.root}/") for path in tables.fs.find(tables.root, withdirs=True)}


def left(tables, dataset):
    return sorted(path.name.removeprefix("dt=") for path in Path(tables.root, dataset).glob("dt=*"))


def aged(path: Path, seconds: float):
    for one in (*path.rglob("*"), path):
        os.utime(one, (time.time() - seconds,) * 2)


def test_days_past_retention_go_and_latest_stays(tables, tmp_path, capsys):
    before = files(tables)
    assert gc(tmp_path, "--dry-run") == 0
    said = capsys.readouterr().out
    assert files(tables) == before
    assert gc(tmp_path) == 0
    assert capsys.readouterr().out == said.replace("would remove", "removes")
    assert (left(tables, "events"), left(tables, "models")) == ([DAYS[0], *DAYS[1:]], DAYS)
    assert left(tables, "samples") == [DAYS[0], *DAYS[3:]]
    assert "samples/dt=2024-01-02: past the 2 newest days" in said
    assert gc(tmp_path) == 0
    assert capsys.readouterr().out == "gc: nothing to remove\n"
    assert Path(tables.root, "log").is_dir()


def test_keep_days_takes_the_place_of_retention(tables, tmp_path):
    assert gc(tmp_path, "--keep-days", "1") == 0
    assert {left(tables, name) == [DAYS[0], DAYS[4]] for name in ("events", "models", "samples")} == {True}
    assert gc(tmp_path, "--keep-days", "0") == 2


def test_a_day_whose_model_serves_a_kept_one_stays(tables, tmp_path):
    with tables.publishing("models", DAYS[4], facts={"serving_dt": DAYS[2]}):
        pass
    with tables.publishing("models", DAYS[1], facts={"serving_dt": "2023-12-31"}):
        pass  # past its own retention: whom it was served by does not matter
    assert gc(tmp_path, "--keep-days", "1") == 0
    assert {tuple(left(tables, name)) for name in ("models", "samples")} == {(DAYS[0], DAYS[2], DAYS[4])}


def test_without_retention_no_day_goes(make_config, tables, tmp_path):
    make_config()
    before = files(tables)
    assert gc(tmp_path) == 0
    assert files(tables) == before


@pytest.mark.parametrize(("hours", "stays"), [(0.5, True), (DEAD_AFTER.total_seconds() / 3600 + 1, False)])
def test_staging_goes_when_nothing_has_changed_for_long(tables, tmp_path, hours, stays):
    staging = Path(tables.root, "_staging", "abc-top_n-dt=2024-01-05")
    (staging / "_temporary").mkdir(parents=True)
    aged(staging, 3600 * 24)
    (staging / "_temporary" / "part").write_text("x")
    aged(staging / "_temporary" / "part", 3600 * hours)
    for path in (staging / "_temporary", staging):
        os.utime(path, (time.time() - 3600 * 24,) * 2)
    assert gc(tmp_path) == 0
    assert staging.exists() == stays


def test_what_a_living_run_has_stays(tables, tmp_path):
    staging = Path(tables.root, "_staging", f"{tables.run_id}-models-dt=2024-01-02")
    staging.mkdir(parents=True)
    aged(staging, 3600 * 24)  # it trains, and has written nothing yet
    with locks.held(tables.root, f"dt={DAYS[1]}", tables.run_id):
        assert gc(tmp_path) == 0
    assert staging.exists()
    assert left(tables, "samples") == [*DAYS[:2], *DAYS[3:]]
    assert gc(tmp_path) == 0
    assert not staging.exists()


def test_a_retired_version_stays_while_readers_need_it(tables, tmp_path):
    retired = Path(tables.root, "_retired")
    retired.mkdir(exist_ok=True)
    day = Path(tables.path("samples", DAYS[4], split="test"))
    day.rename(retired / f"samples-dt={DAYS[4]}-split=test")  # killed between the renames
    assert gc(tmp_path) == 0
    assert tables.get("samples", DAYS[4], split="test").manifest["dt"] == DAYS[4]
    with tables.publishing("samples", DAYS[4], split="test"):
        pass
    (retired / f"samples-dt={DAYS[4]}-split=test").mkdir()
    assert gc(tmp_path) == 0
    assert not list(retired.iterdir())


def test_checkpoints_of_published_models_go(tables, tmp_path):
    checkpoints = Path(tables.root, "_checkpoints")
    checkpoints.mkdir()
    names = (DAYS[1], DAYS[2], "2024-01-09", "2023-01-09")
    old, new, other, past = (checkpoints / f"models-dt={dt}.safetensors" for dt in names)
    for path in (old, new, other, past):
        path.write_text("x")
    aged(old, 3600)
    os.utime(new, (time.time() + 60,) * 2)  # being trained again
    assert gc(tmp_path, "--set", "retention.models_days=5") == 0
    assert sorted(checkpoints.iterdir()) == [new, other], "of days that will be trained (on)"


def test_a_kill_half_way_leaves_nothing_that_looks_published(tables, monkeypatch):
    monkeypatch.setattr(tables.fs, "rm", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        remove(tables, Garbage(tables.path("samples", DAYS[1]), ""))
    assert tables.find("samples", DAYS[1], split="train") is None
    assert not [path for path in tables.fs.find(tables.path("samples", DAYS[1])) if path.endswith(MANIFEST)]
    assert json.loads(Path(tables.path("samples", DAYS[2], split="train"), MANIFEST).read_text())["dt"] == DAYS[2]


def test_events_stay_while_a_run_may_be_reading_them(tables, tmp_path, capsys):
    with locks.held(tables.root, "dt=2024-02-01", "other"):
        assert gc(tmp_path, "--keep-days", "1") == 0
    assert left(tables, "events") == DAYS
    assert left(tables, "samples") == [DAYS[0], DAYS[4]]
    assert gc(tmp_path, "--keep-days", "1") == 0
    assert left(tables, "events") == [DAYS[0], DAYS[4]]


def test_a_run_that_comes_between_the_look_and_the_removal_is_left_alone(tables, tmp_path, capsys, monkeypatch):
    from recall_lib.commands import gc as module

    monkeypatch.setattr(module.locks, "holders", lambda root: {})
    with locks.held(tables.root, f"dt={DAYS[1]}", "other"):
        assert gc(tmp_path) == 0
    assert left(tables, "samples") == [*DAYS[:2], *DAYS[3:]]
    assert f"gc: leaves it: dt={DAYS[1]} is held by run other" in capsys.readouterr().out


def test_events_stay_for_a_run_that_comes_between_the_look_and_the_removal(tables):
    found = [item for item in garbage(tables, 1) if item.day and item.day[0] == "events"]
    with locks.held(tables.root, "dt=2024-02-01", "other"):
        for item in found:
            with pytest.raises(Busy, match=r"dt=2024-02-01 is held by run other .*, which may be reading the events"):
                remove(tables, item)
    assert left(tables, "events") == DAYS


def test_what_another_gc_has_removed_is_no_error(tables):
    remove(tables, Garbage(tables.path("samples", "2023-01-01"), ""))


def test_a_day_that_goes_does_not_come_back_from_aside(tables, tmp_path, monkeypatch):
    """A kill after the first removal leaves the day, not the version that was aside; nor is a day only aside for ever."""
    retired = Path(tables.root, "_retired")
    for dt in DAYS[1:3]:
        (retired / f"samples-dt={dt}-split=test").mkdir(parents=True)
        (retired / f"samples-dt={dt}-split=test" / MANIFEST).write_text("{}")
    Path(tables.path("samples", DAYS[1], split="test"), MANIFEST).unlink()
    Path(tables.path("samples", DAYS[1], split="test"), "x").unlink()
    Path(tables.path("samples", DAYS[1], split="test")).rmdir()
    Path(tables.path("samples", DAYS[1], split="train")).rename(retired / f"samples-dt={DAYS[1]}-split=train")
    Path(tables.path("samples", DAYS[1])).rmdir()
    first, *_ = [item.path for item in garbage(tables) if "samples" in item.path]
    assert first.startswith(str(retired))
    assert gc(tmp_path) == 0
    assert not list(retired.iterdir())
    assert {dt for dt, _ in tables.publications("samples")} == {DAYS[0], *DAYS[3:]}


@pytest.mark.parametrize(("events_days", "ingested"), [(None, [DAYS[0], *DAYS[2:4]]), (2, DAYS[2:4]), (1, DAYS[3:4])])
def test_a_pipeline_does_not_bring_back_what_is_past_retention(make_config, events_days, ingested):
    from jobs.events import _days
    from recall_lib.day.context import Context

    ctx = Context(make_config(retention={"events_days": events_days}), DAYS[3])
    tables = ctx.tables
    with tables.publishing("events", DAYS[1], facts={"rows": 1}) as staged:
        (staged.folder / "x").write_text("x")
    log = dict.fromkeys(DAYS, 10)  # clicks of each day
    assert _days(ctx, log, ()) == ingested
    assert _days(ctx, log, DAYS[:1]) == sorted({DAYS[0], *ingested}), "what is asked for by name is ingested"
