"""Vectors of users and items, inferred in the executors (SPEC 5.1, 5.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from recall_lib.config import Features, Samples
from recall_lib.inference.shipping import Shipped, load_model
from recall_lib.samples.ids import UNKNOWN
from recall_lib.samples.ragged import Float32s, Ragged
from recall_lib.samples.windows import Segments, Windows

# The most rows, tokens and results in memory at once. They bound a worker's memory, whatever Spark's batch size.
_ROWS, _TOKENS, _RESULTS = 1024, 1 << 15, 1 << 18


def user_vectors(batches: Iterable[pa.RecordBatch], *, model: Shipped) -> Iterator[pa.RecordBatch]:
    """Rows of schemas.segments with one target each -> rows of schemas.USER_VECTORS."""
    towers, meta = load_model(model)
    for rows in blocks(batches, meta["samples"]["window_size"]):
        yield vectors_of_users(rows, infer(towers, read_windows(rows, meta)))


def vectors_of_users(rows: pa.RecordBatch, vectors: Float32s) -> pa.RecordBatch:
    """Rows of schemas.USER_VECTORS: the user ids of `rows`, [n], with their vectors, [n, d]."""
    return pa.RecordBatch.from_pydict({"user_id": rows.column("user_id"), "vector": list_column(vectors)})


def item_vectors(batches: Iterable[pa.RecordBatch], *, model: Shipped) -> Iterator[pa.RecordBatch]:
    """Rows item_index, item_id (with model.recency also prior) -> rows of schemas.ITEM_VECTORS."""
    import torch

    towers, _ = load_model(model)
    with torch.inference_mode():
        table = towers.item_vectors(of_day=True).numpy()
    for rows in blocks(batches):
        columns = {name: rows.column(name) for name in ("item_index", "item_id")}
        vectors = table[columns["item_index"].to_numpy()]
        if towers.settings.recency:
            vectors[:, 0] += rows.column("prior").to_numpy()
        yield pa.RecordBatch.from_pydict(columns | {"vector": list_column(vectors)})


def blocks(batches: Iterable[pa.RecordBatch], tokens: int = 1, results: int = 1) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of bounded size. `tokens`, `results`: the most that one row can have."""
    size = max(1, min(_ROWS, _TOKENS // tokens, _RESULTS // results))
    for batch in batches:
        for start in range(0, batch.num_rows, size):
            yield batch.slice(start, size)


def read_windows(rows: pa.RecordBatch, meta: dict[str, Any]) -> Windows:
    """The window of each row's only target, cut like the model's training windows; negatives are not read."""
    samples = Samples(**meta["samples"] | {"negatives_per_positive": 0})
    return Segments.from_arrow(rows, Features(**meta["features"]), samples).windows(np.arange(rows.num_rows))


def user_id_alone(windows: Windows) -> Windows:
    """The same users with every input neutral except the user id: no history, unknown features, age 0 (P's infer_user)."""
    rows = len(windows.target)
    nothing = np.zeros(0, np.int64)
    empty, unknown = Ragged.of(nothing, np.zeros(rows, np.int64)), np.full(rows, UNKNOWN, np.int64)
    return replace(
        windows,
        history=empty,
        item={name: Ragged.of(nothing, nothing) for name in windows.item},
        item_numbers={name: np.zeros(0, np.float32) for name in windows.item_numbers},
        user={name: ids if name in ("user_id", "hour", "weekday") else unknown for name, ids in windows.user.items()},
        lists=dict.fromkeys(windows.lists, empty),
        numbers={name: np.full(rows, np.nan, np.float32) for name in windows.numbers},
        example_age=np.zeros(rows, np.float32),
    )


def infer(towers: Any, windows: Windows) -> Float32s:
    """User vectors, float32 [B, d]."""
    import torch

    from recall_lib.model.batch import Batch

    with torch.inference_mode():
        return towers.user_vectors(Batch.of(windows)).numpy()


def list_column(vectors: Float32s) -> pa.Array:
    """[n, d] as an Arrow list column of float32."""
    offsets = np.arange(len(vectors) + 1, dtype=np.int32) * vectors.shape[1]  # [n + 1]; the values: [n, d] -> [n * d]
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(np.ascontiguousarray(vectors).reshape(-1)))
