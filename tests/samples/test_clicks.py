"""The NumPy side of the samples against the oracle, for any log and any settings; Spark is not needed."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from pyspark.sql.pandas.types import to_arrow_schema

from recall_lib.config import Config
from recall_lib.samples import build
from recall_lib.samples import clicks as kernels
from recall_lib.samples.ids import FIRST_INDEX, UNKNOWN
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Segments
from recall_lib.store import schemas
from tests import oracle
from tests.oracle import Click

MICROSECONDS = 1_000_000
ITEMS = ["a", "ab", "B", "é", "北", "\ufb00", "\U00010000", "10", "9"]


@st.composite
def logs(make: Any) -> list[Click]:
    """Few users, items and times, so that ties, repetitions and filtered items abound."""
    clicks = {}
    for user in range(make(st.integers(1, 5))):
        for _ in range(make(st.integers(1, 14))):
            item, time = make(st.sampled_from(ITEMS)), float(make(st.integers(0, 9)) * 43_200)
            number = ITEMS.index(item)
            tags = [f"t{(number + j) % 4}" for j in range(number % 3)]
            city = make(st.sampled_from(["x", "y", None]))
            clicks[user, item, time] = Click(
                f"user {user}", item, time, {"city": city}, {"category": f"k{number % 3}" if number % 4 else None, "tags": tags}
            )
    return list(clicks.values())


@st.composite
def sample_settings(make: Any) -> dict[str, Any]:
    return {
        "max_history": make(st.none() | st.integers(1, 9)),
        "window_size": make(st.integers(1, 6)),
        "start_token": make(st.booleans()),
        "order": make(st.sampled_from(["oldest_first", "newest_first"])),
        "max_targets_per_user": make(st.none() | st.integers(1, 4)),
        "negatives_per_positive": make(st.integers(0, 3)),
    }


def config_of(sample: dict[str, Any], protocol: str = "last_click", min_count: int = 2) -> Config:
    features = {
        "item_id": {"min_count": min_count},
        "user": [{"name": "user_id", "min_count": 3}, {"name": "city", "min_count": 1}],
        "item": [{"name": "category", "min_count": 2}, {"name": "tags", "min_count": 3, "multi": True}],
    }
    model = {"tower": (64,)}
    return Config.model_validate(
        {"features": features, "samples": sample, "evaluation": {"protocol": protocol}, "model": model}, strict=False
    )


class Encoded:
    """A log as the executors get it: encoded by the oracle's own vocabulary, in random order."""

    def __init__(self, clicks: list[Click], config: Config, validates: set[str], shuffle: int = 0) -> None:
        self.clicks, self.config = clicks, config
        by_day = config.evaluation.protocol == "day"
        split = {
            user: oracle.split_day(own, user in validates) if by_day else oracle.split_last_click(own)
            for user, own in oracle.by_user(clicks).items()
        }
        self.train = [click for own, _, _ in split.values() for click in own]
        held_out = [click for _, *held in split.values() for click in held if click]
        vocabulary = oracle.vocabulary(self.train, held_out, config)
        self.counts = vocabulary["item_id"]
        self.values = {
            name: sorted(kept, key=lambda value: (-kept[value], value.encode())) for name, kept in vocabulary.items()
        }
        rows = random.Random(shuffle).sample(clicks, len(clicks))
        names = ["city"], ["category"]
        self.table = pa.table(
            {
                "user_id": [c.user for c in rows],
                "order": pa.array([int(c.time * MICROSECONDS) for c in rows], pa.int64()),
                "item_id": [c.item for c in rows],
                "tie": pa.array([hash((c.user_features["city"],)) for c in rows], pa.int64()),
                "item_index": self.indexes("item_id", [c.item for c in rows]),
                "validates": [c.user in validates for c in rows],
                "user_id_index": self.indexes("user_id", [c.user for c in rows]),
                **{f"{n}_index": self.indexes(n, [c.user_features[n] for c in rows]) for n in names[0]},
                **{f"{n}_index": self.indexes(n, [c.item_features[n] for c in rows]) for n in names[1]},
                "tags_index": pa.array(
                    [self.indexes("tags", c.item_features["tags"] or [None]).to_pylist() for c in rows], pa.list_(pa.int32())
                ),
            }
        )

    def indexes(self, feature: str, values: list[str | None]) -> pa.Array:
        known = {value: index for index, value in enumerate(self.values[feature], FIRST_INDEX)}
        return pa.array([known.get(value, UNKNOWN) if value else UNKNOWN for value in values], pa.int32())

    def raw(self, feature: str, index: int) -> str | None:
        return None if index < FIRST_INDEX else self.values[feature][index - FIRST_INDEX]

    def recipe(self, seed: int = 1) -> build.Recipe:
        counts = np.array([0, 0, *(self.counts[item] for item in self.values["item_id"])], np.int64)
        newest = max((int(c.time * MICROSECONDS) for c in self.train), default=None)
        return build.Recipe(
            features=self.config.features,
            settings=self.config.samples,
            protocol=self.config.evaluation.protocol,
            seed=seed,
            newest_ts=newest,
            train_clicks=len(self.train),
            load_counts=lambda: counts,
        )

    def batches(self) -> list[tuple[str, pa.RecordBatch]]:
        return list(build.split_samples(self.table, self.recipe()))

    def samples(self) -> dict[str, list[dict[str, Any]]]:
        """As the oracle's, with `negatives` and `seen`."""
        found: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for split, batch in self.batches():
            segments = Segments.from_arrow(batch, self.config.features, self.config.samples)
            windows = segments.windows(np.arange(len(segments)))
            for i in range(len(segments)):
                row = int(segments.segment_of_target[i])
                history = windows.history.values[windows.history.offsets[i] : windows.history.offsets[i + 1]]
                features: dict[str, Any] = {name: self.raw(name, ids[i]) for name, ids in windows.user.items()}
                for name, bag in windows.bags().items():
                    own = bag.values[bag.offsets[i] : bag.offsets[i + 1]]
                    features[name] = [self.raw(name, index) for index in own]
                found[split].append(
                    {
                        "user_id": batch.column("user_id")[row].as_py(),
                        "history": [self.raw("item_id", index) for index in history],
                        "target": self.raw("item_id", windows.target[i]),
                        "example_age": float(windows.example_age[i]),
                        "features": features,
                        "negatives": [self.raw("item_id", index) for index in windows.negatives[i] if index],
                        "seen": [self.raw("item_id", index) for index in batch.column("seen")[row].as_py()],
                    }
                )
        return found


