"""The recommenders that a model must beat, in NumPy: the most clicked items, item-to-item cosine, and EASE (SPEC 7).

All rank the whole catalogue, ties by item id bytes, and give an item list and the target's place in the full ranking.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.linalg import lapack

from recall_lib.retrieval.index import candidates
from recall_lib.samples.ids import FIRST_INDEX, PADDING
from recall_lib.samples.ragged import Float32s, Ints, Ragged

Floats = npt.NDArray[np.floating]
# EASE's L2 penalty. On MovieLens 1M's validation clicks HR@10 is .203 at 200, and .211 from 500 to 1000.
EASE_LAMBDA = 500.0
EASE_FILE = "ease.npy"


class MostClicked:
    """Everyone gets the items of the largest counts that they have not seen."""

    def __init__(self, counts: Ints, id_rank: Ints) -> None:
        """Clicks and rank of the id's bytes of each item index, int64 [n]."""
        self.order = np.lexsort((id_rank[FIRST_INDEX:], -counts[FIRST_INDEX:])) + FIRST_INDEX
        self.place = np.zeros(len(counts), np.int64)
        self.place[self.order] = np.arange(len(self.order))

    def search(self, n: int, seen: Ragged) -> Ints:
        """The n best unseen items of each row, int64 [B, n], padded with 0; `seen` as in ItemIndex.search, none twice."""
        bound, row = len(self.place), np.repeat(np.arange(len(seen.lengths)), seen.lengths)
        left_out = np.sort(row * bound + self.place[seen.values])
        # Of each seen item, how many unseen ones are ahead of it; keys that rise with the row, so that one search does for all.
        ahead = left_out - np.arange(len(row)) + seen.offsets[row]
        wanted = np.arange(len(seen.lengths))[:, None] * bound + np.arange(n)
        place = np.arange(n) + np.searchsorted(ahead, wanted, side="right") - seen.offsets[:-1, None]
        return np.append(self.order, PADDING)[np.minimum(place, len(self.order))]

    def rank(self, targets: Ints, seen: Ragged) -> Ints:
        """Place (from 1) of each row's target among all items but the seen ones, int64 [B]; 0 as in ItemIndex.rank."""
        row = np.repeat(np.arange(len(targets)), seen.lengths)
        ahead = self.place[seen.values] < self.place[targets][row]
        rank = 1 + self.place[targets] - np.bincount(row[ahead], minlength=len(targets))
        return np.where(candidates(targets, seen, len(self.place)), rank, 0)


class ItemToItem(ABC):
    """Items score the sum of their weights from the clicks of a history, rounded once to float32."""

    def __init__(self, id_rank: Ints) -> None:
        """`id_rank`: rank of the id's bytes of each item index, int64 [n]."""
        self.id_rank = id_rank
        self.item_of_rank = np.argsort(id_rank[FIRST_INDEX:]) + FIRST_INDEX

    def search_and_rank(self, histories: Ragged, n: int, targets: Ints, seen: Ragged) -> tuple[Ints, Ints]:
        """The n best unseen items of each row, int64 [B, n], padded with 0, and the target's place, int64 [B].

        Args:
            histories: item indexes, a row's clicks; those below 2 have no part.
            n: items wanted.
            targets: item indexes, int64 [B]; their places are 0 as in ItemIndex.rank.
            seen: as in ItemIndex.search.
        """
        found, ranks = np.zeros((len(targets), n), np.int64), np.zeros(len(targets), np.int64)
        for row, target in enumerate(targets):
            scores = self._scores(histories.values[histories.offsets[row] : histories.offsets[row + 1]])
            scores[self.id_rank[seen.values[seen.offsets[row] : seen.offsets[row + 1]]]] = -np.inf
            best = _largest(scores, n)
            found[row, : len(best)] = self.item_of_rank[best]
            place = self.id_rank[target]
            if target >= FIRST_INDEX and scores[place] > -np.inf:
                ranks[row] = 1 + (scores > scores[place]).sum() + (scores[:place] == scores[place]).sum()
        return found, ranks

    def _scores(self, history: Ints) -> Float32s:
        """In the order of the ids, so that among equals the first comes first."""
        total = np.zeros(len(self.item_of_rank))
        for item in history[history >= FIRST_INDEX]:
            places, weights = self._weights(item)
            total[places] += weights
        return total.astype(np.float32)  # sums that differ by their order alone become equal

    @abstractmethod
    def _weights(self, item: int) -> tuple[npt.NDArray[np.integer] | slice, Floats]:
        """Places in the order of the ids, and what a click on `item` adds to the scores of the items there."""


