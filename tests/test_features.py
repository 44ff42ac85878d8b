"""Features of every kind from a raw log to samples, a model and lists, against a slow reading of what the README says."""

from __future__ import annotations

import importlib
import json
import random
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pytest

from recall_lib.commands import dump, query
from recall_lib.config import Config, load_config
from recall_lib.day.context import Context
from recall_lib.store import schemas

DT = "2024-03-01"
BEGIN = int(datetime(2024, 2, 28, tzinfo=UTC).timestamp())
WEIGHTS = {"view": 1.0, "buy": 3.0}
CONFIG: dict[str, Any] = {
    "input": {
        "clicks": "log.jsonl",
        "user_table": "users.jsonl",
        "items": "items.csv",
        "columns": {"user_id": "who", "item_id": "what", "event_ts": "when", "click": None},
        "item_columns": {"item_id": "what"},
        "events": {"column": "kind", "click": ["view", "buy"], "impressions": ["show"], "weights": {"buy": 3}},
    },
    "features": {
        "item_id": {"min_count": 1, "dim": 8},
        "user": [{"name": "interests", "column": "likes", "multi": True, "separator": "|", "min_count": 1, "dim": 4}],
        "time": [{"name": "hour", "dim": 2}, {"name": "weekday", "dim": 2}],
        "numbers": [
            {"name": "age"},
            {"name": "income", "form": "buckets", "buckets": 4, "dim": 2},
            {"name": "price", "of": "item", "form": "raw"},
        ],
        "sequences": [
            {"name": "searches", "events": ["search"], "column": "query", "tokens": "words", "window_size": 2, "min_count": 1},
            {"name": "devices", "column": "device", "window_size": 3, "min_count": 1, "pooling": "encoder"},
        ],
    },
    "samples": {"window_size": 4, "negatives": "impressions", "negatives_per_positive": 2},
    "model": {"tower": [8], "encoder_dim": 8},
    "training": {"negatives": "samples", "batch_size": 32, "learning_rate": 0.01},
    "evaluation": {"protocol": "day"},
    "top_n": {"n": 5},
}
QUERIES = ["Red Shoes", "red", "blue  hat", None]


def make_log(seed: int = 3) -> tuple[list[dict], list[dict], dict[str, str]]:
    """Events, users and items: few values, equal times, unknown numbers, users whom the user table lacks."""
    rng = random.Random(seed)
    events = []
    for u in range(24):
        for _ in range(rng.randint(1, 40)):
            event: dict[str, Any] = {"who": f"u{u}", "when": BEGIN + 600 * rng.randrange(12 * 24)}
            event["kind"] = rng.choice(["view", "view", "buy", "search", "show", "show", "noise"])
            if event["kind"] == "search":
                event["query"] = rng.choice(QUERIES)
            elif event["kind"] != "noise":
                event["what"] = f"i{int(12 * rng.random() ** 2)}"
                event["device"] = rng.choice(["phone", "tv", None])
            events.append(event)
    users = [
        {"who": f"u{u}", "likes": rng.choice(["art|news", "news", ""]), "age": rng.choice([20, 30.5, None]), "income": u * 10}
        for u in range(20)
    ]
    return events, users, {f"i{n}": rng.choice(["1.5", "7", ""]) for n in range(10)}


@pytest.fixture(scope="module")
def published(spark, tmp_path_factory):
    """The log and its days up to the samples, and what the log is made of."""
    folder = tmp_path_factory.mktemp("features")
    events, users, items = make_log()
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, events)))
    (folder / "users.jsonl").write_text("\n".join(map(json.dumps, users)))
    (folder / "items.csv").write_text("\n".join(["what,price", *(f"{item},{price}" for item, price in items.items())]))
    file = folder / "config.yaml"
    sections = {**CONFIG, "input": {**CONFIG["input"], "path": str(folder)}, "paths": {"root": str(folder / "root")}}
    file.write_text(json.dumps(sections))
    config = load_config(str(file))
    for day in ("2024-02-28", "2024-02-29"):
        run(config, day, "events")
    return run(config, DT, "vocab", "samples"), events, users, items


def run(config: Config, day: str, *jobs: str) -> Context:
    ctx = Context(config, day, "test")
    for job in jobs:
        importlib.import_module(f"jobs.{job}").run(ctx)
    return ctx


