"""metrics.json against loops over the log, for both protocols."""

import json
import math
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from recall_lib.process.errors import DataRefused
from recall_lib.retrieval.baselines import EASE_LAMBDA
from recall_lib.store import schemas
from recall_lib.store.tables import Tables
from recall_lib.transforms import metrics as transform
from tests.inference.conftest import DT, LAST_SECOND, make_log, publish_untrained, read_vocab, run_job, ship

CUTOFFS = (10, 50, 200)
DAY_LOG = [  # first clicks of the day: a repeat, one outside the vocabulary, new users, a user without known clicks
    f"u1,i3,{LAST_SECOND + 61},1,c1,t1",
    f"u1,i4,{LAST_SECOND + 60},1,c1,t1",
    *(f"u{user},i{user % 30},{LAST_SECOND + 100 + user},1,c{user % 3},t1" for user in range(2, 30)),
    f"u31,brand new,{LAST_SECOND + 5},1,c1,t1",
    f"new,i5,{LAST_SECOND + 5},1,c1,t1",
    f"lonely,i5,{LAST_SECOND + 5},1,c1,t1",
    f"heavy,odd2,{LAST_SECOND + 5},1,c1,t1",
]


def read(lines):
    """{user: [(time, item)] in order}"""
    users = {}
    for line in lines:
        user, item, time, *_ = line.split(",")
        users.setdefault(user, []).append((int(time), item))
    return {user: sorted(own) for user, own in users.items()}


def split(protocol):
    """(training clicks, popular's counts, {user: (history, target)}, known items)."""
    users = read(make_log()[1:])
    if protocol == "last_click":
        training = {user: own[:-2] if len(own) > 2 else own[:1] for user, own in users.items()}
        tests = {user: (own[:-1], own[-1][1]) for user, own in users.items() if len(own) > 1}
    else:
        day = {user: own[0][1] for user, own in read(DAY_LOG).items()}
        training, tests = users, {user: (users[user], item) for user, item in day.items() if user in users}
    return training, tests


def expected(protocol, counts, score_model, hours, filter_seen):
    """metrics.json by the definition; `counts`: the vocabulary's training counts."""
    training, tests = split(protocol)
    if protocol == "day" and filter_seen:
        tests = {user: (own, target) for user, (own, target) in tests.items() if target not in {item for _, item in own}}
    recent = Counter(item for own in training.values() for time, item in own if time > LAST_SECOND - hours * 3600)
    columns = {item: {user for user, own in training.items() if item in {i for _, i in own}} for item in counts}

    def cosine(i, j):
        both = len(columns[i] & columns[j])
        return both / math.sqrt(len(columns[i]) * len(columns[j])) if both else 0

    weights = ease_weights(training, sorted(counts))
    results = {name: [] for name in ("model", "popular", "recent_popular", "item_knn", "ease")}
    for user, (own, target) in tests.items():
        known = [item for _, item in own if item in counts]
        knn = {i: np.float32(sum(cosine(i, j) for j in known[-10:])) for i in counts}  # whatever window_size
        ease = {i: np.float32(sum(weights[j][i] for j in known[-10:])) for i in counts}
        scores = {"popular": counts, "recent_popular": recent}
        scores |= {"item_knn": knn, "ease": ease} if known else {"item_knn": counts, "ease": counts}
        scores["model"] = score_model[user] if known else counts
        for name, score in scores.items():
            rest = [item for item in counts if not (filter_seen and item in known)]
            results[name].append((sorted(rest, key=lambda i, s=score: (-s[i], i.encode())), target))
    return len(tests), {name: summarise(rows, counts) for name, rows in results.items()}


def ease_weights(training, items):
    """{item: {item: weight}}: I - P diag(1 / diag P) from the users' sets."""
    clicked = np.array([[item in {i for _, i in own} for item in items] for own in training.values()], np.float64)
    inverse = np.linalg.inv(clicked.T @ clicked + EASE_LAMBDA * np.eye(len(items)))
    weights = (np.eye(len(items)) - inverse / np.diag(inverse)).astype(np.float32)
    return {item: dict(zip(items, map(float, row), strict=True)) for item, row in zip(items, weights, strict=True)}