class ItemKnn(ItemToItem):
    """The weight of two items is their cosine."""

    def __init__(self, folder: Path, id_rank: Ints) -> None:
        """`folder`: what `save_cosines` wrote; `id_rank`: int64 [n]."""
        super().__init__(id_rank)
        self.starts, self.columns, self.cosines = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _FILES
        )

    def _weights(self, item: int) -> tuple[npt.NDArray[np.integer] | slice, Floats]:
        own = slice(self.starts[item], self.starts[item + 1])
        return self.columns[own], self.cosines[own]


class Ease(ItemToItem):
    """The weights are those of the linear model that best tells each item of a user from the user's other items."""

    def __init__(self, folder: Path, id_rank: Ints) -> None:
        """`folder`: what `save_ease` wrote; `id_rank`: int64 [n]."""
        super().__init__(id_rank)
        self.weights = np.load(folder / EASE_FILE, mmap_mode="r")

    def _weights(self, item: int) -> tuple[npt.NDArray[np.integer] | slice, Floats]:
        return slice(None), self.weights[self.id_rank[item]]


_FILES = ("starts", "columns", "cosines")


def save_cosines(covisits: sparse.csr_matrix, id_rank: Ints, folder: Path) -> None:
    """Write the cosines of binary user-item columns as files that workers map into memory.

    Args:
        covisits: users who clicked both items, [n, n] by item index; the diagonal has those of each item.
        id_rank: int64 [n].
        folder: exists.
    """
    users = covisits.diagonal().astype(np.float64)
    row = np.repeat(np.arange(len(users)), np.diff(covisits.indptr))
    cosines = covisits.data / np.sqrt(users[row] * users[covisits.indices])
    for name, values in zip(_FILES, (covisits.indptr, id_rank[covisits.indices].astype(np.int32), cosines), strict=True):
        np.save(folder / f"{name}.npy", values)


def save_ease(covisits: sparse.csr_matrix, id_rank: Ints, folder: Path) -> None:
    """Write the weights of EASE (Steck, WWW 2019) as a file that workers map into memory.

    With G the counts and P = (G + lambda I)^-1 they are I - P diag(1 / diag P). At its worst moment this takes 12 bytes for
    each pair of items.

    Args:
        covisits: as in `save_cosines`; at least one item.
        id_rank: int64 [n].
        folder: exists.
    """
    items = np.argsort(id_rank[FIRST_INDEX:]) + FIRST_INDEX
    gram = covisits[items][:, items].astype(np.float64).toarray(order="F")  # LAPACK's order: it works in place
    gram[np.diag_indices_from(gram)] += EASE_LAMBDA
    factor, _ = lapack.dpotrf(gram, lower=1, overwrite_a=1)  # positive definite: counts of pairs plus the penalty
    weights, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)  # half the work of a general inverse; the lower half
    for i in range(len(weights)):
        weights[i, i + 1 :] = weights[i + 1 :, i]
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0)
    np.save(folder / EASE_FILE, weights.astype(np.float32, order="C"))  # a click's weights lie side by side


def _largest(scores: Float32s, n: int) -> Ints:
    """Places of the n largest scores above minus infinity, best first, the first place first among equals."""
    n = min(n, len(scores))
    if not n:
        return np.zeros(0, np.int64)
    least = np.partition(scores, len(scores) - n)[len(scores) - n]
    above = np.flatnonzero(scores > least)
    best = np.concatenate([above, np.flatnonzero(scores == least)[: n - len(above)]])
    best = best[scores[best] > -np.inf]
    return best[np.argsort(-scores[best], kind="stable")]
