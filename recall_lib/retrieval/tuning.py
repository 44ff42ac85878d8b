"""Chooses an index by its recall: the cheapest index that reaches a target recall of the exact top-N on real users.

The choice depends on counted comparisons, not on measured time, so that a rerun makes the same index. Its speed, and that of
the exact search, are measured and reported.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, cast

import faiss
import numpy as np
import pyarrow as pa

from recall_lib.retrieval.index import EXACT, ItemIndex, contains
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.samples.ragged import Float32s, Float64s, Ints, Ragged

# The lists hold four bits per dimension, which FAISS scans fast. Of the items they yield, the best _BROUGHT times the wanted
# number are ordered by one byte per dimension. This only chooses candidates: `ItemIndex` computes their scores.
_FACTORY, _BROUGHT = "IVF{lists},PQ{width}x4fs,Refine(SQ8)", 3.0
# The cost of its search, in items that the exact search (a matrix product) compares in the same time: per user, and per item
# in the visited lists. Measured on one core, for 200 wanted items and 64 dimensions.
_IVF_FIXED, _IVF_EACH = 25_000, 2.5
_LEAST_IN_LIST = 39  # items per list; with fewer FAISS warns that the lists are not meaningful
_LEAST_USERS = 100  # users; with fewer a measured recall is not meaningful
_FINER = 1.15  # factor from one tried number of visited lists to the next


def build_by_promise(
    vectors: Float32s, item_ids: pa.Array, users: Float32s, n: int, target: float
) -> tuple[ItemIndex, dict[str, Any]]:
    """The index with the fewest comparisons whose recall@n reaches the target; the exact index if none does.

    One half of the users chooses the number of visited lists: the smallest number whose recall is above the target by two
    standard errors. The other half must reach the target too, and its recall is reported. Users are searched as if they had
    seen nothing; `ItemIndex` searches exactly for a user who has seen many items.

    Args:
        vectors: item vectors, float32 [n, d], as in `ItemIndex.build`.
        item_ids: string [n].
        users: vectors of different real users, float32 [m, d]; with too few of them the index is exact.
        n: items per user.
        target: the share of the exact top-n that must be found, up to 1.

    Returns:
        The index, and its facts: "factory", "nprobe", "recall_target" and those of `measure`.
    """
    exact, items = ItemIndex.build(vectors, item_ids), len(vectors) - FIRST_INDEX
    tuning, others, lists = users[::2], users[1::2], _lists(items)
    if target < 1 and len(others) >= _LEAST_USERS and items > _IVF_FIXED + lists:
        factory = _FACTORY.format(lists=lists, width=vectors.shape[1])
        index, wanted = ItemIndex.build(vectors, item_ids, factory), exact.search(tuning, n)[0]
        index.index.k_factor = _BROUGHT
        for nprobe in _ladder(lists):
            faiss.extract_index_ivf(index.index).nprobe = nprobe
            if _cost(index, tuning, n) > items:
                break
            recall = recalls(index.search(tuning, n)[0], wanted)
            if recall.mean() - 2 * recall.std() / np.sqrt(len(recall)) >= target:
                facts = measure(index, exact, others, n)
                if facts["recall"] >= target:
                    return index, {"factory": factory, "nprobe": nprobe, "recall_target": target} | facts
    return exact, {"factory": EXACT, "nprobe": None, "recall_target": target} | measure(exact, exact, others, n)


def _cost(index: ItemIndex, users: Float32s, n: int) -> float:
    """Comparisons per user of `index.search`, including the exact searches for users who get fewer than n from the lists."""
    counted = cast(Any, faiss.cvar).indexIVF_stats
    counted.reset()
    _, place = index.index.search(users, n)
    short = (place < 0).any(axis=1).mean()
    return float(_IVF_FIXED + _IVF_EACH * counted.ndis / len(users) + short * len(index.vectors))


def measure(index: ItemIndex, exact: ItemIndex, users: Float32s, n: int) -> dict[str, Any]:
    """The recall and the speed of an index.

    Args:
        index: any kind of index.
        exact: the exact index of the same items.
        users: float32 [m, d].
        n: items per user.

    Returns:
        {"n", "users_measured", "recall": the mean over the users, 1 without users, "users_per_second" and
        "exact_users_per_second" in this process}
    """
    for one in (exact, index):
        one.search(users[:1], n)  # prepares what it needs only once
    begun = time.perf_counter()
    wanted = exact.search(users, n)[0]
    between = time.perf_counter()
    found = index.search(users, n)[0]
    ended = time.perf_counter()
    return {
        "n": n,
        "users_measured": len(users),
        "recall": float(recalls(found, wanted).mean()) if len(users) else 1.0,
        "users_per_second": round(len(users) / (ended - between), 1),
        "exact_users_per_second": round(len(users) / (between - begun), 1),
    }


def recalls(found: Ints, wanted: Ints) -> Float64s:
    """The share of each row's wanted items that were found, [B]; 1 for a row without wanted items.

    Args:
        found: item indexes, int64 [B, n], padded with 0.
        wanted: item indexes, likewise.
    """
    there = wanted >= FIRST_INDEX
    ascending = np.sort(found, axis=1)
    known = ascending >= FIRST_INDEX
    bound = int(max(found.max(initial=0), wanted.max(initial=0))) + 1
    hits = contains(Ragged.of(ascending[known], known.sum(axis=1)), wanted, bound) & there
    return np.where(there.any(axis=1), hits.sum(axis=1) / np.maximum(there.sum(axis=1), 1), 1.0)


def _lists(items: int) -> int:
    """A power of two, up to twice the square root of `items`: choosing lists then costs about as much as scanning a few."""
    return 1 << int(np.log2(max(1, min(2 * np.sqrt(items), items / _LEAST_IN_LIST))))


def _ladder(lists: int) -> Iterator[int]:
    """The numbers of visited lists to try, ascending, below `lists`."""
    nprobe = 1
    while nprobe < lists:
        yield nprobe
        nprobe = max(nprobe + 1, int(nprobe * _FINER))
