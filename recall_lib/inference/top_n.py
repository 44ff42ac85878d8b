"""The top-N of each user: infer, search, map back to raw ids (SPEC 5.4, 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recall_lib.inference.shipping import Shipped, load_index, load_model, task_cpus
from recall_lib.inference.vectors import blocks, infer, read_windows, user_id_alone
from recall_lib.samples.ids import FIRST_INDEX, PADDING, UNKNOWN
from recall_lib.samples.ragged import Ragged
from recall_lib.spark.writing import write_files

if TYPE_CHECKING:
    from recall_lib.retrieval.baselines import MostClicked
    from recall_lib.retrieval.index import ItemIndex

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
MODEL, POPULAR = "model", "popular"  # where a list comes from


@dataclass(frozen=True)
class Recommendable:
    """The items that users may get, in a numbering of their own.

    Attributes:
        items: these items.
        popular: what users get of whom the model knows nothing.
        clicks: of each item, int64 [items.n].
        place: number here of each item of the vocabulary, int64 [n]; 0 for one that nobody gets.
    """

    items: ItemIndex
    popular: MostClicked
    clicks: Ints
    place: Ints

    def of_seen(self, seen: Ragged) -> Ragged:
        """Lists of items of the vocabulary (ascending) as lists of those that are here."""
        items = self.place[seen.values]
        here = items != PADDING
        return Ragged(items[here], np.append(0, np.cumsum(here))[seen.offsets])


def save_recommendable(folder: Path, allowed: Bools, clicks: Ints) -> None:
    """Write which items may be recommended, bool [n] by item index, and their clicks, int64 [n], for the executors."""
    np.save(folder / "allowed.npy", allowed)
    np.save(folder / "clicks.npy", clicks)


@lru_cache(maxsize=1)
def load_recommendable(index: Shipped, recommendable: Shipped) -> Recommendable:
    """The allowed part of an item index, once a Python worker; `recommendable`: what `save_recommendable` wrote."""
    from recall_lib.retrieval.baselines import MostClicked
    from recall_lib.retrieval.index import ItemIndex

    allowed, clicks = (np.load(recommendable.folder() / f"{name}.npy") for name in ("allowed", "clicks"))
    # Of a part the worker does not keep the whole.
    whole = allowed[FIRST_INDEX:].all()
    items = load_index(index) if whole else ItemIndex.load(index.folder(), task_cpus()).only(allowed)
    clicks = np.append(np.zeros(FIRST_INDEX, np.int64), clicks[allowed])
    place = np.where(allowed, np.cumsum(allowed) + FIRST_INDEX - 1, PADDING)
    return Recommendable(items, MostClicked(clicks, items.id_rank), clicks, place)


def top_n(
    batches: Iterable[pa.RecordBatch],
    *,
    model: Shipped,
    index: Shipped,
    recommendable: Shipped,
    n: int,
    filter_seen: bool,
    user_id_only: bool = False,
) -> Iterator[pa.RecordBatch]:
    """Rows of runs (one target a row, with `seen`) -> rows of schemas.TOP_N, one a user, in the rows' order.

    Users without history or, with `user_id_only`, of an id that the model does not know get the most clicked items.

    Args:
        batches: users' histories.
        model: the towers.
        index: items to search.
        recommendable: which of them may be recommended, and their clicks.
        n: items a user; fewer where these items end.
        filter_seen: leave out what the user has clicked.
        user_id_only: look at nothing but the user id.
    """
    from recall_lib.retrieval.index import nothing_seen

    towers, meta = load_model(model)
    ours = load_recommendable(index, recommendable)
    for rows in blocks(batches, meta["samples"]["window_size"], n):
        windows = read_windows(rows, meta)
        if user_id_only:
            windows, known = user_id_alone(windows), windows.user["user_id"] != UNKNOWN
        else:
            known = windows.history.lengths > 0
        seen = ours.of_seen(Ragged.from_arrow(rows.column("seen"))) if filter_seen else nothing_seen(rows.num_rows)
        found, scores = np.zeros((rows.num_rows, n), np.int64), np.zeros((rows.num_rows, n), np.float32)
        found[known], scores[known] = ours.items.search(infer(towers, windows)[known], n, _rows(seen, known))
        found[~known] = ours.popular.search(n, _rows(seen, ~known))
        scores[~known] = ours.clicks[found[~known]]
        yield pa.RecordBatch.from_pydict(
            {
                "user_id": rows.column("user_id"),
                "items": scored_items(found, scores, ours.items.item_ids),
                "source": pa.array(np.where(known, MODEL, POPULAR)),
                "model_version": pa.array([meta["version"]] * rows.num_rows),
            }
        )


def write_top_n(batches: Iterable[pa.RecordBatch], *, folder: str, **settings: Any) -> Iterator[pa.RecordBatch]:
    """`top_n`, written to a file below a folder by the executor itself, not by way of Spark's rows."""
    return write_files(top_n(batches, **settings), folder)


def _rows(lists: Ragged, chosen: Bools) -> Ragged:
    return lists.slices(lists.offsets[:-1][chosen], lists.offsets[1:][chosen])


def scored_items(found: npt.NDArray[np.int64], scores: npt.NDArray[np.float32], item_ids: pa.Array) -> pa.Array:
    """[n, k] item indexes (0: none) and scores as a column of schemas.SCORED_ITEMS."""
    there = found != PADDING
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    pairs = pa.StructArray.from_arrays([item_ids.take(pa.array(found[there])), pa.array(scores[there])], ["item_id", "score"])
    return pa.ListArray.from_arrays(pa.array(offsets), pairs)
