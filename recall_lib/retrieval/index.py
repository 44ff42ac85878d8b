"""The item index: FAISS, or for few items a matrix product, finds candidates; exact scores put them in order.

The scores of both depend, in their last bits, on how the queries were batched. They only choose candidates here; the
candidates' scores are computed again one by one, and a row is searched deeper until no item outside could have belonged
in. So the same user gets the same list in any batch, partition and run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recall_lib.process.errors import DataRefused, UsageError
from recall_lib.retrieval.exact import Product
from recall_lib.samples.ids import FIRST_INDEX, PADDING
from recall_lib.samples.ragged import Ragged

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Packed = npt.NDArray[np.uint64]  # see _pack

# FAISS multiplies matrices from this many numbers of queries on, 128,000 by default; below it takes three times as long.
faiss.cvar.distance_compute_blas_threshold = 20
EXACT = "Flat"  # a FAISS index_factory string
_FEW_MISSING = 0.9  # share of the items from which a part is searched as the whole is
_LARGEST = 1e15  # of a number in a vector: FAISS squares it
_OVERFETCH = 16  # candidates beyond those needed, so that near-ties at the end rarely need a second search
_STEP = 1.25  # from one depth of search to the next
_CHUNK = 1 << 18  # rows times candidates of one search: bounds memory
_DENSE = 1 << 23  # scores held at once when all items are ranked
_FEW_ITEMS = 1 << 16  # up to which `Product` is faster than FAISS
_LAST = np.uint64(2**64 - 1)  # sorts after every packed score
_RANK = np.uint64(2**32 - 1)  # the part of a packed score that is the id's rank


@dataclass(frozen=True)
class ItemIndex:
    """Items that can be searched by inner product.

    Attributes:
        index: FAISS, METRIC_INNER_PRODUCT; its position p holds item index p + 2.
        vectors: float32 [n, d], row = item index; rows 0 and 1 are no candidates.
        item_ids: string [n], null for 0 and 1.
        id_rank: int64 [n], place of an item among all by the bytes of its id; breaks ties.
    """

    index: Any
    vectors: Floats
    item_ids: pa.Array
    id_rank: Ints

    @classmethod
    def build(cls, vectors: Floats, item_ids: pa.Array, factory: str = EXACT, nprobe: int | None = None) -> ItemIndex:
        """Index the vectors of items 2 and up.

        Args:
            vectors: float32 [n, d].
            item_ids: string [n], null for 0 and 1.
            factory: a FAISS index_factory string.
            nprobe: lists an IVF index visits; None: FAISS's default.

        Raises:
            UsageError: FAISS does not know the factory, or `nprobe` has no meaning for it.
            DataRefused: a vector is not finite, or there are too few items to train the index.
        """
        _require_finite(vectors, "item")
        try:
            index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
            if nprobe is not None:
                faiss.extract_index_ivf(index).nprobe = nprobe
        except RuntimeError as error:
            raise UsageError(f"index.factory {factory!r} with index.nprobe {nprobe}: FAISS says {_reason(error)}") from None
        candidates = np.ascontiguousarray(vectors[FIRST_INDEX:])
        try:
            if not index.is_trained:
                index.train(candidates)
            index.add(candidates)
        except RuntimeError as error:
            raise DataRefused(
                f"index.factory {factory!r} does not fit {len(candidates)} items: FAISS says {_reason(error)}"
            ) from None
        return cls(index, vectors, item_ids, id_ranks(item_ids))

    def save(self, folder: Path) -> None:
        """Write items.faiss, item_vectors.npy and item_ids.parquet (item_index, item_id, id_rank)."""
        faiss.write_index(self.index, str(folder / "items.faiss"))
        np.save(folder / "item_vectors.npy", self.vectors)
        numbers = {"item_index": np.arange(len(self.id_rank)), "id_rank": self.id_rank}
        table = {name: pa.array(values, pa.int32()) for name, values in numbers.items()} | {"item_id": self.item_ids}
        pq.write_table(pa.table(table), folder / "item_ids.parquet")

    @classmethod
    def load(cls, folder: Path, threads: int = 1) -> ItemIndex:
        """Read what `save` wrote; FAISS uses `threads` threads in this process from now on."""
        faiss.omp_set_num_threads(threads)
        ids = pq.read_table(folder / "item_ids.parquet")
        return cls(
            faiss.read_index(str(folder / "items.faiss")),
            np.load(folder / "item_vectors.npy", mmap_mode="r"),
            ids.column("item_id").combine_chunks(),
            ids.column("id_rank").to_numpy().astype(np.int64),
        )

    @cached_property
    def _largest_norm(self) -> float:
        return float(np.sqrt(np.einsum("id,id->i", self.vectors, self.vectors).max(initial=0)))

    @cached_property
    def _product(self) -> Product:
        return Product(self.vectors[FIRST_INDEX:])

    @cached_property
    def _item_of_rank(self) -> Ints:
        return np.argsort(self.id_rank[FIRST_INDEX:]) + FIRST_INDEX

    def search(self, users: Floats, n: int, seen: Ragged | None = None) -> tuple[Ints, Floats]:
        """The n items of the largest inner product, best first, ties by item id bytes.

        With a `Flat` index the result is exact. With an approximate one, a row is searched exactly that is left short of n or
        has seen more items than it wants. In no case does it matter what other rows there are.

        Args:
            users: float32 [B, d].
            n: items wanted a row; fewer where the catalogue ends.
            seen: item indexes (2 and up) to leave out, ascending in each row.

        Returns:
            Item indexes int64 [B, n], padded with 0, and their scores float32 [B, n].

        Raises:
            DataRefused: a user vector is not finite.
        """
        _require_finite(users, "user")
        seen = seen or nothing_seen(len(users))
        catalogue = len(self.vectors) - FIRST_INDEX
        packed = np.full((len(users), n), _LAST)
        fetch = np.minimum(_depths(n + _OVERFETCH, seen.lengths), catalogue)
        approximate = not isinstance(self.index, faiss.IndexFlat)
        deep = approximate & (seen.lengths > n + _OVERFETCH)  # its few lists would not hold what is left
        rows, again = np.flatnonzero(~deep) if catalogue else np.zeros(0, np.int64), [np.flatnonzero(deep)]
        while len(rows) or len(again[0]):
            for chunk, k in _chunks(rows, fetch):
                own = seen.slices(seen.offsets[chunk], seen.offsets[chunk + 1])
                packed[chunk], complete = self._search_chunk(users[chunk], n, k, own, approximate)
                again.append(chunk[~complete])
            rows, again = np.concatenate(again), [np.zeros(0, np.int64)]
            if not approximate:
                fetch[rows] = np.minimum(4 * fetch[rows], catalogue)
            approximate = False
        found = packed != _LAST
        items = (
            self._item_of_rank[np.where(found, packed & _RANK, 0).astype(np.int64)] if catalogue else np.zeros_like(packed, int)
        )
        return np.where(found, items, PADDING), np.where(found, _score(packed), np.float32(0))

    def rank(self, users: Floats, targets: Ints, seen: Ragged | None = None) -> Ints:
        """Place (from 1) of each row's target in its exact ranking of the whole catalogue, in `search`'s order.

        Args:
            users: float32 [B, d].
            targets: item indexes, int64 [B].
            seen: as in `search`.

        Returns:
            int64 [B]; 0 where the target is no candidate: below 2 or seen.
        """
        _require_finite(users, "user")
        seen = seen or nothing_seen(len(users))
        step = max(1, _DENSE // len(self.vectors))
        parts = [slice(i, i + step) for i in range(0, len(users), step)]
        ranks = [self._rank_chunk(users[p], targets[p], seen.slices(seen.offsets[:-1][p], seen.offsets[1:][p])) for p in parts]
        return np.concatenate([np.zeros(0, np.int64), *ranks])

    def exact(self) -> ItemIndex:
        """The same items behind an index that misses none."""
        return self if isinstance(self.index, faiss.IndexFlat) else ItemIndex.build(self.vectors, self.item_ids)

    def only(self, allowed: npt.NDArray[np.bool_]) -> ItemIndex:
        """Some of the items, numbered anew from 2 in the same order.

        Where a few are missing, the index is of the same kind and settings; where many are, it is exact: of what an approximate
        one finds among all items too little would be left.

        Args:
            allowed: of each item index, [n]; 0 and 1 stay what they are.
        """
        kept = np.flatnonzero(allowed[FIRST_INDEX:]) + FIRST_INDEX
        rows = np.concatenate([np.arange(FIRST_INDEX), kept])
        vectors = np.ascontiguousarray(self.vectors[rows])
        if isinstance(self.index, faiss.IndexFlat) or len(kept) < _FEW_MISSING * (len(self.vectors) - FIRST_INDEX):
            index: Any = faiss.IndexFlat(vectors.shape[1], faiss.METRIC_INNER_PRODUCT)
        else:
            index = faiss.clone_index(self.index)  # what training found, and nprobe and the like, stay
            index.reset()
        index.add(vectors[FIRST_INDEX:])
        id_rank = np.zeros(len(rows), np.int64)
        id_rank[np.argsort(self.id_rank[kept]) + FIRST_INDEX] = np.arange(len(kept))
        return replace(self, index=index, vectors=vectors, item_ids=self.item_ids.take(pa.array(rows)), id_rank=id_rank)

    def scores(self, users: Floats, items: Ints) -> Floats:
        """Inner products of users [B, d] with items [B, k], float32 [B, k]; each pair apart, whatever the batch."""
        found = np.empty(items.shape, np.float32)
        users, vectors = (np.ascontiguousarray(one, np.float32) for one in (users, self.vectors))
        items = np.ascontiguousarray(items, np.int64)
        swig: Any = faiss  # this function has no Python face of its own
        pointers = [swig.swig_ptr(array) for array in (found, users, vectors, items)]
        swig.fvec_inner_products_by_idx(*pointers, users.shape[1], *items.shape)
        return found

    def _slack(self, users: Floats) -> npt.NDArray[np.float64]:
        """How far a float32 inner product may lie from the exact one, whatever the order of its d sums, [B]."""
        return users.shape[1] * 2.0**-22 * np.linalg.norm(users.astype(np.float64), axis=1) * self._largest_norm

    def _search_chunk(
        self, users: Floats, n: int, k: int, seen: Ragged, approximate: bool
    ) -> tuple[Packed, npt.NDArray[np.bool_]]:
        """Packed results [b, n], and per row whether nothing outside its k candidates belongs among them."""
        catalogue = len(self.vectors) - FIRST_INDEX
        place, bound = self._candidates(users, k, approximate)
        items = place + FIRST_INDEX
        packed = _pack(self.scores(users, items), self.id_rank[items])
        packed[(place < 0) | contains(seen, items, len(self.vectors))] = _LAST
        packed.sort(axis=1)
        best = np.full((len(users), n), _LAST)
        best[:, : packed.shape[1]] = packed[:, :n]
        wanted = np.minimum(n, catalogue - seen.lengths)
        full = (best != _LAST).sum(axis=1) >= wanted
        if approximate or k == catalogue:
            return best, full
        last = np.where(wanted > 0, _score(best[np.arange(len(best)), np.maximum(wanted, 1) - 1]), np.inf)
        return best, full & (last > bound + self._slack(users))

    def _candidates(self, users: Floats, k: int, approximate: bool) -> tuple[Ints, npt.NDArray[np.floating]]:
        """Positions [b, k or more] of the items that may be wanted, -1: none, and the most that another one scores, but for the
        last bits, [b]."""
        if not approximate and len(self.vectors) <= _FEW_ITEMS:
            return self._product.best(users, k)
        if approximate and isinstance(self.index, faiss.IndexRefine):  # by exact scores here, not by its own
            found, place = self.index.base_index.search(users, int(k * self.index.k_factor))
        elif approximate or isinstance(self.index, faiss.IndexFlat):
            found, place = self.index.search(users, k)
        else:
            found, place = faiss.knn(users, self.vectors[FIRST_INDEX:], k, metric=faiss.METRIC_INNER_PRODUCT)
        return place, found[:, -1]

    def _rank_chunk(self, users: Floats, targets: Ints, seen: Ragged) -> Ints:
        target_score = self.scores(users, targets[:, None])
        slack = self._slack(users)[:, None]
        rough = users @ self.vectors.T
        rough[:, :FIRST_INDEX] = -np.inf
        rough[np.repeat(np.arange(len(users)), seen.lengths), seen.values] = -np.inf
        rank = 1 + (rough > target_score + slack).sum(axis=1)
        row, item = np.nonzero(np.abs(rough - target_score) <= slack)  # too near to tell: each pair apart
        near = _pack(self.scores(users[row], item[:, None])[:, 0], self.id_rank[item])
        ahead = near < _pack(target_score[:, 0], self.id_rank[targets])[row]
        return np.where(candidates(targets, seen, len(self.vectors)), rank + np.bincount(row[ahead], minlength=len(users)), 0)


def id_ranks(item_ids: pa.Array) -> Ints:
    """Place of each item among all by the bytes of its id, int64 [n]; 0 for the rows 0 and 1 that are no items."""
    ranks = np.zeros(len(item_ids), np.int64)
    order = pc.sort_indices(item_ids.slice(FIRST_INDEX).cast(pa.binary())).to_numpy()
    ranks[order.astype(np.int64) + FIRST_INDEX] = np.arange(len(order))
    return ranks


def read_id_ranks(folder: Path) -> Ints:
    """id_rank of a saved index, without the index."""
    return pq.read_table(folder / "item_ids.parquet", columns=["id_rank"]).column("id_rank").to_numpy().astype(np.int64)


def nothing_seen(rows: int) -> Ragged:
    """Empty lists of seen items."""
    return Ragged.of(np.zeros(0, np.int64), np.zeros(rows, np.int64))


def _depths(wanted: int, seen: Ints) -> Ints:
    """Candidates that each row needs, [B]: in steps, so that rows share searches, but by its own needs alone."""
    steps = np.ceil(np.log1p(seen / wanted) / np.log(_STEP))
    return np.ceil(wanted * _STEP**steps).astype(np.int64)


def _chunks(rows: Ints, fetch: Ints) -> Iterator[tuple[Ints, int]]:
    """(rows, candidates): a bounded number of rows that need the same."""
    rows = rows[np.argsort(fetch[rows], kind="stable")]
    while len(rows):
        need = fetch[rows]
        alike = int(np.searchsorted(need, need[0], side="right"))
        size = max(1, min(alike, _CHUNK // int(need[0])))
        yield rows[:size], int(need[0])
        rows = rows[size:]


def _pack(scores: Floats, id_rank: Ints) -> Packed:
    """One unsigned number a candidate that sorts by falling score, then by rising rank: sorting those is fast."""
    bits = (scores + np.float32(0)).view(np.uint32)  # + 0: no negative zero
    falling = np.where(bits >> 31, bits, ~bits & 0x7FFFFFFF).astype(np.uint64)
    return (falling << np.uint64(32)) | id_rank.astype(np.uint64)


def _score(packed: Packed) -> Floats:
    falling = (packed >> np.uint64(32)).astype(np.uint32)
    return np.where(falling >> 31, falling, ~falling & 0x7FFFFFFF).astype(np.uint32).view(np.float32)


def contains(lists: Ragged, values: Ints, bound: int) -> npt.NDArray[np.bool_]:
    """Whether values[i, j] is in list i (ascending), [B, k]."""
    keys = np.repeat(np.arange(len(values)), lists.lengths) * bound + lists.values
    wanted = values + np.arange(len(values))[:, None] * bound
    place = np.searchsorted(keys, wanted)
    return np.append(keys, -1)[place] == wanted


def candidates(targets: Ints, seen: Ragged, bound: int) -> npt.NDArray[np.bool_]:
    """Which of the item indexes [B] (below `bound`) their row could be recommended: known and unseen."""
    return (targets >= FIRST_INDEX) & ~contains(seen, targets[:, None], bound)[:, 0]


def _require_finite(vectors: Floats, whose: str) -> None:
    if not (np.abs(vectors) < _LARGEST).all():  # nor are those that are no numbers
        raise DataRefused(
            f"{whose} vectors are not finite or beyond {_LARGEST:g}: training diverged; lower training.learning_rate and run "
            "`recall train`"
        )


def _reason(error: RuntimeError) -> str:
    """The last line of a FAISS error, without the place in its source."""
    return str(error).strip().splitlines()[-1].removeprefix("Error: ")
