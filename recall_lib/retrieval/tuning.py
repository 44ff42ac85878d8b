"""An index chosen by what it must find: the cheapest that keeps a promised recall of the exact top-N on real users.

The choice goes by counted comparisons, not by the clock, so that a rerun makes the same index; how fast it is beside the
exact search is measured and told.
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

# Lists of four bits a dimension, scanned fast; of what they bring, _BROUGHT times the items wanted are ordered by a byte a
# dimension. That is enough to choose candidates: `ItemIndex` computes their scores.
_FACTORY, _BROUGHT = "IVF{lists},PQ{width}x4fs,Refine(SQ8)", 3.0
# What its search costs more than an exact one, in items that the latter compares (it multiplies matrices): once a user, and
# for each item in the lists visited. Measured for 200 items of 64 dimensions on one core.
_IVF_FIXED, _IVF_EACH = 25_000, 2.5
_LEAST_IN_LIST = 39  # items; with fewer FAISS warns that the lists mean little
_LEAST_USERS = 100  # on whom a recall says something
_FINER = 1.15  # the next number of lists that is tried


def build_by_promise(
    vectors: Float32s, item_ids: pa.Array, users: Float32s, n: int, target: float
) -> tuple[ItemIndex, dict[str, Any]]:
    """The index of the fewest comparisons whose recall@n keeps the promise; the exact one where none does.

    The lists to visit are as few as half of the users need, by two standard errors above the target; the recall that is told
    is that of the other half, which must hold the target too. Users have seen nothing here: who has seen much is searched
    exactly by `ItemIndex`.

    Args:
        vectors: of items, float32 [n, d], as in `ItemIndex.build`.
        item_ids: string [n].
        users: vectors of real users, float32 [m, d], each another; with too few of them the index is exact.
        n: items that a user gets.
        target: share of the exact top-n that must be found, up to 1.

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
    """Comparisons a user of `index.search`, those of the exact search for users whom the lists leave short of n included."""
    counted = cast(Any, faiss.cvar).indexIVF_stats
    counted.reset()
    _, place = index.index.search(users, n)
    short = (place < 0).any(axis=1).mean()
    return float(_IVF_FIXED + _IVF_EACH * counted.ndis / len(users) + short * len(index.vectors))


def measure(index: ItemIndex, exact: ItemIndex, users: Float32s, n: int) -> dict[str, Any]:
    """What an index finds and how fast: "n", "users_measured", "recall" (of the exact top-n, the mean over the users; 1 of no
    users), "users_per_second" and "exact_users_per_second" in this process.

    Args:
        index: any kind.
        exact: of the same items.
        users: float32 [m, d].
        n: items that a user gets.
    """
    for one in (exact, index):
        one.search(users[:1], n)  # what it makes ready once
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
    """Share of each row's wanted items that were found, [B]; of no wanted item 1.

    Args:
        found: item indexes, int64 [B, n], padded with 0.
        wanted: the same.
    """
    there = wanted >= FIRST_INDEX
    ascending = np.sort(found, axis=1)
    known = ascending >= FIRST_INDEX
    bound = int(max(found.max(initial=0), wanted.max(initial=0))) + 1
    hits = contains(Ragged.of(ascending[known], known.sum(axis=1)), wanted, bound) & there
    return np.where(there.any(axis=1), hits.sum(axis=1) / np.maximum(there.sum(axis=1), 1), 1.0)


def _lists(items: int) -> int:
    """A power of two of up to two square roots: choosing lists then costs about as much as looking into a few of them."""
    return 1 << int(np.log2(max(1, min(2 * np.sqrt(items), items / _LEAST_IN_LIST))))


def _ladder(lists: int) -> Iterator[int]:
    nprobe = 1
    while nprobe < lists:
        yield nprobe
        nprobe = max(nprobe + 1, int(nprobe * _FINER))
