"""The recommenders that a model must beat, in NumPy: the most clicked items, item-to-item cosine, and EASE (SPEC 7).

Each ranks the whole catalogue, ties by item id bytes. It returns a list of items, and the target's rank in the full ranking.
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
from recall_lib.samples.ragged import Float32s, Floats, Ints, Ragged

# EASE's L2 penalty. On MovieLens 1M's validation clicks HR@10 is .203 at 200, and .211 from 500 to 1000.
EASE_LAMBDA = 500.0
EASE_FILE = "ease.npy"


class MostClicked:
    """Every user gets the most clicked items that the user has not seen."""

    def __init__(self, counts: Ints, id_rank: Ints) -> None:
        """Of each item index: its clicks, and the rank of its id's bytes, int64 [n] each."""
        self.order = np.lexsort((id_rank[FIRST_INDEX:], -counts[FIRST_INDEX:])) + FIRST_INDEX
        self.place = np.zeros(len(counts), np.int64)
        self.place[self.order] = np.arange(len(self.order))

    def search(self, n: int, seen: Ragged) -> Ints:
        """The n best unseen items of each row, int64 [B, n], padded with 0; `seen` as in ItemIndex.search, none twice.

        The item at position j of a list is at place j plus the number of seen places that were passed before it. A seen place
        is passed if at most j unseen places are above it. For a row that has seen the items at places 1 and 2:

            place            0     1     2     3     4
            unseen above           1     1              of the seen places
            list position    0                 1     2  position 1 has passed both seen places: place 1 + 2
        """
        bound, row = len(self.place), np.repeat(np.arange(len(seen.lengths)), seen.lengths)  # row: [total seen]
        # Numbers of all rows end to end, row * bound + number: ascending, so that one search answers for all rows.
        left_out = np.sort(row * bound + self.place[seen.values])  # [total seen]
        unseen_above = left_out - (np.arange(len(row)) - seen.offsets[row])  # [total seen]
        wanted = np.arange(len(seen.lengths))[:, None] * bound + np.arange(n)  # [B, n]
        skipped = np.searchsorted(unseen_above, wanted, side="right") - seen.offsets[:-1, None]  # [B, n]
        return np.append(self.order, PADDING)[np.minimum(np.arange(n) + skipped, len(self.order))]

    def rank(self, targets: Ints, seen: Ragged) -> Ints:
        """Rank (from 1) of each row's target among the unseen items, int64 [B]; 0 as in ItemIndex.rank."""
        row = np.repeat(np.arange(len(targets)), seen.lengths)  # [total seen]
        ahead = self.place[seen.values] < self.place[targets][row]  # [total seen]
        rank = 1 + self.place[targets] - np.bincount(row[ahead], minlength=len(targets))
        return np.where(candidates(targets, seen, len(self.place)), rank, 0)


