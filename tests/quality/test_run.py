"""The table of `make quality`: its rows are valid, one training serves two of them, and files and table say what was found."""

import json
from dataclasses import replace

import pytest

from recall_lib.config import load_config
from recall_lib.process.command import parser
from recall_lib.store.tables import Tables
from recall_lib.transforms.metrics import summarise
from tests.quality import run
from tests.quality.run import Measure, Row

BLOCK = summarise({1: 2, 30: 1, 0: 1}, {}, items=50)
BEST = Row("best", "log", "conf/ml1m.yaml", "2003-02-28", (Measure("hr@10", "theirs .1", 0.25, 0.75), Measure("hr@50")))
AGAIN = Row("again", "log", "conf/ml1m.yaml", "2003-02-28", (Measure("hr@10"),), ("top_n.filter_seen=false",), "best")


@pytest.mark.parametrize("row", run.ROWS, ids=lambda row: row.name)
def test_rows_fit_the_settings_and_the_metrics(row, tmp_path):
    config = run.settings(row, tmp_path)
    assert config.input.path == str(tmp_path / row.data)
    assert {one.key for one in row.measures} <= BLOCK.keys()
    assert config.evaluation.protocol == ("day" if row.data == "globo" else "last_click")
    filters = row.name in ("ml1m_best", "ml1m_30min", "beauty_best") or row.data == "globo"
    assert config.top_n.filter_seen == filters
    if row.model_of:
        trained = next(one for one in run.ROWS if one.name == row.model_of)
        assert (row.data, row.config, row.dt) == (trained.data, trained.config, trained.dt)
        assert config.paths == run.settings(trained, tmp_path).paths


def test_f_with_more_is_f_but_for_what_it_says(tmp_path):
    f, more = (load_config(str(run.ROOT / "conf" / f"{name}.yaml")).model_dump() for name in ("fun_rec", "fun_rec_255"))
    sections = f.keys() - {"seed"}
    changed = {f"{section}.{key}" for section in sections for key in f[section] if f[section][key] != more[section][key]}
    assert changed == {
        "features.item_id", "features.user", "samples.max_history", "samples.max_targets_per_user", "model.tower",
        "training.num_negatives", "training.epochs", "training.early_stopping", "paths.root",
    }  # fmt: skip


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """The jobs that were run; in their place, what they publish is published."""
    ran = []

    def fake(command, cwd):
        job, *rest = command[command.index("recall_lib.commands.cli") + 1 :]
        args = parser(job, None, "--config", "--dt").parse_args(rest)
        tables = Tables(load_config(args.config, args.overrides))
        if job == "pipeline":
            facts = {"seconds": 3.5, "steps": 7, "targets": 70, "init": "scratch"}
            with tables.publishing("models", args.dt, facts=facts) as staged:
                (staged.folder / "model.json").write_text("{}")
        with tables.publishing("metrics", args.dt) as staged:
            (staged.folder / "metrics.json").write_text(json.dumps({"users": 4, "model": BLOCK}))
        ran.append((job, tables.config.top_n.filter_seen))
        return 0

    monkeypatch.setattr(run, "FOLDER", tmp_path / "quality")
    monkeypatch.setattr(run, "ROWS", (BEST, AGAIN))
    monkeypatch.setattr(run.subprocess, "call", fake)
    return ran


def test_a_model_scored_twice_is_trained_once(commands, tmp_path):
    for row in (BEST, AGAIN, AGAIN):
        run.measure(row, tmp_path)
    assert commands == [("pipeline", True), ("metrics", False), ("metrics", False)]


def test_a_row_alone_trains_the_model_it_scores(commands, tmp_path):
    run.measure(AGAIN, tmp_path)
    assert commands == [("pipeline", True), ("metrics", False)]
    run.measure(AGAIN, tmp_path / "another log")
    assert commands[2:] == commands[:2]


def test_tables_of_an_earlier_run_do_not_shorten_this_one(commands, tmp_path):
    left = tmp_path / "quality" / "work" / "best" / "events"
    left.mkdir(parents=True)
    run.measure(BEST, tmp_path)
    assert not left.exists()


def test_the_file_says_how_to_make_it_again(commands, tmp_path):
    found = run.measure(AGAIN, tmp_path)
    assert json.loads((tmp_path / "quality" / "again.json").read_text()) == found
    assert (found["users"], found["model"], found["config"]) == (4, BLOCK, "conf/ml1m.yaml")
    assert found["overrides"] == ["top_n.filter_seen=false"]
    assert found["settings"]["top_n"]["filter_seen"] is False
    assert found["seconds"] >= 0
    assert found["machine"]["cores_used"] >= 1


def test_a_failed_command_ends_it(commands, tmp_path, monkeypatch):
    monkeypatch.setattr(run.subprocess, "call", lambda command, cwd: 3)
    with pytest.raises(SystemExit, match="best ended with exit code 3"):
        run.measure(BEST, tmp_path)


def test_table():
    result = {"model": BLOCK, "seconds": 61.2, "training": {"seconds": 20.4}}
    lines = run.table([BEST, AGAIN], dict.fromkeys(("best", "again"), result)).splitlines()
    assert [line.split()[-5:] for line in lines[1:]] == [
        ["0.2500", "0.7500", "0.5000", "61", "20"],
        ["-", "-", "0.7500", "61", "20"],
        ["-", "-", "0.5000", "61", "20"],
    ]
    assert len({line.index(word) for line, word in zip(lines, ("ours", "0.5000", "0.7500", "0.5000"), strict=True)}) == 1


@pytest.mark.parametrize(("share", "seconds", "verdict"), [(0.98, 5.0, "kept"), (0.97, 5.0, "MISSED"), (1.1, 5.1, "MISSED")])
def test_a_row_beside_another(share, seconds, verdict):
    row = replace(AGAIN, beside="best")
    found = {
        "best": {"model": {"hr@10": 0.5}, "training": {"seconds": 10.0}},
        "again": {"model": {"hr@10": 0.5 * share}, "training": {"seconds": seconds}},
    }
    said = run.comparison(row, found)
    assert said.startswith(f"again: {share:.3f} of best's hr@10 in {seconds / 10:.3f} of its training time")
    assert said.endswith(f"{verdict})")


def test_the_day_before_is_trained_first_and_from_scratch(monkeypatch, tmp_path):
    ran = []
    monkeypatch.setattr(run, "FOLDER", tmp_path / "quality")
    monkeypatch.setattr(run.subprocess, "call", lambda command, cwd: ran.append(command) or 1)
    row = next(row for row in run.ROWS if row.after)
    with pytest.raises(SystemExit):
        run.measure(row, tmp_path)
    (command,) = ran
    assert command[3] == "backfill"
    assert [command[command.index(name) + 1] for name in ("--start", "--end")] == ["2017-10-15", "2017-10-16"]
    assert command.index("training.init=yesterday") < command.index("training.init=scratch"), "the last one counts"
    assert {row.beside for row in run.ROWS} <= {None, *(row.name for row in run.ROWS)}


def test_data_must_be_there(monkeypatch, tmp_path):
    monkeypatch.setattr(run.sys, "argv", ["quality", "--data", str(tmp_path), "--only", "globo_day"])
    with pytest.raises(SystemExit, match=r"no folder .*globo: give DATA"):
        run.main()