def summarise(rows, counts):
    ranks = [ranking.index(target) + 1 if target in ranking else math.inf for ranking, target in rows]
    metrics = {"mrr": sum(1 / rank for rank in ranks) / len(ranks)}
    for k in CUTOFFS:
        shown = [item for ranking, _ in rows for item in ranking[:k]]
        metrics[f"hr@{k}"] = metrics[f"recall@{k}"] = sum(rank <= k for rank in ranks) / len(ranks)
        metrics[f"ndcg@{k}"] = sum(1 / math.log2(1 + rank) for rank in ranks if rank <= k) / len(ranks)
        metrics[f"coverage@{k}"] = len(set(shown)) / len(counts)
        metrics[f"popularity@{k}"] = sum(counts[item] for item in shown) / len(shown)
    return metrics


def model_scores(ctx):
    """{user: {item: score}}: the exported vectors' inner product for the test rows."""
    from recall_lib.inference.vectors import user_vectors

    rows = ctx.tables.get("samples", DT, split="test").read(schemas.segments(ctx.config.features))
    model = ship(ctx, "models")
    users = rows.mapInArrow(lambda batches: user_vectors(batches, model=model), schemas.USER_VECTORS).collect()
    items = ctx.tables.get("vectors", DT, kind="item").read(schemas.ITEM_VECTORS).collect()
    table = np.array([row["vector"] for row in items], np.float64)
    found = {}
    for row in users:
        scores = (table @ np.array(row["vector"], np.float64)).astype(np.float32)
        found[row["user_id"]] = dict(zip((item["item_id"] for item in items), scores, strict=True))
    return found


def metrics_of(ctx):
    return json.loads((Path(ctx.tables.get("metrics", DT).folder) / "metrics.json").read_text())


def counts_of(ctx):
    return {row["value"]: row["count"] for row in read_vocab(ctx).collect() if row["feature"] == "item_id" and row["value"]}


def assert_metrics(ctx, protocol, hours=24.0, filter_seen=True, **head):
    found = metrics_of(ctx)
    users, blocks = expected(protocol, counts_of(ctx), model_scores(ctx), hours, filter_seen)
    assert {name: found[name] for name in ("protocol", "status", "users", "users_new", "users_repeat")} == {
        "protocol": protocol, "status": "final", "users": users, **head
    }  # fmt: skip
    assert found.keys() - {"protocol", "status", "users", "users_new", "users_repeat"} == blocks.keys()
    for name, block in blocks.items():
        assert found[name] == pytest.approx(block, rel=1e-9), name


@pytest.mark.parametrize("filter_seen", [True, False])
def test_last_click(prepared, filter_seen):
    ctx = prepared(evaluation={"recent_hours": 30.0}, top_n={"filter_seen": filter_seen})
    run_job(ctx, "samples")
    run_job(ctx, "metrics")
    assert_metrics(ctx, "last_click", 30.0, filter_seen, users_new=0, users_repeat=0)


def test_a_large_catalogue_has_no_ease(prepared, monkeypatch):
    monkeypatch.setattr(transform, "MOST_EASE_ITEMS", 27)
    ctx = prepared()
    run_job(ctx, "samples")
    run_job(ctx, "metrics")
    assert metrics_of(ctx).keys() >= {"model", "item_knn"}
    assert "ease" not in metrics_of(ctx)


def test_day_waits_for_its_clicks_and_is_then_scored(prepared):
    ctx = prepared(evaluation={"protocol": "day", "recent_hours": 5.0})
    for job in ("vocab", "samples"):
        run_job(ctx, job)
    run_job(ctx, "metrics")
    assert metrics_of(ctx) == {"protocol": "day", "status": "pending", "users": 0, "users_new": 0, "users_repeat": 0}
    with open(Path(ctx.config.input.path) / "clicks.csv", "a", encoding="utf-8") as file:
        file.write("\n".join(DAY_LOG) + "\n")
    run_job(ctx, "events")
    with pytest.raises(DataRefused, match="models/dt=2024-03-05 was trained on another vocabulary"):
        run_job(ctx, "metrics")  # prepared for last_click
    publish_untrained(ctx)
    for job in ("vectors", "index", "metrics"):
        run_job(ctx, job)
    repeats = sum(item in {i for _, i in read(make_log()[1:]).get(user, [])} for user, ((_, item), *_) in read(DAY_LOG).items())
    assert_metrics(ctx, "day", 5.0, users_new=1, users_repeat=repeats)
    first = metrics_of(ctx)
    spark = ctx.config.spark.model_copy(update={"partitions": 1})
    run_job(replace(ctx, config=ctx.config.model_copy(update={"spark": spark})), "metrics")
    assert metrics_of(ctx) == first, "another partitioning changes no figure"
    assert Tables(ctx.config).get("metrics", DT).manifest["users"] == first["users"]