class ItemToItem(ABC):
    """An item's score is the sum of its weights from the clicks of a history, rounded once to float32."""

    def __init__(self, id_rank: Ints) -> None:
        """`id_rank`: of each item index the rank of its id's bytes, int64 [n]."""
        self.id_rank = id_rank
        self.item_of_rank = np.argsort(id_rank[FIRST_INDEX:]) + FIRST_INDEX

    def search_and_rank(self, histories: Ragged, n: int, targets: Ints, seen: Ragged) -> tuple[Ints, Ints]:
        """The n best unseen items of each row, int64 [B, n], padded with 0, and the target's rank, int64 [B].

        Args:
            histories: each row's clicks, as item indexes; those below 2 are ignored.
            n: items wanted per row.
            targets: item indexes, int64 [B]; their ranks are 0 as in ItemIndex.rank.
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
        """The score of each item, float32 [items], in the order of the ids: among equal scores the first one ranks first."""
        total = np.zeros(len(self.item_of_rank))
        for item in history[history >= FIRST_INDEX]:
            places, weights = self._weights(item)
            total[places] += weights
        return total.astype(np.float32)  # sums that differ only by the order of their terms become equal

    @abstractmethod
    def _weights(self, item: int) -> tuple[npt.NDArray[np.integer] | slice, Floats]:
        """Places in the order of the ids, and what a click on `item` adds to the scores of the items at these places."""


class ItemKnn(ItemToItem):
    """The weight of two items is their cosine."""

    def __init__(self, folder: Path, id_rank: Ints) -> None:
        """`folder`: the files of `save_cosines`; `id_rank`: int64 [n]."""
        super().__init__(id_rank)
        self.starts, self.columns, self.cosines = (
            np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in _FILES
        )

    def _weights(self, item: int) -> tuple[npt.NDArray[np.integer] | slice, Floats]:
        own = slice(self.starts[item], self.starts[item + 1])
        return self.columns[own], self.cosines[own]


class Ease(ItemToItem):
    """The weights are those of the linear model that best predicts each of a user's items from the user's other items."""

    def __init__(self, folder: Path, id_rank: Ints) -> None:
        """`folder`: the file of `save_ease`; `id_rank`: int64 [n]."""
        super().__init__(id_rank)
        self.weights = np.load(folder / EASE_FILE, mmap_mode="r")

    def _weights(self, item: int) -> tuple[npt.NDArray[np.integer] | slice, Floats]:
        return slice(None), self.weights[self.id_rank[item]]


_FILES = ("starts", "columns", "cosines")


def save_cosines(covisits: sparse.csr_matrix, id_rank: Ints, folder: Path) -> None:
    """Write the cosines between items' binary columns of users, as files that workers map into memory.

    Args:
        covisits: number of users who clicked both items, [n, n] by item index; the diagonal has the users of each item.
        id_rank: int64 [n].
        folder: an existing folder.
    """
    users = covisits.diagonal().astype(np.float64)
    row = np.repeat(np.arange(len(users)), np.diff(covisits.indptr))
    cosines = covisits.data / np.sqrt(users[row] * users[covisits.indices])
    for name, values in zip(_FILES, (covisits.indptr, id_rank[covisits.indices].astype(np.int32), cosines), strict=True):
        np.save(folder / f"{name}.npy", values)


def save_ease(covisits: sparse.csr_matrix, id_rank: Ints, folder: Path) -> None:
    """Write the weights of EASE (Steck, WWW 2019) as a file that workers map into memory.

    With the counts G and P = (G + lambda I)^-1 they are I - P diag(1 / diag P). The peak memory is 12 bytes per pair of items.

    Args:
        covisits: as in `save_cosines`; at least one item.
        id_rank: int64 [n].
        folder: an existing folder.
    """
    items = np.argsort(id_rank[FIRST_INDEX:]) + FIRST_INDEX
    gram = covisits[items][:, items].astype(np.float64).toarray(order="F")  # LAPACK's order, so that it works in place
    gram[np.diag_indices_from(gram)] += EASE_LAMBDA
    factor, _ = lapack.dpotrf(gram, lower=1, overwrite_a=1)  # positive definite: counts of pairs plus the penalty
    weights, _ = lapack.dpotri(factor, lower=1, overwrite_c=1)  # half the work of a general inverse; fills the lower half only
    for i in range(len(weights)):
        weights[i, i + 1 :] = weights[i + 1 :, i]
    weights /= -np.diag(weights).copy()
    np.fill_diagonal(weights, 0)
    np.save(folder / EASE_FILE, weights.astype(np.float32, order="C"))  # a click's weights are contiguous


def _largest(scores: Float32s, n: int) -> Ints:
    """Places of the n largest scores above minus infinity, best first; among equal scores the first place comes first."""
    n = min(n, len(scores))
    if not n:
        return np.zeros(0, np.int64)
    least = np.partition(scores, len(scores) - n)[len(scores) - n]
    above = np.flatnonzero(scores > least)
    best = np.concatenate([above, np.flatnonzero(scores == least)[: n - len(above)]])
    best = best[scores[best] > -np.inf]
    return best[np.argsort(-scores[best], kind="stable")]
