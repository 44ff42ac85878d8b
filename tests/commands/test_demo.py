from contextlib import nullcontext

import pytest

from recall_lib.commands import demo
from recall_lib.config import Config, Input
from recall_lib.process.errors import Busy, NoInput
from recall_lib.store import locks
from recall_lib.store.tables import Tables
from recall_lib.transforms.metrics import RECOMMENDERS, summarise


def config(root, **features):
    return Config.model_validate({"paths": {"root": str(root)}, "input": {"path": "somewhere"}, "features": features})


def test_a_user_is_shown_beside_the_list():
    lines = demo.users_lines("u1", ["a", "b"], ["c", "d", "e"], {"a": "Old news", "c": "Fresh news"})
    assert lines[0] == "user u1"
    assert "a Old news" in lines[2]
    assert lines[2].endswith("1 c Fresh news")
    assert lines[4].strip() == "3 e"
    assert len(lines) == 6


def test_metrics_are_a_table():
    way = dict.fromkeys(["hr@10", "hr@50", "hr@200", "ndcg@10", "mrr", "coverage@10"], 0.25)
    metrics = {"protocol": "day", "status": "final", "users": 7, "model": way | {"hr@10": 0.5}, "item_knn": way}
    lines = demo.metrics_lines(metrics, "2024-03-09")
    assert lines[2].split() == ["model", "0.5000", *["0.2500"] * 5]
    assert lines[3].split()[0] == "item_knn"
    lines = demo.metrics_lines(metrics | {"popular": way | {"coverage@10": None}}, "2024-03-09")
    assert lines[3].split() == ["popular", *["0.2500"] * 5, "–"]


def test_a_day_not_scored_says_so():
    assert "not scored yet" in demo.metrics_lines({"protocol": "day", "status": "pending", "users": 0}, "2024-03-09")[0]


def test_a_day_without_users_says_so():
    head = {"protocol": "day", "status": "final", "users_new": 3, "users_repeat": 2, "users": 0}
    lines = demo.metrics_lines(head | {name: summarise({}, {}, 5) for name in RECOMMENDERS}, "2024-03-09")
    assert lines == ["2024-03-09 has no user to score: 3 without history, 2 who came back to a seen item", ""]


def test_own_log_needs_a_day(capsys):
    assert demo.main(["--input", "somewhere"]) == 2
    assert "--dt" in capsys.readouterr().err


def test_bad_config_is_said_before_anything_runs(capsys):
    assert demo.main(["--config", "no/such.yaml"]) == 2
    assert "no/such.yaml" in capsys.readouterr().err


def test_a_missing_log_leaves_the_tables_where_they_are(tmp_path, capsys):
    root = tmp_path / "demo"
    with Tables(config(root)).publishing("events", "2024-03-01", facts={"rows": 0}) as staged:
        (staged.folder / "x").write_text("x")
    root_is_here = f"paths.root={root}"
    assert demo.main(["--input", str(tmp_path / "mistyped"), "--dt", "2024-03-02", "--set", root_is_here]) == NoInput.exit_code
    assert "no file matches" in capsys.readouterr().err
    assert (root / "events" / "dt=2024-03-01").is_dir()
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


def test_only_what_will_be_read_is_required(tmp_path):
    (tmp_path / "clicks.csv").write_text("user_id\n")
    settings = {"path": str(tmp_path), "clicks": "clicks.csv", "items": "items.csv"}
    with pytest.raises(NoInput, match=r"items\.csv"):
        demo.require_input(Input.model_validate(settings))
    demo.require_input(Input.model_validate(settings | {"format": "sessions", "ordering": "position"}))
    demo.require_input(Input.model_validate({"file_format": "table", "clicks": "db.clicks"}))


@pytest.mark.parametrize("same", [True, False])
def test_tables_of_another_log_are_moved_aside_and_the_log_stays(tmp_path, same):
    root = tmp_path / "demo"
    with Tables(config(root)).publishing("events", "2024-03-01", facts={"rows": 0}) as staged:
        (staged.folder / "x").write_text("x")
    (root / "log").mkdir()
    tables = Tables(config(root) if same else config(root, user=[{"name": "city"}]))
    with locks.held(str(root), "dt=2024-03-02", "other"), pytest.raises(Busy, match="run other") if not same else nullcontext():
        demo.move_aside(tables)
    with locks.held(str(root), "dt=2024-03-02", tables.run_id):
        demo.move_aside(tables)
        assert locks.holders(str(root)).keys() == {"dt=2024-03-02"}
    assert (root / "log").is_dir()
    assert (root / "events").exists() == same
    assert len(list(tmp_path.glob("demo-*/events/dt=2024-03-01"))) == (not same)


def test_a_demo_that_runs_already_has_the_day(tmp_path, capsys):
    (tmp_path / "clicks.csv").write_text("user_id\n")
    root = tmp_path / "demo"
    settings = ["--set", f"paths.root={root}", "--set", "input.clicks=clicks.csv", "--set", "input.items=null"]
    with locks.held(str(root), "dt=2024-03-02", "other"):
        assert demo.main(["--input", str(tmp_path), "--dt", "2024-03-02", *settings]) == Busy.exit_code
    assert "recall demo: dt=2024-03-02 is held by run other" in capsys.readouterr().err
