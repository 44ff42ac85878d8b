import pytest

from recall_lib import demo
from recall_lib.config import Config
from recall_lib.io.tables import Tables


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


def test_a_day_not_scored_says_so():
    assert "not scored yet" in demo.metrics_lines({"protocol": "day", "status": "pending", "users": 0}, "2024-03-09")[0]


def test_own_log_needs_a_day(capsys):
    assert demo.main(["--input", "somewhere"]) == 2
    assert "--dt" in capsys.readouterr().err


def test_bad_config_is_said_before_anything_runs(capsys):
    assert demo.main(["--config", "no/such.yaml"]) == 2
    assert "no/such.yaml" in capsys.readouterr().err


@pytest.mark.parametrize("same", [True, False])
def test_tables_of_another_log_are_moved_aside_and_the_log_stays(tmp_path, same):
    root = tmp_path / "demo"
    with Tables(config(root)).publish_files("events", "2024-03-01") as folder:
        (folder / "x").write_text("x")
    (root / "log").mkdir()
    demo.move_aside(config(root) if same else config(root, user=[{"name": "city"}]))
    assert (root / "log").is_dir()
    assert (root / "events").exists() == same
    assert len(list(tmp_path.glob("demo-*/events/dt=2024-03-01"))) == (not same)
