"""The one pass over users: infer each user's vector, search the top-N, map item indexes to ids (SPEC 5.1, 5.4, 6)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from recall_lib.inference.shipping import Shipped, load_index, load_model, task_cpus
from recall_lib.inference.vectors import blocks, infer, read_windows, user_id_alone, vectors_of_users
from recall_lib.samples.ids import FIRST_INDEX, PADDING, UNKNOWN
from recall_lib.samples.ragged import Bools, Float32s, Ints, Ragged
from recall_lib.spark.writing import write_files

if TYPE_CHECKING:
    from recall_lib.retrieval.baselines import MostClicked
    from recall_lib.retrieval.index import ItemIndex

MODEL, POPULAR = "model", "popular"  # where a list comes from
VECTORS, TOP_N, TOP_N_USER_ID = "vectors", "top_n", "top_n_user_id"  # the tables that the pass writes


@dataclass(frozen=True)
class Recommendable:
    """The items that may be recommended, renumbered from 2 on.

    Attributes:
        items: the index of these items.
        popular: the most clicked of these items, for users of whom the model knows nothing.
        clicks: clicks of each of these items, by its new number, int64.
        place: the new number of each item index of the vocabulary, int64 [n]; 0 for an item that is not recommended.
    """

    items: ItemIndex
    popular: MostClicked
    clicks: Ints
    place: Ints

    def lists(self, users: Float32s, known: Bools, n: int, seen: Ragged) -> dict[str, pa.Array]:
        """Columns `items` and `source` of schemas.TOP_N.

        Args:
            users: vectors, [B, d].
            known: whether the model knows anything about each user, [B]; the others get the most clicked items.
            n: items per user.
            seen: items to leave out of each user's list, by their new numbers.
        """
        found, scores = np.zeros((len(users), n), np.int64), np.zeros((len(users), n), np.float32)  # [B, n] each
        found[known], scores[known] = self.items.search(users[known], n, _rows(seen, known))
        found[~known] = self.popular.search(n, _rows(seen, ~known))
        scores[~known] = self.clicks[found[~known]]
        items = scored_items(found, scores, self.items.item_ids)
        return {"items": items, "source": pa.array(np.where(known, MODEL, POPULAR))}

    def of_seen(self, seen: Ragged) -> Ragged:
        """Lists of ascending item indexes -> the same lists by new numbers, without items that are not recommended."""
        items = self.place[seen.values]
        here = items != PADDING
        return Ragged(items[here], np.append(0, np.cumsum(here))[seen.offsets])


def save_recommendable(folder: Path, allowed: Bools, clicks: Ints) -> None:
    """Write two arrays by item index for the executors: whether it may be recommended, bool [n], and its clicks, int64 [n]."""
    np.save(folder / "allowed.npy", allowed)
    np.save(folder / "clicks.npy", clicks)


@lru_cache(maxsize=1)
def load_recommendable(index: Shipped, recommendable: Shipped) -> Recommendable:
    """The allowed part of an item index, once per Python worker; `recommendable`: the folder of `save_recommendable`."""
    from recall_lib.retrieval.baselines import MostClicked
    from recall_lib.retrieval.index import ItemIndex

    allowed, clicks = (np.load(recommendable.folder() / f"{name}.npy") for name in ("allowed", "clicks"))
    # If only some items are allowed, load_index is not used: its cache would keep the whole index in memory.
    whole = allowed[FIRST_INDEX:].all()
    items = load_index(index) if whole else ItemIndex.load(index.folder(), task_cpus()).only(allowed)
    clicks = np.append(np.zeros(FIRST_INDEX, np.int64), clicks[allowed])
    place = np.where(allowed, np.cumsum(allowed) + FIRST_INDEX - 1, PADDING)
    return Recommendable(items, MostClicked(clicks, items.id_rank), clicks, place)


def infer_and_search(
    batches: Iterable[pa.RecordBatch],
    *,
    model: Shipped,
    index: Shipped,
    recommendable: Shipped,
    n: int,
    filter_seen: bool,
    user_id_only: bool = False,
) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Rows of schemas.segments (one target per row, with `seen`) -> (table, its rows).

    Each table has one row per user, in the order of the input.
    VECTORS has schemas.USER_VECTORS, the others have schemas.TOP_N. Users without history get the most clicked items; in
    TOP_N_USER_ID users whose id the model does not know get them.

    Args:
        batches: users' histories.
        model: the towers.
        index: items to search.
        recommendable: which of them may be recommended, and their clicks.
        n: items per user; a list is shorter if there are not enough items.
        filter_seen: leave out the items that the user has clicked.
        user_id_only: also yield TOP_N_USER_ID, which uses no input but the user id.
    """
    from recall_lib.retrieval.index import nothing_seen

    towers, meta = load_model(model)
    ours = load_recommendable(index, recommendable)
    for rows in blocks(batches, meta["samples"]["window_size"], n):
        windows, users = read_windows(rows, meta), {"user_id": rows.column("user_id")}
        version = {"model_version": pa.array([meta["version"]] * rows.num_rows)}
        seen = ours.of_seen(Ragged.from_arrow(rows.column("seen"))) if filter_seen else nothing_seen(rows.num_rows)
        vectors = infer(towers, windows)
        yield VECTORS, vectors_of_users(rows, vectors)
        lists = ours.lists(vectors, windows.history.lengths > 0, n, seen)
        yield TOP_N, pa.RecordBatch.from_pydict(users | lists | version)
        if user_id_only:
            vectors = infer(towers, user_id_alone(windows))
            lists = ours.lists(vectors, windows.user["user_id"] != UNKNOWN, n, seen)
            yield TOP_N_USER_ID, pa.RecordBatch.from_pydict(users | lists | version)


def write_pass(batches: Iterable[pa.RecordBatch], *, folders: Mapping[str, str], **settings: Any) -> Iterator[pa.RecordBatch]:
    """`infer_and_search`, written by the executor itself to a file in the folder of each table; Spark gets no rows."""
    found = infer_and_search(batches, user_id_only=TOP_N_USER_ID in folders, **settings)
    return write_files((folders[table], rows) for table, rows in found)


def _rows(lists: Ragged, chosen: Bools) -> Ragged:
    """The chosen lists, `chosen`: [n]."""
    return lists.slices(lists.offsets[:-1][chosen], lists.offsets[1:][chosen])


def scored_items(found: Ints, scores: Float32s, item_ids: pa.Array) -> pa.Array:
    """Item indexes [n, k] (0: no item) and their scores [n, k], as a column of schemas.SCORED_ITEMS."""
    there = found != PADDING  # [n, k]; indexing with it gives [items found], row after row
    offsets = np.concatenate([[0], np.cumsum(there.sum(axis=1))]).astype(np.int32)
    pairs = pa.StructArray.from_arrays([item_ids.take(pa.array(found[there])), pa.array(scores[there])], ["item_id", "score"])
    return pa.ListArray.from_arrays(pa.array(offsets), pairs)
