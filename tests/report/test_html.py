import base64
import re

import pytest

from recall_lib.config import Config
from recall_lib.report.html import funnel, loss_picture, measures, metrics_picture, number, render
from recall_lib.transforms.metrics import RECOMMENDERS, summarise

WAY = {f"{measure}@{k}": 0.1 for measure in ("hr", "recall", "ndcg", "coverage", "popularity") for k in (10, 50, 200)} | {
    "mrr": 0.1
}


def facts(**changes):
    return {
        "dt": "2024-03-09",
        "account": {"in": 1200, "kept": 800, "duplicate": 10, "not_clicked": 380, "not_in_window": 0, "rejected_time": 10},
        "account_days": ["2024-03-07", "2024-03-08"],
        "events": {"2024-03-07": 300, "2024-03-08": 400, "2024-03-09": 100},
        "stages": [
            {"name": "samples train", "bytes": 10, "seconds": 1.5, "facts": {"rows": 60, "targets": 640}},
            {"name": "top_n", "bytes": 20, "seconds": 2.5, "facts": {"rows": 61}},
        ],
        "training": [
            {"step": 1, "epoch": 0, "loss": 7.0},
            {"step": 2, "epoch": 0, "loss": 6.0},
            {"step": 2, "epoch": 1, "ndcg@10": 0.1},
        ],
        "metrics": {"protocol": "day", "status": "final", "users": 1234, "model": WAY | {"hr@10": 0.4321}, "popular": WAY},
        "config": Config().model_dump(mode="json"),
        "versions": {"recall": "0.1.0"},
    } | changes


def test_funnel_counts_from_the_log_to_the_table():
    counts = {what: n for what, n, _ in funnel(facts())}
    assert counts["rows (lines) of the log, read for 2024-03-07 to 2024-03-08"] == 1200
    assert counts["= kept"] == 1200 - sum(n for what, n in counts.items() if what.startswith("- "))
    assert counts["clicks the day's tables are made from"] == 700  # the day itself is not among them
    assert counts["targets, train"] == 640
    assert counts["users in top_n"] == 61
    assert max(share for _, _, share in funnel(facts())) == 1


def test_snapshot_counts_its_own_day():
    config = Config.model_validate({"input": {"ordering": "position"}}).model_dump(mode="json")
    counts = {what: n for what, n, _ in funnel(facts(config=config, events={"2024-03-09": 100}))}
    assert counts["clicks the day's tables are made from"] == 100


def test_page_shows_metrics_and_needs_nothing_else():
    page = render(facts())
    assert "0.4321" in page
    assert "1\u202f234" in page
    assert not re.search(r"<script|(?:src|href)=\"(?!data:)", page)
    assert len(re.findall(r'src="data:image/svg\+xml;base64,', page)) == 2
    assert page == render(facts())


def test_best_of_a_metric_is_marked_except_popularity():
    rows = {name: row for row in re.findall(r"<tr>.*?</tr>", render(facts())) for name in re.findall(r"<td>([\w@]+)</td>", row)}
    assert rows["hr@10"].count("best") == 1
    assert "best" not in rows["popularity@10"]


def test_everything_is_escaped():
    evil = "<b>&\"'"
    stage = {"name": evil, "bytes": 1, "seconds": 1.0, "facts": {evil: evil}}
    config = Config.model_validate({"input": {"path": evil}}).model_dump(mode="json")
    page = render(facts(dt=evil, stages=[stage], events={evil: 1}, account={"in": 1, evil: 1, "kept": 0}, config=config))
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


@pytest.mark.parametrize("metrics", [{}, {"protocol": "day", "status": "pending", "users": 0}])
def test_a_day_that_is_not_scored_or_trained_says_so(metrics):
    page = render(facts(metrics=metrics, training=[], stages=[], account={}, events={}))
    assert "Not scored yet" in page
    assert "No training log" in page


def test_a_scored_day_without_users_has_no_figures():
    head = {"protocol": "day", "status": "final", "users_new": 3, "users_repeat": 2, "users": 0}
    metrics = head | {name: summarise({}, {}, 5) for name in RECOMMENDERS}
    page = render(facts(metrics=metrics))
    assert "No user to score: 3 without history, 2 who" in page
    assert "hr@10" not in page
    assert metrics_picture(metrics) is None


def test_the_best_is_taken_over_what_is_known():
    rows = dict(measures({"model": summarise({}, {}, 5), "popular": WAY, "item_knn": WAY | {"hr@10": 0.2}}))
    assert rows["hr@10"] == [(None, False), (0.1, False), (0.2, True)]
    assert rows["coverage@10"] == [(0.0, False), (0.1, True), (0.1, True)]
    assert dict(measures({"model": summarise({}, {}, 5)}))["mrr"] == [(None, False)]


def test_pictures_are_svg_and_absent_without_numbers():
    assert loss_picture([{"step": 1, "epoch": 1, "ndcg@10": 0.1}]) is None
    assert metrics_picture({"status": "pending"}) is None
    picture = loss_picture(facts()["training"])
    assert picture
    assert b"<svg" in base64.b64decode(picture.split(",", 1)[1])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1234567, "1\u202f234\u202f567"),
        (0.123456, "0.1235"),
        (0.565, "0.5650"),
        (1029.27, "1029"),
        (True, "True"),
        ("x", "x"),
        (None, "–"),
    ],
)
def test_number(value, text):
    assert number(value) == text