def counted(samples: list[dict[str, Any]]) -> Counter[str]:
    names = ("user_id", "history", "target", "example_age", "features")
    return Counter(json.dumps({name: sample[name] for name in names}, sort_keys=True) for sample in samples)


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Users of few clicks are cut into several segments."""
    monkeypatch.setattr(kernels, "SEGMENT_LENGTH", 4)


@pytest.mark.usefixtures("short_runs")
@pytest.mark.parametrize("protocol", ["last_click", "day"])
@given(
    logs(), sample_settings(), st.integers(1, 3), st.sets(st.sampled_from([f"user {n}" for n in range(5)])), st.integers(0, 9)
)
@example([Click("user 0", "a", 0.0, {"city": "x"}, {"category": None, "tags": []})], {"window_size": 1}, 1, {"user 0"}, 0)
@settings(max_examples=250, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_samples_are_those_of_the_definition(
    protocol: str,
    clicks: list[Click],
    sample: dict[str, Any],
    min_count: int,
    validates: set[str],
    shuffle: int,
) -> None:
    config = config_of(sample, protocol, min_count)
    log = Encoded(clicks, config, validates, shuffle)
    found = log.samples()
    for split, expected in oracle.samples(clicks, config, validates).items():
        assert counted(found[split]) == counted(expected), split
    own = {user: [c for c in mine if c.item in log.counts] for user, mine in oracle.by_user(log.train).items()}
    for sample_ in found["train"]:
        kept = own[sample_["user_id"]][-config.samples.max_history :] if config.samples.max_history else own[sample_["user_id"]]
        candidates = {item for item, count in log.counts.items() if count} - {click.item for click in kept}
        drawn = sample_["negatives"]
        assert len(set(drawn)) == len(drawn) == min(config.samples.negatives_per_positive, len(candidates))
        assert set(drawn) <= candidates
    users = oracle.by_user(clicks)
    for split in ("validation", "test"):
        for sample_ in found[split]:
            held_out = {"validation": -2, "test": -1}[split] if protocol == "last_click" else -1
            before = {click.item for click in users[sample_["user_id"]][:held_out]} & set(log.counts)
            assert set(sample_["seen"]) == before


@given(logs(), sample_settings(), st.integers(1, 9))
@settings(max_examples=40, deadline=None)
def test_the_order_of_rows_changes_nothing(clicks: list[Click], sample: dict[str, Any], shuffle: int) -> None:
    config = config_of(sample)
    one, other = (Encoded(clicks, config, set(), n).batches() for n in (0, shuffle))

    def rows(batches: list[tuple[str, pa.RecordBatch]]) -> list[tuple[str, list[dict[str, Any]]]]:
        return [(split, sorted(batch.to_pylist(), key=str)) for split, batch in batches]

    assert rows(one) == rows(other)


def one_item_hot(users: int = 300, clicks: int = 40, share: float = 0.4) -> list[Click]:
    rng = random.Random(1)
    features: tuple[dict[str, Any], dict[str, Any]] = {"city": "x"}, {"category": "k", "tags": []}
    return [
        Click(f"u{u}", "hot" if rng.random() < share else f"i{rng.randrange(200)}", n * 100.0, *features)
        for u in range(users)
        for n in range(clicks)
    ]


def test_hot_items_keep_the_share_of_the_formula_and_the_cap_counts_what_is_kept() -> None:
    threshold, cap, clicks = 0.02, 7, one_item_hot()
    log = Encoded(clicks, config_of({"subsample_threshold": threshold}, min_count=1), set())
    kept = log.samples()["train"]
    training = [own[:-2] for own in oracle.by_user(clicks).values()]
    share = sum(c.item == "hot" for own in training for c in own) / sum(map(len, training))
    possible = sum(c.item == "hot" for own in training for c in own[1:])
    expected = ((share / threshold) ** 0.5 + 1) * threshold / share
    assert sum(s["target"] == "hot" for s in kept) / possible == pytest.approx(expected, abs=0.03)
    assert sum(s["target"] != "hot" for s in kept) == sum(c.item != "hot" for own in training for c in own[1:])

    capped = Encoded(clicks, config_of({"subsample_threshold": threshold, "max_targets_per_user": cap}, min_count=1), set())
    first: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for sample in sorted(kept, key=lambda s: -s["example_age"]):
        first[sample["user_id"]].append(sample)
    assert counted(capped.samples()["train"]) == counted([s for own in first.values() for s in own[:cap]])


def test_negatives_of_targets_and_users_differ_and_rare_items_are_rare() -> None:
    log = Encoded(one_item_hot(share=0.0), config_of({"negatives_per_positive": 2}, min_count=1), set())
    drawn = [tuple(s["negatives"]) for s in log.samples()["train"]]
    assert len(set(drawn)) > 0.6 * len(drawn)
    found, total = Counter(item for pair in drawn for item in pair), sum(log.counts.values())
    quarter = log.values["item_id"][:50]
    share = sum(found[item] for item in quarter) / sum(found.values())
    assert share == pytest.approx(sum(log.counts[item] for item in quarter) / total, abs=0.02)


def test_batches_are_equal_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    log = Encoded(one_item_hot(), config_of({"negatives_per_positive": 3}, min_count=1), set())
    [whole] = [batch for split, batch in log.batches() if split == "train"]
    monkeypatch.setattr(kernels, "_BATCH_VALUES", 10_000)
    parts = [batch for split, batch in log.batches() if split == "train"]
    assert pa.Table.from_batches(parts).to_pylist() == whole.to_pylist()
    assert len(parts) == -(-300 * 38 * 4 // 10_000)
    assert max(part.num_rows for part in parts) - min(part.num_rows for part in parts) <= 1


def test_batches_have_the_declared_columns() -> None:
    log = Encoded(one_item_hot(users=4), config_of({"negatives_per_positive": 2}), set())
    declared = [(field.name, field.type) for field in to_arrow_schema(schemas.segments(log.config.features))]
    assert {split for split, _ in log.batches()} == {"train", "validation", "test"}
    for _, batch in log.batches():
        assert [(field.name, field.type) for field in batch.schema] == declared


def test_users_too_far_apart_in_time_for_one_number_are_sorted_too() -> None:
    rng = np.random.default_rng(0)
    user, time = rng.integers(0, 5, 500), rng.integers(-(1 << 62), 1 << 62, 500)
    assert kernels._sorted(user, time).tolist() == np.lexsort((time, user)).tolist()
    near = rng.integers(0, 1 << 30, 500)
    assert kernels._sorted(user, near).tolist() == np.lexsort((near, user)).tolist()


def test_distinct_items_are_ascending_and_known() -> None:
    found = kernels.distinct(np.array([1, 0, 1, 1, 2]), np.array([7, 1, 3, 7, 2]), 4)
    assert isinstance(found, Ragged)
    assert found.values.tolist() == [3, 7, 2]
    assert found.offsets.tolist() == [0, 0, 2, 3, 3]


def test_a_column_of_the_log_orders_clicks_of_one_time():
    from recall_lib.samples.clicks import _click_order

    table = pa.table({"order": [7, 7, 7, 5], "position": [3, 1, 2, 9], "item_id": ["a", "b", "c", "d"]})
    assert _click_order(table, np.zeros(4, np.int64)).tolist() == [3, 1, 2, 0]
    assert _click_order(table.drop_columns(["position"]), np.zeros(4, np.int64)).tolist() == [3, 0, 1, 2]
