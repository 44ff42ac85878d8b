"""Windows cut from segments against slicing each user's list."""

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lib.config import Feature, Features, Samples
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Segments

FEATURES = Features(user=(Feature(name="city"),), item=(Feature(name="category"), Feature(name="tags", multi=True)))
INTS = pa.list_(pa.int32())
K = 2


def ids() -> st.SearchStrategy[int]:
    return st.integers(1, 90)


@st.composite
def rows(make: Any) -> dict[str, Any]:
    """One run: tokens with their tags, and targets among them."""
    tokens = make(st.lists(st.tuples(ids(), ids(), st.lists(ids(), min_size=1, max_size=3)), max_size=9))
    places = sorted(make(st.sets(st.integers(0, len(tokens) - 1)))) if tokens else []
    return {
        "item_index": [item for item, _, _ in tokens],
        "category_index": [category for _, category, _ in tokens],
        "tags": [tags for *_, tags in tokens],
        "is_target": [place in places for place in range(len(tokens))],
        "example_age": [make(st.integers(0, 20)) / 4 for _ in places],
        "city_index": [make(ids()) for _ in places],
        "negatives": [make(ids()) for _ in range(K * len(places))],
    }


def as_batch(block: list[dict[str, Any]]) -> pa.RecordBatch:
    columns = {name: [row[name] for row in block] for name in block[0] if name != "tags"}
    columns["tags_index"] = [[tag for tags in row["tags"] for tag in tags] for row in block]
    columns["tags_length"] = [[len(tags) for tags in row["tags"]] for row in block]
    kinds = {"example_age": pa.list_(pa.float32()), "is_target": pa.list_(pa.bool_())}
    return pa.RecordBatch.from_pydict({name: pa.array(values, kinds.get(name, INTS)) for name, values in columns.items()})


def naive(block: list[dict[str, Any]], width: int, order: str) -> list[dict[str, Any]]:
    """Every target's window, one after the other."""
    found = []
    for row in block:
        for n, place in enumerate(np.flatnonzero(row["is_target"])):
            seen = list(range(max(0, place - width), place))
            if order == "newest_first":
                seen.reverse()
            found.append(
                {
                    "history": [row["item_index"][i] for i in seen],
                    "category": [row["category_index"][i] for i in seen],
                    "tags": [tag for i in seen for tag in row["tags"][i]],
                    "city": row["city_index"][n],
                    "age": row["example_age"][n],
                    "target": row["item_index"][place],
                    "negatives": row["negatives"][K * n : K * (n + 1)],
                }
            )
    return found


def cut(segments: Segments, targets: list[int]) -> list[dict[str, Any]]:
    windows = segments.windows(np.array(targets, np.int64))
    histories = np.split(windows.history.values, windows.history.offsets[1:-1])
    bags = {name: np.split(bag.values, bag.offsets[1:-1]) for name, bag in windows.bags().items()}
    return [
        {
            "history": histories[i].tolist(),
            "category": bags["category"][i].tolist(),
            "tags": bags["tags"][i].tolist(),
            "city": int(windows.user["city"][i]),
            "age": float(windows.example_age[i]),
            "target": int(windows.target[i]),
            "negatives": windows.negatives[i].tolist(),
        }
        for i in range(len(targets))
    ]


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
@given(block=st.lists(rows(), min_size=1, max_size=5), width=st.integers(1, 10), choice=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_windows_are_slices(order: str, block: list[dict[str, Any]], width: int, choice: Any) -> None:
    config = Samples.model_validate({"window_size": width, "order": order, "negatives_per_positive": K})
    expected = naive(block, width, order)
    batch = as_batch(block)
    segments = Segments.from_arrow(batch, FEATURES, config)
    assert len(segments) == len(expected)
    targets = list(range(len(expected)))
    choice.shuffle(targets)
    assert cut(segments, targets) == [expected[i] for i in targets]
    # A slice of a batch, and a table in chunks, are the same rows.
    some = Segments.from_arrow(batch.slice(1), FEATURES, config)
    assert cut(some, list(range(len(some)))) == naive(block[1:], width, order)
    table = pa.Table.from_batches([batch.slice(0, 1), batch.slice(1)])
    assert cut(Segments.from_arrow(table, FEATURES, config), targets) == [expected[i] for i in targets]


@given(st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=6), st.data())
@settings(max_examples=60, deadline=None)
def test_ragged_slices(lists: list[list[int]], data: st.DataObject) -> None:
    flat = [value for values in lists for value in values]
    ragged = Ragged.of(np.array(flat, np.int64), np.array([len(values) for values in lists], np.int64))
    assert ragged.lengths.tolist() == [len(values) for values in lists]
    ends = data.draw(st.lists(st.tuples(st.integers(0, len(flat)), st.integers(0, len(flat))).map(sorted), max_size=6))
    start, stop = (np.array([pair[side] for pair in ends], np.int64) for side in (0, 1))
    found = ragged.slices(start, stop)
    assert found.lengths.tolist() == [b - a for a, b in ends]
    assert found.values.tolist() == [value for a, b in ends for value in flat[a:b]]
