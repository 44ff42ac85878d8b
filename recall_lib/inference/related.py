"""Related items: those with the nearest vectors, and those that the same users clicked (SPEC 6.3)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from recall_lib.inference.shipping import Shipped, load_index
from recall_lib.inference.top_n import scored_items
from recall_lib.inference.vectors import blocks
from recall_lib.samples.ragged import Float32s, Ints, Ragged

if TYPE_CHECKING:
    from recall_lib.retrieval.index import ItemIndex

VECTORS, COVISITATION = "vectors", "covisitation"


def related_by_vectors(
    batches: Iterable[pa.RecordBatch], *, index: Shipped, n: int, has_bias: bool
) -> Iterator[pa.RecordBatch]:
    """Rows item_index -> rows of schemas.RELATED: the n items whose vectors have the largest cosine with the item's.

    With `has_bias` the first number of each vector is the item's bias. It is left out, because it does not measure similarity.
    """
    items = _cosine_index(index, has_bias)
    for rows in blocks(batches):
        own = rows.column("item_index").to_numpy().astype(np.int64)
        itself = Ragged.of(own, np.ones(len(own), np.int64))
        found, scores = items.search(items.vectors[own], n, itself)
        yield _related(VECTORS, items.item_ids, own, found, scores)


def related_by_covisits(
    batches: Iterable[pa.RecordBatch], *, index: Shipped, users_of_item: Ints, n: int
) -> Iterator[pa.RecordBatch]:
    """Rows of COVISITS -> rows of schemas.RELATED: the n items with the largest cosine between binary user columns.

    Args:
        batches: counts of pairs.
        index: gives the items' ids and their order for ties.
        users_of_item: how many users clicked each item, int64 [items].
        n: items per list; a list is shorter if fewer items share a user with the item.
    """
    items = load_index(index)
    for rows in blocks(batches):
        own = rows.column("item_index").to_numpy().astype(np.int64)
        others, users = Ragged.from_arrow(rows.column("other")), Ragged.from_arrow(rows.column("users"))
        found, scores = np.zeros((len(own), n), np.int64), np.zeros((len(own), n), np.float32)
        for row, item in enumerate(own):
            span = slice(others.offsets[row], others.offsets[row + 1])
            other = others.values[span]  # [others], as `norms`, `cosine`
            norms = np.sqrt((users_of_item[item] * users_of_item[other]).astype(np.float64))
            cosine = (users.values[span] / norms).astype(np.float32)
            best = np.lexsort((items.id_rank[other], -cosine))
            best = best[other[best] != item][:n]
            found[row, : len(best)], scores[row, : len(best)] = other[best], cosine[best]
        yield _related(COVISITATION, items.item_ids, own, found, scores)


@lru_cache(maxsize=1)
def _cosine_index(index: Shipped, has_bias: bool) -> ItemIndex:
    """The items' vectors without bias and with norm 1, so that the inner product is the cosine; once per Python worker."""
    from recall_lib.retrieval import simple_lsh
    from recall_lib.retrieval.index import ItemIndex

    items = load_index(index)
    return ItemIndex.build(simple_lsh.users(items.vectors[:, int(has_bias) :]), items.item_ids)


def _related(source: str, item_ids: pa.Array, own: Ints, found: Ints, scores: Float32s) -> pa.RecordBatch:
    columns = {"source": pa.array([source] * len(own)), "item_id": item_ids.take(pa.array(own))}
    return pa.RecordBatch.from_pydict(columns | {"items": scored_items(found, scores, item_ids)})
