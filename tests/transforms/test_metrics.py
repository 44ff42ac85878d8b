"""Metrics from counts against metrics from lists."""

import math
import random

import pytest

from recall_lib.transforms import metrics as transform


def test_summarise_against_the_definition():
    rng = random.Random(0)
    ranks = [rng.choice([0, 1, 2, 10, 11, 50, 51, 199, 200, 201, 5_000]) for _ in range(500)]
    counts = {rank: ranks.count(rank) for rank in set(ranks)}
    found = transform.summarise(counts, {10: (7, 100, 450), 50: (9, 200, 500), 200: (20, 300, 600)}, items=40)
    for k in transform.CUTOFFS:
        hits = [rank for rank in ranks if 1 <= rank <= k]
        assert found[f"hr@{k}"] == found[f"recall@{k}"] == len(hits) / 500
        assert found[f"ndcg@{k}"] == pytest.approx(sum(1 / math.log2(1 + rank) for rank in hits) / 500)
    assert found["mrr"] == pytest.approx(sum(1 / rank for rank in ranks if rank) / 500)
    assert [found[f"coverage@{k}"] for k in transform.CUTOFFS] == [7 / 40, 9 / 40, 0.5]
    assert [found[f"popularity@{k}"] for k in transform.CUTOFFS] == [4.5, 2.5, 2.0]


def test_a_perfect_and_a_hopeless_ranking():
    perfect = transform.summarise({1: 3}, {}, items=5)
    assert {perfect[name] for name in ("hr@10", "ndcg@10", "mrr", "recall@200")} == {1.0}
    hopeless = transform.summarise({0: 3}, {}, items=5)
    assert {hopeless[name] for name in ("hr@200", "ndcg@200", "mrr")} == {0.0}


def test_nobody_to_score_gives_no_figures():
    empty = transform.summarise({}, {}, items=5)
    assert empty["hr@10"] is empty["mrr"] is empty["popularity@10"] is None


def test_report_adds_up_partial_tallies(spark):
    partial = [
        ("model", 0, 1, 2),
        ("model", 0, 0, 1),
        ("model", 0, 1, 4),
        ("model", 10, 5, 3),
        ("model", 10, 5, 1),
        ("model", 10, 6, 4),
    ]
    tally = transform.add_up(spark.createDataFrame(partial, transform.TALLY).repartition(3))
    items = spark.createDataFrame([(5, 100), (6, 20), (7, 1)], "item_index int, count long")
    found = transform.report({"protocol": "day"}, tally, items, size=3)
    assert (found["protocol"], found["users"]) == ("day", 7)
    assert found["model"]["hr@10"] == 6 / 7
    assert found["model"]["coverage@10"] == 2 / 3
    assert found["model"]["popularity@10"] == (4 * 100 + 4 * 20) / 8
    assert found["item_knn"]["hr@10"] is None


def test_ease_is_for_small_catalogues():
    assert transform.recommenders(transform.MOST_EASE_ITEMS) == transform.RECOMMENDERS
    for items in (0, transform.MOST_EASE_ITEMS + 1):
        assert set(transform.RECOMMENDERS) - set(transform.recommenders(items)) == {transform.EASE}
