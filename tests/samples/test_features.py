"""Numbers, several values a user and further sequences in the samples, against a slow reading of the definition."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recall_lib.config import Features, Samples
from recall_lib.samples import build
from recall_lib.samples import clicks as kernels
from recall_lib.samples.windows import Segments, Windows

FEATURES = Features.model_validate(
    {
        "user": [{"name": "interests", "multi": True}],
        "numbers": [
            {"name": "age"},
            {"name": "income", "form": "buckets"},
            {"name": "price", "of": "item", "form": "raw"},
        ],
        "sequences": [{"name": "searches", "window_size": 2}, {"name": "likes", "window_size": 3}],
    }
)
WINDOW = {"searches": 2, "likes": 3}


@dataclass(frozen=True)
class Click:
    user: str
    time: int
    item: int
    interests: tuple[int, ...]
    age: float
    income: int
    price: float


@dataclass(frozen=True)
class Event:
    user: str
    time: int
    sequence: str
    tokens: tuple[int, ...]


USERS = st.sampled_from(["ann", "bob", "cy"])
NUMBERS = st.sampled_from([0.0, 0.25, 1.0, math.nan])
CLICKS = st.builds(
    Click,
    USERS,
    st.integers(0, 9),
    st.integers(1, 6),
    st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
    NUMBERS,
    st.integers(1, 11),
    NUMBERS,
)
EVENTS = st.builds(
    Event,
    st.sampled_from(["ann", "bob", "cy", "has no click"]),
    st.integers(0, 10),
    st.sampled_from(["searches", "likes"]),
    st.lists(st.integers(1, 7), min_size=1, max_size=3).map(tuple),
)


def table(clicks: list[Click], events: list[Event]) -> pa.Table:
    """What the executors get: clicks, and events of the sequences."""
    rows: list[dict[str, Any]] = [
        {
            "user_id": c.user,
            "order": c.time,
            "item_id": str(c.item),
            "item_index": c.item,
            "interests_index": list(c.interests),
            "age_value": c.age,
            "income_index": c.income,
            "price_value": c.price,
            "tie": n,
        }
        for n, c in enumerate(clicks)
    ]
    rows += [
        {"user_id": e.user, "order": e.time, "sequence": e.sequence, "tokens": list(e.tokens), "tie": n}
        for n, e in enumerate(events)
    ]
    ints = pa.list_(pa.int32())
    kinds = {
        "user_id": pa.string(),
        "order": pa.int64(),
        "item_id": pa.string(),
        "item_index": pa.int32(),
        "interests_index": ints,
        "age_value": pa.float32(),
        "income_index": pa.int32(),
        "price_value": pa.float32(),
        "tie": pa.int64(),
        "sequence": pa.string(),
        "tokens": ints,
    }
    return pa.Table.from_pylist(rows, pa.schema(list(kinds.items())))


def recipe(samples: Samples) -> build.Recipe:
    return build.Recipe(
        features=FEATURES,
        settings=samples,
        protocol="last_click",
        seed=1,
        newest_ts=None,
        train_clicks=1,
        load_counts=lambda: np.ones(10, np.int64),
    )


def facts(windows: Windows, users: list[str]) -> Iterator[tuple[Any, ...]]:
    """Everything that a model is given for each target, as one tuple."""
    for i, user in enumerate(users):
        own = slice(windows.history.offsets[i], windows.history.offsets[i + 1])
        lists = {
            name: values.values[values.offsets[i] : values.offsets[i + 1]].tolist() for name, values in windows.lists.items()
        }
        yield (
            user,
            tuple(windows.history.values[own].tolist()),
            int(windows.target[i]),
            int(windows.user["income"][i]),
            *(tuple(lists[name]) for name in ("interests", "searches", "likes")),
            repr(float(windows.numbers["age"][i])),
            tuple(repr(float(value)) for value in windows.item_numbers["price"][own]),
        )


def expected(clicks: list[Click], events: list[Event], samples: Samples) -> Iterator[tuple[str, tuple[Any, ...]]]:
    """(split, facts) of each sample, by the definition."""
    for user in sorted({c.user for c in clicks}):
        mine = sorted((c for c in clicks if c.user == user), key=lambda c: (c.time, str(c.item).encode(), clicks.index(c)))
        splits = ["train"] * len(mine)
        if len(mine) >= 2:
            splits[-1] = "test"
        if len(mine) >= 3:
            splits[-2] = "validation"
        known = [c for c, split in zip(mine, splits, strict=True) if split == "train" and c.item >= 2]
        for place, (target, split) in enumerate(zip(mine, splits, strict=True)):
            before = [c for c in mine[:place] if c.item >= 2]
            if split == "train" and (target.item < 2 or target is known[0]):
                continue
            if split != "train" and not place:
                continue
            history = before[-samples.window_size :]
            seen = {}
            for name, window in WINDOW.items():
                did = [e for e in events if e.user == user and e.sequence == name and e.time < target.time]
                did.sort(key=lambda e: (e.time, events.index(e)))
                seen[name] = tuple(token for e in did[-window:] for token in e.tokens)
            yield (
                split,
                (
                    user,
                    tuple(c.item for c in history),
                    target.item,
                    target.income,
                    target.interests,
                    seen["searches"],
                    seen["likes"],
                    repr(target.age),
                    tuple(repr(c.price) for c in history),
                ),
            )


@pytest.fixture
def short_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "SEGMENT_LENGTH", 4)


@pytest.mark.usefixtures("short_segments")
@given(
    st.lists(CLICKS, min_size=1, max_size=25, unique=True),
    st.lists(EVENTS, max_size=20, unique=True),
    st.integers(1, 3),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_target_sees_what_was_known_before_it(clicks: list[Click], events: list[Event], window: int) -> None:
    samples = Samples(window_size=window)
    found = []
    for split, batch in build.split_samples(table(clicks, events), recipe(samples)):
        segments = Segments.from_arrow(batch, FEATURES, samples)
        users = [batch.column("user_id")[int(row)].as_py() for row in segments.segment_of_target]
        found += [(split, fact) for fact in facts(segments.windows(np.arange(len(segments))), users)]
    assert sorted(found) == sorted(expected(clicks, events, samples))


def test_a_list_is_made_from_everything_before_the_day() -> None:
    clicks = [Click("ann", time, 2 + time, (1,), 0.5, 3, 0.0) for time in range(3)]
    events = [Event("ann", time, "searches", (time + 2,)) for time in (1, 2, 3, 9)]
    samples = Samples(window_size=5)
    (batch,) = build.histories(table(clicks, events), FEATURES, samples)
    (fact,) = facts(Segments.from_arrow(batch, FEATURES, samples).windows(np.arange(1)), ["ann"])
    assert fact == ("ann", (2, 3, 4), 0, 3, (1,), (5, 11), (), "0.5", ("0.0", "0.0", "0.0"))


@pytest.mark.usefixtures("short_segments")
@given(
    st.lists(CLICKS, min_size=1, max_size=25, unique=True),
    st.lists(st.builds(Event, USERS, st.integers(0, 9), st.just("impressions"), st.tuples(st.integers(1, 6))), max_size=25),
    st.integers(1, 3),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_shown_near_a_target_comes_first_among_its_negatives(clicks: list[Click], shown: list[Event], k: int) -> None:
    samples = Samples(window_size=3, negatives_per_positive=k, negatives="impressions")
    for split, batch in build.split_samples(table(clicks, shown), recipe(samples)):
        if split != "train":
            continue
        segments = Segments.from_arrow(batch, FEATURES, samples)
        windows = segments.windows(np.arange(len(segments)))
        for i, row in enumerate(segments.segment_of_target):
            user = batch.column("user_id")[int(row)].as_py()
            found = [int(item) for item in windows.negatives[i] if item]
            mine = sorted((c for c in clicks if c.user == user), key=lambda c: (c.time, str(c.item).encode(), clicks.index(c)))
            trained = {c.item for c in mine[: max(1, len(mine) - 2)] if c.item >= 2}
            # The same item may be the target of several clicks: one of them must explain the negatives.
            assert any(
                found[: len(expected)] == expected
                for place, target in enumerate(mine)
                if target.item == windows.target[i]
                for expected in [near(shown, user, mine, place, trained)[:k]]
            )
            assert len(set(found)) == len(found)
            assert not trained & set(found)


def near(shown: list[Event], user: str, mine: list[Click], place: int, trained: set[int]) -> list[int]:
    """The items shown since the click before, newest first, each once."""
    since = mine[place - 1].time if place else -1
    own = [e for e in shown if e.user == user and since < e.time <= mine[place].time]
    own.sort(key=lambda e: (e.time, shown.index(e)))
    items = [e.tokens[0] for e in reversed(own) if e.tokens[0] >= 2 and e.tokens[0] not in trained]
    return list(dict.fromkeys(items))
