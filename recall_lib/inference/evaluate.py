"""Held-out targets -> counts of ranks and of recommended items, for the model and the baselines (SPEC 7).

Executors return integers, so metrics do not depend on partitions or on the order of sums.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recall_lib.inference.shipping import Shipped, load_index, load_model
from recall_lib.inference.vectors import blocks, infer, read_windows
from recall_lib.samples.clicks import LEAST_HISTORY
from recall_lib.samples.ids import FIRST_INDEX, PADDING
from recall_lib.samples.ragged import Ints, Ragged
from recall_lib.transforms.metrics import CUTOFFS, EASE, RANKS, RECOMMENDERS

if TYPE_CHECKING:
    from recall_lib.retrieval.baselines import ItemToItem, MostClicked
    from recall_lib.retrieval.index import ItemIndex

DEPTH = CUTOFFS[-1]  # items per list
PERSONAL = ("model", "item_knn", EASE)  # these have no recommendations for a user without history


def evaluate(
    batches: Iterable[pa.RecordBatch], *, model: Shipped, index: Shipped, baselines: Shipped, filter_seen: bool
) -> Iterator[pa.RecordBatch]:
    """Rows of schemas.segments (one target per row, with `seen`) -> rows of transforms.metrics.TALLY.

    For a row without a known item in its history, the recommenders model, item_knn and ease give the popular list.

    Args:
        batches: test rows; a target outside the vocabulary or among the filtered seen items is a miss.
        model: the towers.
        index: the item vectors; they are searched exactly, whatever the kind of the index.
        baselines: the folder of `save_baselines`.
        filter_seen: whether all recommenders leave out the items that the user has clicked.
    """
    towers, meta = load_model(model)
    items, popular, recent, by_history = _recommenders(index, baselines)
    tally = _Tally(len(items.vectors))
    for rows in blocks(batches, meta["samples"]["window_size"]):
        windows = read_windows(rows, meta)
        targets = windows.target
        seen = Ragged.from_arrow(rows.column("seen"))
        if not filter_seen:
            seen = Ragged.of(seen.values[:0], np.zeros_like(seen.lengths))
        users, last = infer(towers, windows), _last_clicks(rows)
        results = {
            # (items [B, DEPTH], ranks [B])
            "model": (items.search(users, DEPTH, seen)[0], items.rank(users, targets, seen)),
            "popular": (popular.search(DEPTH, seen), popular.rank(targets, seen)),
            "recent_popular": (recent.search(DEPTH, seen), recent.rank(targets, seen)),
            **{name: one.search_and_rank(last, DEPTH, targets, seen) for name, one in by_history.items()},
        }
        known = np.append(0, np.cumsum(windows.history.values >= FIRST_INDEX))[windows.history.offsets]  # [B + 1]
        unknown = np.diff(known) == 0  # [B], whether the history has no known item
        for name, (found, ranks) in results.items():
            if name in PERSONAL:
                found[unknown], ranks[unknown] = (hottest[unknown] for hottest in results["popular"])
            tally.add(name, found, ranks)
    yield from tally.record_batches()


class _Tally:
    """How often each rank, and each item within each cutoff, occurred; rank 0 is a miss."""

    def __init__(self, items: int) -> None:
        self.ranks = {name: np.zeros(items, np.int64) for name in RECOMMENDERS}
        self.items = {(name, k): np.zeros(items, np.int64) for name in RECOMMENDERS for k in CUTOFFS}

    def add(self, name: str, found: Ints, ranks: Ints) -> None:
        """Count a recommender's lists, [B, DEPTH], and the targets' ranks, [B]."""
        self.ranks[name] += np.bincount(ranks, minlength=len(self.ranks[name]))
        for k in CUTOFFS:
            counts = np.bincount(found[:, :k].reshape(-1), minlength=len(self.ranks[name]))  # [B, k] -> [B * k] -> [items]
            counts[PADDING] = 0
            self.items[name, k] += counts

    def record_batches(self) -> Iterator[pa.RecordBatch]:
        """The counts as rows of TALLY."""
        for (name, k), counts in [*(((name, RANKS), counts) for name, counts in self.ranks.items()), *self.items.items()]:
            key = np.flatnonzero(counts)
            named = pa.array([name] * len(key), pa.string())  # with a type, because the list may be empty
            columns = {"recommender": named, "cutoff": pa.array(np.full(len(key), k, np.int32))}
            yield pa.RecordBatch.from_pydict(columns | {"key": pa.array(key), "count": pa.array(counts[key])})


@lru_cache(maxsize=1)
def _recommenders(index: Shipped, baselines: Shipped) -> tuple[ItemIndex, MostClicked, MostClicked, dict[str, ItemToItem]]:
    from recall_lib.retrieval.baselines import EASE_FILE, Ease, ItemKnn, MostClicked

    items, folder = load_index(index).exact(), baselines.folder()
    popular, recent = (MostClicked(np.load(folder / f"{name}.npy"), items.id_rank) for name in ("popular", "recent"))
    by_history: dict[str, ItemToItem] = {"item_knn": ItemKnn(folder, items.id_rank)}
    if (folder / EASE_FILE).exists():
        by_history[EASE] = Ease(folder, items.id_rank)
    return items, popular, recent, by_history


def _last_clicks(rows: pa.RecordBatch) -> Ragged:
    """The last LEAST_HISTORY clicks before each row's target (ragged [B])."""
    tokens = Ragged.from_arrow(rows.column("item_index"))
    end = tokens.offsets[1:] - 1  # the last token is the target
    return tokens.slices(np.maximum(tokens.offsets[:-1], end - LEAST_HISTORY), end)
