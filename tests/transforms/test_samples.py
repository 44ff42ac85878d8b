"""The samples of both presets' window rules, and more, against the oracle."""

from __future__ import annotations

import json
import math
import random
import shutil
from collections import Counter, defaultdict
from functools import partial

import pytest

import jobs.events
from recall_lib.commands import dump
from recall_lib.config import Config
from recall_lib.day.context import Context
from tests.conftest import SPARK, write_lines
from tests.oracle import Click, samples

DT = "2024-03-01"
FEATURES = {
    "item_id": {"min_count": 2, "dim": 8},
    "user": [{"name": "user_id", "min_count": 4, "dim": 8}, {"name": "city", "min_count": 2, "dim": 8}],
    "item": [{"name": "category", "min_count": 3, "dim": 8}, {"name": "tags", "min_count": 3, "dim": 8, "multi": True}],
}


def random_clicks(seed: int, *, users: int = 40, items: int = 30, most: int = 30) -> list[Click]:
    """Skewed items, equal times (ties), cities that change, missing values, lists of tags."""
    rng = random.Random(seed)
    clicks = []
    for u in range(users):
        for n in range(rng.choice([1, 2, 3, rng.randint(4, most)])):
            item = int(items * rng.random() ** 2)
            tags = [f"t{(item + j) % 7}" for j in range(item % 4)]
            city = rng.choice(["北京", "Köln", "x", None]) if rng.random() < 0.3 else f"c{u % 5}"
            features = {"category": f"k{item % 6}" if item % 5 else None, "tags": tags}
            clicks.append(Click(f"user {u}", f"i{item}", n // 2 * 100_000.0, {"city": city}, features))
    return list({(c.user, c.item, c.time): c for c in clicks}.values())


def write_rows(write_log, clicks: list[Click]) -> None:
    rows = ["who,when,what,city,click"]
    rows += [f"{c.user},{int(c.time) + 1_700_000_000},{c.item},{c.user_features['city'] or ''},1" for c in clicks]
    random.Random(7).shuffle(body := rows[1:])
    write_log("clicks.csv", [rows[0], *body])
    items = {c.item: c.item_features for c in clicks}
    write_log(
        "items.csv", ["what,category,tags", *(f"{i},{f['category'] or ''},{'_'.join(f['tags'])}" for i, f in items.items())]
    )


def write_sessions(write_log, clicks: list[Click]) -> list[Click]:
    """Writes lines; returns the clicks as they then are: positions for times, one city a user."""
    users: dict[str, list[Click]] = defaultdict(list)
    for click in clicks:
        users[click.user].append(click)
    lines, positioned = [], []
    for user, own in users.items():
        city = own[0].user_features["city"]
        told = [f"{c.item}:{c.item_features['category'] or ''}:{'_'.join(c.item_features['tags'])}" for c in own]
        lines.append(f"{user}\tp\t{city or 'NULL'}\t{';'.join(told)}\tphone")
        positioned += [Click(user, c.item, n, {"city": city}, c.item_features) for n, c in enumerate(own)]
    write_log("sessions.txt", lines)
    return positioned


def dumped(config, split: str) -> list[dict]:
    return list(dump.samples(config, DT, split))


def key(sample: dict) -> str:
    return json.dumps({**sample, "example_age": round(sample["example_age"], 4)}, sort_keys=True, ensure_ascii=False)


def assert_equal_samples(config, clicks: list[Click], since: float = -math.inf) -> None:
    for split, expected in samples(clicks, config, since=since).items():
        found = [{k: v for k, v in s.items() if k != "negatives"} for s in dumped(config, split)]
        assert Counter(map(key, found)) == Counter(map(key, expected)), split
        assert split == "test" or expected, "the log must say something"


ROWS = {
    "clicks": "clicks.csv",
    "items": "items.csv",
    "columns": {"user_id": "who", "item_id": "what", "event_ts": "when"},
    "item_columns": {"item_id": "what"},
}


@pytest.fixture(scope="module")
def ingested(spark, tmp_path_factory):
    """(clicks, root): random clicks, and a root with the events of all their days."""
    folder, clicks = tmp_path_factory.mktemp("ingested"), random_clicks(4)
    write_rows(partial(write_lines, folder / "log"), clicks)
    places = {"input": ROWS | {"path": f"{folder}/log"}, "paths": {"root": f"{folder}/root"}, "spark": SPARK}
    config = Config.model_validate({"features": FEATURES, "model": {"tower": (8,)}} | places)
    jobs.events.run(Context(config, DT, "test"), backfill=True)
    return clicks, folder / "root"


@pytest.mark.parametrize(
    "settings",
    [
        {"max_history": 12, "window_size": 12, "order": "newest_first", "max_targets_per_user": 5},
        {"window_size": 4, "start_token": True},
        {"max_history": 6, "window_size": 4, "start_token": True, "order": "newest_first"},
    ],
    ids=["fun_rec", "paddle's rules on rows", "truncation drops the start token"],
)
def test_rows(settings, make_config, ingested, run_jobs):
    clicks, root = ingested
    config = make_config(input=ROWS, features=FEATURES, samples=settings, model={"tower": [8]})
    shutil.copytree(root, config.paths.root)
    run_jobs(config, DT, "vocab", "samples")
    assert_equal_samples(config, clicks)


def test_a_look_back_window_counts_and_trains_on_its_own_days_alone(make_config, ingested, run_jobs):
    clicks, root = ingested
    settings = {"window_size": 6, "max_targets_per_user": 5, "look_back_days": 103}
    config = make_config(input=ROWS, features=FEATURES, samples=settings, model={"tower": [8]})
    shutil.copytree(root, config.paths.root)
    run_jobs(config, DT, "vocab", "samples")
    since = 1_709_251_200 - 103 * 86_400 - 1_700_000_000  # DT 00:00 UTC less 103 days, in the clicks' own time
    assert 0.3 < sum(c.time < since for c in clicks) / len(clicks) < 0.8
    assert_equal_samples(config, clicks, since)
    assert any(len(s["history"]) == 6 for s in dumped(config, "train")), "histories reach further back"


def run_all_days(config, run_jobs, clicks):
    """Ingests every day of the log through the backfill, then vocab and samples."""
    ctx = run_jobs(config, DT)
    jobs.events.run(ctx, backfill=True)
    run_jobs(config, DT, "vocab", "samples")
    return ctx.tables.days("events")


def test_sessions_and_runs_longer_than_one_row(make_config, write_log, run_jobs):
    busy = [Click("busy", f"i{n % 30}", n, {"city": "x"}, {"category": "k1", "tags": []}) for n in range(1200)]
    clicks = write_sessions(write_log, [*random_clicks(3, users=20), *busy])
    config = make_config(
        input={"format": "sessions", "ordering": "position", "clicks": "sessions.txt"},
        features=FEATURES,
        samples={"window_size": 4, "start_token": True, "negatives_per_positive": 2},
        model={"tower": [8]},
    )
    ctx = run_jobs(config, DT, "events", "vocab", "samples")
    runs = ctx.tables.get("samples", DT, split="train").manifest["rows"]
    assert runs >= 3 + len({s["user_id"] for s in dumped(config, "train")}) - 1, "the busy user is cut into three runs"
    assert_equal_samples(config, clicks)
    assert_negatives(config, clicks, k=2)


def assert_negatives(config, clicks: list[Click], k: int) -> None:
    own: dict[str, set[str]] = defaultdict(set)
    for sample in dumped(config, "train"):
        own[sample["user_id"]] |= {item for item in [*sample["history"], sample["target"]] if item}
    catalogue = {s["target"] for s in dumped(config, "train")} | set().union(*own.values())
    for sample in dumped(config, "train"):
        drawn = sample["negatives"]
        assert not own[sample["user_id"]].intersection(drawn)
        assert len(set(drawn)) == len(drawn) == min(k, len(catalogue - own[sample["user_id"]]))


def test_day_protocol(spark, make_config, write_log, run_jobs):
    clicks = [
        Click(c.user, c.item, c.time + 1_709_000_000, c.user_features, c.item_features) for c in random_clicks(5, users=60)
    ]
    write_rows(write_log, [Click(c.user, c.item, c.time - 1_700_000_000, c.user_features, c.item_features) for c in clicks])
    config = make_config(
        input=ROWS, features=FEATURES | {"item_id": {"min_count": 1, "dim": 8}}, samples={"window_size": 5},
        model={"tower": [8]}, evaluation={"protocol": "day"},
    )  # fmt: skip
    run_all_days(config, run_jobs, clicks)
    start = 1_709_251_200  # DT 00:00 UTC
    before = [c for c in clicks if c.time < start]
    known = {c.user for c in before}
    first: dict[str, Click] = {}
    for click in sorted((c for c in clicks if start <= c.time < start + 86400), key=lambda c: (c.time, c.item)):
        first.setdefault(click.user, click)
    tests = dumped(config, "test")
    assert {s["user_id"] for s in tests} == first.keys() & known
    vocab_items = {c.item for c in before}
    for sample in tests:
        own = sorted((c for c in before if c.user == sample["user_id"]), key=lambda c: (c.time, c.item))
        assert sample["history"] == [c.item for c in own][-5:]
        assert sample["target"] == (first[sample["user_id"]].item if first[sample["user_id"]].item in vocab_items else None)
        assert sample["features"]["city"] in (first[sample["user_id"]].user_features["city"], None)
    validation = dumped(config, "validation")
    for sample in validation:
        own = sorted((c for c in before if c.user == sample["user_id"]), key=lambda c: (c.time, c.item))
        assert sample["target"] == own[-1].item
    held_out = {s["user_id"] for s in validation}
    targets = Counter(s["user_id"] for s in dumped(config, "train"))
    for user in known:
        n = sum(c.user == user for c in before)
        assert targets[user] in ({max(0, n - 2)} if user in held_out else {n - 1, 0} if n == 1 else {n - 1})


def test_hot_items_keep_their_share(spark, make_config, write_log, run_jobs):
    threshold, rng = 0.02, random.Random(1)
    clicks = [
        Click(
            f"u{u}",
            "hot" if rng.random() < 0.4 else f"i{rng.randrange(400)}",
            n * 100.0,
            {"city": "x"},
            {"category": "k", "tags": []},
        )
        for u in range(300)
        for n in range(20)
    ]
    clicks = list({(c.user, c.item, c.time): c for c in clicks}.values())
    write_rows(write_log, clicks)
    config = make_config(
        input=ROWS,
        features={"item_id": {"min_count": 1, "dim": 8}},
        samples={"subsample_threshold": threshold},
        model={"tower": [8]},
    )
    run_all_days(config, run_jobs, clicks)
    train = [c for own in by_user_train(clicks) for c in own]
    share = sum(c.item == "hot" for c in train) / len(train)
    possible = sum(c.item == "hot" for own in by_user_train(clicks) for c in own[1:])
    kept = Counter(s["target"] for s in dumped(config, "train"))
    expected = ((share / threshold) ** 0.5 + 1) * threshold / share
    assert kept["hot"] / possible == pytest.approx(expected, abs=0.03)
    rare = sum(c.item != "hot" for own in by_user_train(clicks) for c in own[1:])
    assert sum(kept.values()) - kept["hot"] == rare


def by_user_train(clicks):
    from tests.oracle import by_user, split_last_click

    return [split_last_click(own)[0] for own in by_user(clicks).values()]