def place(values: list[float], value: float | None) -> float | None:
    """The middle of a number's place among the percentiles of the clicks."""
    if value is None:
        return None
    ordered = sorted(values)
    grid = [ordered[max(0, -(-q * len(ordered) // 100) - 1)] for q in range(101)]
    first, last = bisect_left(grid, value), bisect_right(grid, value) - 1
    assert first <= last, "the test's numbers are numbers of clicks"
    return (first + last) / 2 / 100


def is_click(event: dict) -> bool:
    return event["kind"] in WEIGHTS


def words(query: str) -> list[str]:
    own = query.lower().split()
    return own + [" ".join(pair) for pair in pairwise(own)]


def test_samples_hold_what_was_known_before_each_target(published) -> None:
    ctx, events, users, items = published
    table = {user["who"]: user for user in users}
    mine: dict[str, list[dict]] = defaultdict(list)
    for event in {json.dumps(e, sort_keys=True): e for e in events}.values():
        mine[event["who"]].append(event)
    samples = {split: list(dump.samples(ctx.config, DT, split)) for split in ("train", "validation")}
    validates = {sample["user_id"] for sample in samples["validation"]}
    clicks = {
        user: sorted((e for e in own if e["kind"] in WEIGHTS), key=lambda e: (e["when"], e["what"]))
        for user, own in mine.items()
    }
    # Clicks of one time and item have no order that this test knows.
    unsure = {user for user, own in clicks.items() if len({(e["when"], e["what"]) for e in own}) < len(own)}
    trained = {user: own[:-1] if user in validates else own for user, own in clicks.items()}
    ages = [table[u]["age"] for u, own in trained.items() for _ in own if u in table and table[u]["age"] is not None]
    incomes = [table[u]["income"] for u, own in trained.items() for _ in own if u in table]
    expected = []
    for user, own in trained.items():
        for nth, target in enumerate(own):
            if not nth:
                continue
            known = table.get(user, {})
            history = own[max(0, nth - 4) : nth]
            asked = sorted(
                (e["when"], e["query"])
                for e in mine[user]
                if e["kind"] == "search" and e.get("query") and e["when"] < target["when"]
            )
            income = None if "income" not in known else min(3, int(place(incomes, known["income"]) * 4))
            at = datetime.fromtimestamp(target["when"], UTC)
            expected.append(
                {
                    "user_id": user,
                    "history": [e["what"] for e in history],
                    "target": target["what"],
                    "weight": WEIGHTS[target["kind"]],
                    "interests": known["likes"].split("|") if known.get("likes") else [None],
                    "hour": at.hour,
                    "weekday": at.weekday(),
                    "age": place(ages, known.get("age")),
                    "income": income,
                    "price": [float(items[e["what"]]) if items.get(e["what"]) else None for e in history],
                    "asked": len({when for when, _ in asked}) == len(asked) and [t for _, q in asked[-2:] for t in words(q)],
                    "clicked_before": len(
                        {(e["when"], e["device"]) for e in own if e["when"] < target["when"] and e.get("device")}
                    ),
                }
            )
    found = []
    for sample in samples["train"]:
        features = sample["features"]
        found.append({name: sample[name] for name in ("user_id", "history", "target", "weight")} | features)
    key = lambda s: json.dumps([s["user_id"], s["history"], s["target"], s["hour"], s["weight"]])  # noqa: E731
    assert Counter(map(key, found)) == Counter(map(key, expected))
    by_key = defaultdict(list)
    for sample in found:
        by_key[key(sample)].append(sample)
    checked = 0
    for sample in expected:
        twins = by_key[key(sample)]
        if len(twins) > 1 or sample["user_id"] in unsure:
            continue
        (twin,) = twins
        for name in ("interests", "weekday", "income", "price"):
            assert twin[name] == sample[name], name
        assert twin["age"] == pytest.approx(sample["age"])
        if sample["asked"] is not False:
            assert twin["searches"] == sample["asked"]
            checked += bool(sample["asked"])
        assert len(twin["devices"]) == min(3, sample["clicked_before"])
    assert checked > 20, "the log must say something"


def test_negatives_are_items_that_the_user_was_shown(published) -> None:
    ctx, events, *_ = published
    shown, clicked = defaultdict(set), defaultdict(set)
    for event in events:
        if event["kind"] == "show":
            shown[event["who"]].add(event["what"])
    samples = list(dump.samples(ctx.config, DT, "train"))
    for sample in samples:
        clicked[sample["user_id"]] |= {*sample["history"], sample["target"]}
    from_shown = drawn = 0
    for sample in samples:
        user = sample["user_id"]
        assert not set(sample["negatives"]) & clicked[user]
        from_shown += sum(item in shown[user] for item in sample["negatives"])
        drawn += sum(item not in shown[user] for item in sample["negatives"])
    assert from_shown
    assert drawn


def test_a_model_learns_from_them_and_makes_lists(published) -> None:
    config = published[0].config
    model = config.model.model_copy(update={"encoder": "attention"})
    ctx = run(config.model_copy(update={"model": model}), DT, "train", "vectors", "index", "popular", "top_n")
    rows = ctx.tables.get("top_n", DT).read(schemas.TOP_N).collect()
    assert {row["source"] for row in rows} == {"model"}
    assert all(len(row["items"]) <= 5 for row in rows)
    source, items = query.after_history(ctx.tables, DT, ["i0", "i1"], 5)
    assert (source, len(items)) == ("model", 5)
