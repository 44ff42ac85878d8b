"""The item index: FAISS, or a matrix product for few items, finds candidates; exact scores put them in order.

The scores of FAISS or of the product depend, in their last bits, on the batch that a query came in. So they only choose
candidates. The candidates' scores are computed again one by one, and a row is searched deeper until no other item can belong
to its list. So a user gets the same list in any batch, partition and run.
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
from recall_lib.retrieval.exact import ExactSearch
from recall_lib.samples.ids import FIRST_INDEX, PADDING
from recall_lib.samples.ragged import Bools, Float32s, Float64s, Floats, Ints, Ragged

# A candidate as one number that sorts by falling score, then by rising rank of the id's bytes:
#     | upper 32 bits: the score, flipped so that a larger score is a smaller number | lower 32 bits: the rank |
Packed = npt.NDArray[np.uint64]
_RANK = np.uint64(2**32 - 1)  # the lower half
_LAST = np.uint64(2**64 - 1)  # no candidate: sorts after every other

# FAISS multiplies matrices if the queries hold at least this many numbers, 128,000 by default. Below that a search takes three
# times as long.
faiss.cvar.distance_compute_blas_threshold = 20
EXACT = "Flat"  # a FAISS index_factory string
_FEW_MISSING = 0.9  # a part of the items keeps the kind of index if it has at least this share of them
_LARGEST = 1e15  # largest number in a vector; FAISS squares it
_OVERFETCH = 16  # additional candidates, so that near-ties at the end of a list rarely need a second search
_STEP = 1.25  # factor from one depth of search to the next
_DEEPER = 4  # factor of candidates for a row that was not searched deep enough
_CHUNK = 1 << 18  # rows x candidates of one search; bounds memory
_DENSE = 1 << 23  # scores in memory at once when all items are ranked
_FEW_ITEMS = 1 << 16  # up to this many items `ExactSearch` is faster than FAISS


@dataclass(frozen=True)
class ItemIndex:
    """Items that can be searched by inner product.

    Attributes:
        index: a FAISS index with METRIC_INNER_PRODUCT; its position p holds item index p + 2.
        vectors: float32 [n, d], row = item index; rows 0 and 1 are not candidates.
        item_ids: string [n], null for 0 and 1.
        id_rank: int64 [n], the rank of each item by the bytes of its id; breaks ties.
    """

    index: Any
    vectors: Float32s
    item_ids: pa.Array
    id_rank: Ints

    @classmethod
    def build(cls, vectors: Float32s, item_ids: pa.Array, factory: str = EXACT, nprobe: int | None = None) -> ItemIndex:
        """Index the vectors of items 2 and up.

        Args:
            vectors: float32 [n, d].
            item_ids: string [n], null for 0 and 1.
            factory: a FAISS index_factory string.
            nprobe: number of lists that an IVF index visits; None: FAISS's default.

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
        """Read the files of `save`; from now on FAISS uses `threads` threads in this process."""
        faiss.omp_set_num_threads(threads)
        ids = pq.read_table(folder / "item_ids.parquet")
        return cls(
            faiss.read_index(str(folder / "items.faiss")),
            np.load(folder / "item_vectors.npy", mmap_mode="r"),
            ids.column("item_id").combine_chunks(),
            ids.column("id_rank").to_numpy().astype(np.int64),
        )

    @property
    def size(self) -> int:
        """Number of items that can be recommended."""
        return len(self.vectors) - FIRST_INDEX

    @property
    def is_exact(self) -> bool:
        """Whether the index misses no item."""
        return isinstance(self.index, faiss.IndexFlat)

    @cached_property
    def _largest_norm(self) -> float:
        return float(np.sqrt(np.einsum("id,id->i", self.vectors, self.vectors).max(initial=0)))

    @cached_property
    def _exact_search(self) -> ExactSearch:
        return ExactSearch(self.vectors[FIRST_INDEX:])

    @cached_property
    def _item_of_rank(self) -> Ints:
        return np.argsort(self.id_rank[FIRST_INDEX:]) + FIRST_INDEX

    def search(self, users: Float32s, n: int, seen: Ragged | None = None) -> tuple[Ints, Float32s]:
        """The n items with the largest inner products, best first, ties by item id bytes.

        With a `Flat` index the result is exact. With an approximate one, two kinds of rows are searched exactly: rows for which
        it finds fewer than n items, and rows that have seen more items than they want. A row's result does not depend on the
        other rows.

        Args:
            users: float32 [B, d].
            n: items wanted per row; a row gets fewer if there are not enough items.
            seen: item indexes (2 and up) to leave out, ascending in each row.

        Returns:
            Item indexes int64 [B, n], padded with 0, and their scores float32 [B, n].

        Raises:
            DataRefused: a user vector is not finite.
        """
        _require_finite(users, "user")
        if not self.size:
            return np.full((len(users), n), PADDING), np.zeros((len(users), n), np.float32)
        search = _Search(self, users, n, seen or nothing_seen(len(users)))
        rows = np.arange(len(users))
        if not self.is_exact:
            rows = search.by_lists(rows)
        search.exactly(rows)
        missing = search.best == _LAST
        items = self._item_of_rank[np.where(missing, 0, search.best & _RANK).astype(np.int64)]
        return np.where(missing, PADDING, items), np.where(missing, np.float32(0), _score(search.best))

    def rank(self, users: Float32s, targets: Ints, seen: Ragged | None = None) -> Ints:
        """Rank (from 1) of each row's target in its exact ranking of the whole catalogue, in the order of `search`.

        Args:
            users: float32 [B, d].
            targets: item indexes, int64 [B].
            seen: as in `search`.

        Returns:
            int64 [B]; 0 if the target is not a candidate: below 2, or seen.
        """
        _require_finite(users, "user")
        seen = seen or nothing_seen(len(users))
        step = max(1, _DENSE // len(self.vectors))
        parts = [slice(i, i + step) for i in range(0, len(users), step)]
        ranks = [self._rank_chunk(users[p], targets[p], seen.slices(seen.offsets[:-1][p], seen.offsets[1:][p])) for p in parts]
        return np.concatenate([np.zeros(0, np.int64), *ranks])

    def exact(self) -> ItemIndex:
        """The same items in an exact index."""
        return self if self.is_exact else ItemIndex.build(self.vectors, self.item_ids)

    def only(self, allowed: Bools) -> ItemIndex:
        """Some of the items, renumbered from 2 on in the same order.

        If few items are missing, the index keeps its kind and settings. If many are missing it is exact, because too few of the
        items that an approximate index finds would be left.

        Args:
            allowed: whether each item index is kept, [n]; 0 and 1 always are.
        """
        kept = np.flatnonzero(allowed[FIRST_INDEX:]) + FIRST_INDEX
        rows = np.concatenate([np.arange(FIRST_INDEX), kept])
        vectors = np.ascontiguousarray(self.vectors[rows])
        if self.is_exact or len(kept) < _FEW_MISSING * self.size:
            index: Any = faiss.IndexFlat(vectors.shape[1], faiss.METRIC_INNER_PRODUCT)
        else:
            index = faiss.clone_index(self.index)  # keeps the trained parts and settings such as nprobe
            index.reset()
        index.add(vectors[FIRST_INDEX:])
        id_rank = np.zeros(len(rows), np.int64)
        id_rank[np.argsort(self.id_rank[kept]) + FIRST_INDEX] = np.arange(len(kept))
        return replace(self, index=index, vectors=vectors, item_ids=self.item_ids.take(pa.array(rows)), id_rank=id_rank)

    def scores(self, users: Float32s, items: Ints) -> Float32s:
        """Inner products of users [B, d] with items [B, k], float32 [B, k]; each pair by itself, whatever the batch."""
        found = np.empty(items.shape, np.float32)
        users, vectors = (np.ascontiguousarray(one, np.float32) for one in (users, self.vectors))
        items = np.ascontiguousarray(items, np.int64)
        swig: Any = faiss  # this function has no Python wrapper
        pointers = [swig.swig_ptr(array) for array in (found, users, vectors, items)]
        swig.fvec_inner_products_by_idx(*pointers, users.shape[1], *items.shape)
        return found

    def _slack(self, users: Float32s) -> Float64s:
        """How far a float32 inner product may be from the exact one, whatever the order of its d sums, [B]."""
        return users.shape[1] * 2.0**-22 * np.linalg.norm(users.astype(np.float64), axis=1) * self._largest_norm

    def _rank_chunk(self, users: Float32s, targets: Ints, seen: Ragged) -> Ints:
        """`rank` for so few rows that their scores with all items fit into memory."""
        target_score = self.scores(users, targets[:, None])  # [B, 1]
        slack = self._slack(users)[:, None]  # [B, 1]
        rough = users @ self.vectors.T  # [B, n], exact except for the last bits
        rough[:, :FIRST_INDEX] = -np.inf
        rough[np.repeat(np.arange(len(users)), seen.lengths), seen.values] = -np.inf
        better = (rough > target_score + slack).sum(axis=1)
        # Pairs of row and item whose scores are too close to the target's, [pairs]: each is computed again by itself.
        row, item = np.nonzero(np.abs(rough - target_score) <= slack)
        near = _pack(self.scores(users[row], item[:, None])[:, 0], self.id_rank[item])
        ahead = near < _pack(target_score[:, 0], self.id_rank[targets])[row]
        rank = 1 + better + np.bincount(row[ahead], minlength=len(users))
        return np.where(candidates(targets, seen, len(self.vectors)), rank, 0)


class _Search:
    """One call of `ItemIndex.search`: up to two passes over rows (users), which fill `best`.

    Attributes:
        best: the n best of each row so far, uint64 [B, n], ascending as packed; _LAST where there are fewer.
        depth: candidates to fetch for each row, int64 [B]. It depends on nothing but the row's own needs.
    """

    def __init__(self, index: ItemIndex, users: Float32s, n: int, seen: Ragged) -> None:
        self.index, self.users, self.n, self.seen = index, users, n, seen
        self.best = np.full((len(users), n), _LAST)
        self.depth = np.minimum(_depths(n + _OVERFETCH, seen.lengths), index.size)

    def by_lists(self, rows: Ints) -> Ints:
        """Searches an approximate index once; returns the rows that must still be searched exactly."""
        deep = self.seen.lengths[rows] > self.n + _OVERFETCH  # the visited lists would not hold enough unseen items
        left = [rows[deep]]
        for chunk, depth in _chunks(rows[~deep], self.depth):
            full = self._keep_best(chunk, self._from_lists(self.users[chunk], depth))
            left.append(chunk[~full])
        return np.concatenate(left)

    def exactly(self, rows: Ints) -> None:
        """Searches all items, deeper and deeper, until no item outside a row's candidates can belong to its n best."""
        while len(rows):
            left = []
            for chunk, depth in _chunks(rows, self.depth):
                items, most = self._from_all(self.users[chunk], depth)
                complete = self._keep_best(chunk, items)
                if depth < self.index.size:
                    complete &= self._worst_wanted(chunk) > most + self.index._slack(self.users[chunk])
                left.append(chunk[~complete])
            rows = np.concatenate(left)
            self.depth[rows] = np.minimum(_DEEPER * self.depth[rows], self.index.size)

    def _from_lists(self, users: Float32s, depth: int) -> Ints:
        """Candidates from the approximate index: item indexes [b, depth or more], padded with numbers below FIRST_INDEX."""
        index: Any = self.index.index
        if isinstance(index, faiss.IndexRefine):  # without its second step, because exact scores are computed anyway
            index, depth = index.base_index, int(depth * index.k_factor)
        return index.search(users, depth)[1] + FIRST_INDEX

    def _from_all(self, users: Float32s, depth: int) -> tuple[Ints, Floats]:
        """Candidates among all items, as above, and the largest score of any other item except for the last bits, [b]."""
        if len(self.index.vectors) <= _FEW_ITEMS:
            places, most = self.index._exact_search.best(users, depth)
            return places + FIRST_INDEX, most
        if self.index.is_exact:
            scores, places = self.index.index.search(users, depth)
        else:
            scores, places = faiss.knn(users, self.index.vectors[FIRST_INDEX:], depth, metric=faiss.METRIC_INNER_PRODUCT)
        return places + FIRST_INDEX, scores[:, -1]

    def _keep_best(self, rows: Ints, items: Ints) -> Bools:
        """Scores the rows' candidates [b, k] exactly and keeps the n best unseen ones; returns which rows are complete."""
        packed = _pack(self.index.scores(self.users[rows], items), self.index.id_rank[items])
        seen = self.seen.slices(self.seen.offsets[rows], self.seen.offsets[rows + 1])
        packed[(items < FIRST_INDEX) | contains(seen, items, len(self.index.vectors))] = _LAST
        packed.sort(axis=1)
        self.best[rows] = _LAST
        self.best[rows, : packed.shape[1]] = packed[:, : self.n]
        return (self.best[rows] != _LAST).sum(axis=1) >= self._wanted(rows)

    def _wanted(self, rows: Ints) -> Ints:
        """Items that each row can get, [b]: fewer than n near the end of the catalogue."""
        return np.minimum(self.n, self.index.size - self.seen.lengths[rows])

    def _worst_wanted(self, rows: Ints) -> Floats:
        """Score of the last of the items that each row can get, [b]; infinite if it can get none."""
        wanted = self._wanted(rows)
        last = self.best[rows, np.maximum(wanted, 1) - 1]
        return np.where(wanted > 0, _score(last), np.inf)


def id_ranks(item_ids: pa.Array) -> Ints:
    """Rank of each item by the bytes of its id, int64 [n]; 0 for the rows 0 and 1, which are not items."""
    ranks = np.zeros(len(item_ids), np.int64)
    order = pc.sort_indices(item_ids.slice(FIRST_INDEX).cast(pa.binary())).to_numpy()
    ranks[order.astype(np.int64) + FIRST_INDEX] = np.arange(len(order))
    return ranks


def read_id_ranks(folder: Path) -> Ints:
    """The id_rank of a saved index, read without the index."""
    return pq.read_table(folder / "item_ids.parquet", columns=["id_rank"]).column("id_rank").to_numpy().astype(np.int64)


def nothing_seen(rows: int) -> Ragged:
    """Empty lists of seen items."""
    return Ragged.of(np.zeros(0, np.int64), np.zeros(rows, np.int64))


def _depths(wanted: int, seen: Ints) -> Ints:
    """Candidates that each row needs, [B]: rounded up to steps, so that rows share searches, and independent of other rows."""
    steps = np.ceil(np.log1p(seen / wanted) / np.log(_STEP))
    return np.ceil(wanted * _STEP**steps).astype(np.int64)


def _chunks(rows: Ints, depths: Ints) -> Iterator[tuple[Ints, int]]:
    """(rows, depth): rows of equal depth, as many as keep rows x depth within _CHUNK."""
    rows = rows[np.argsort(depths[rows], kind="stable")]
    while len(rows):
        depth = int(depths[rows[0]])
        alike = int(np.searchsorted(depths[rows], depth, side="right"))
        size = max(1, min(alike, _CHUNK // depth))
        yield rows[:size], depth
        rows = rows[size:]


def _pack(scores: Float32s, id_rank: Ints) -> Packed:
    """Each candidate as one number, because numbers sort fast."""
    bits = (scores + np.float32(0)).view(np.uint32)  # + 0: no negative zero
    falling = np.where(bits >> 31, bits, ~bits & 0x7FFFFFFF).astype(np.uint64)
    return (falling << np.uint64(32)) | id_rank.astype(np.uint64)


def _score(packed: Packed) -> Float32s:
    """The scores in packed candidates."""
    falling = (packed >> np.uint64(32)).astype(np.uint32)
    return np.where(falling >> 31, falling, ~falling & 0x7FFFFFFF).astype(np.uint32).view(np.float32)


def contains(lists: Ragged, values: Ints, bound: int) -> Bools:
    """Whether values[i, j] is in list i (ascending), [B, k]."""
    # A value in a list as one number, list * bound + value: ascending over all lists, so that one search answers for all.
    keys = np.repeat(np.arange(len(values)), lists.lengths) * bound + lists.values  # [total]
    wanted = values + np.arange(len(values))[:, None] * bound  # [B, k]
    place = np.searchsorted(keys, wanted)
    return np.append(keys, -1)[place] == wanted


def candidates(targets: Ints, seen: Ragged, bound: int) -> Bools:
    """Which of the item indexes [B] (below `bound`) could be recommended to their row: known and unseen ones."""
    return (targets >= FIRST_INDEX) & ~contains(seen, targets[:, None], bound)[:, 0]


def _require_finite(vectors: Float32s, whose: str) -> None:
    if not (np.abs(vectors) < _LARGEST).all():  # false for NaN too
        raise DataRefused(
            f"{whose} vectors are not finite or beyond {_LARGEST:g}: training diverged; lower training.learning_rate and run "
            "`recall train`"
        )


def _reason(error: RuntimeError) -> str:
    """The last line of a FAISS error, without the position in FAISS's source."""
    return str(error).strip().splitlines()[-1].removeprefix("Error: ")
