"""The top-N of each user: infer, search, map back to raw ids (SPEC 5.4, 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recall_lib.ids import PADDING, UNKNOWN
from recall_lib.inference.shipping import Shipped, load_index, load_model
from recall_lib.inference.vectors import blocks, infer, read_windows, user_id_alone
from recall_lib.runs import Ragged


@dataclass(frozen=True)
class Popular:
    """The hottest items, best first: what users get of whom the model knows nothing."""

    items: npt.NDArray[np.int64]  # item indexes, at most n
    counts: npt.NDArray[np.int64]  # clicks


def top_n(
    batches: Iterable[pa.RecordBatch],
    *,
    model: Shipped,
    index: Shipped,
    popular: Popular,
    n: int,
    filter_seen: bool,
    user_id_only: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Rows of runs (one target a row, with `seen`) -> rows of schemas.TOP_N, one a user, in the rows' order.

    Args:
        batches: users' histories.
        model: the towers.
        index: items to search.
        popular: the list of users without history or, with `user_id_only`, of users whose id the model does not know.
        n: items a user; fewer where the catalogue ends.
        filter_seen: leave out what the user has clicked.
        user_id_only: look at nothing but the user id.
    """
    towers, meta = load_model(model)
    items = load_index(index)
    for rows in blocks(batches, meta["samples"]["window_size"]):
        windows = read_windows(rows, meta)
        seen = Ragged.from_arrow(rows.column("seen")) if filter_seen else None
        if user_id_only:
            windows, known = user_id_alone(windows), windows.user["user_id"] != UNKNOWN
        else:
            known = windows.history.lengths > 0
        found, scores = items.search(infer(towers, windows), n, seen)
        found[~known], scores[~known] = PADDING, 0
        for row in np.flatnonzero(~known):
            # Only an id that is unknown (user_id_only) can have seen anything here; its list may then end early.
            left = np.ones(len(popular.items), bool)
            if seen:
                left = ~np.isin(popular.items, seen.values[seen.offsets[row] : seen.offsets[row + 1]])
            found[row, : left.sum()], scores[row, : left.sum()] = popular.items[left], popular.counts[left]
        yield pa.RecordBatch.from_pydict(
            {
                "user_id": rows.column("user_id"),
                "items": scored_items(found, scores, items.item_ids),
                "source": pa.array(np.where(known, "model", "popular")),
                "model_version": pa.array([meta["version"]] * rows.num_rows),
            }
        )


def scored_items(found: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], item_ids: pa.Array) -> pa.Array:
    """[n, k] item indexes (0: none) and scores as a column of schemas.SCORED_ITEMS."""
    there = found != PADDING
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    pairs = pa.StructArray.from_arrays([item_ids.take(pa.array(found[there])), pa.array(scores[there])], ["item_id", "score"])
    return pa.ListArray.from_arrays(pa.array(offsets), pairs)
