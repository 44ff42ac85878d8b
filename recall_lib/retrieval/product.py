"""The best items by one matrix product with all of them: the fastest way as long as they are few."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_IN_CACHE = 1 << 20  # scores of one product that a core's caches still hold
_GROUPS = 2  # groups of items for each item wanted, whose best scores tell what is good enough
_MANY = 4  # candidates for each item wanted: with more, the scores lie too near to each other to be rounded
_BFLOAT16 = 2.0**-8  # the largest share of itself by which rounding moves a number


class Product:
    """Items to be multiplied with users, in bfloat16 on CPUs that have instructions for it.

    The k-th largest of the maxima of groups of items bounds the k-th largest score from below, and not much more than the k
    best lies above it; sorting those maxima is all that is sorted. By how much rounding may move a score is known, and the
    bound lies lower by as much; where too many items lie above it, the product is made again in float32. The items' mean is
    left out of it: that moves all scores of a user alike, and smaller numbers round to nearer ones.
    """

    def __init__(self, items: Floats) -> None:
        """items: float32 [n, d], n > 0."""
        self._mean = items.mean(axis=0)
        columns = torch.from_numpy(np.ascontiguousarray((items - self._mean).T))
        self._columns = [columns.bfloat16(), columns] if _multiplies_bfloat16() else [columns]
        self._largest = _norms(columns).max()
        self._moved = [_norms(rounded - columns).max() for rounded in self._columns]  # by rounding

    def best(self, users: Floats, k: int) -> tuple[Ints, Doubles]:
        """The k items of the largest inner product, and few others.

        Args:
            users: float32 [B, d].
            k: up to n.

        Returns:
            Items in no order, int64 [B, k or more], padded with -1, and a score that no other item exceeds, float64 [B].
        """
        n, rows = self._columns[0].shape[1], max(1, _IN_CACHE // self._columns[0].shape[1])
        size = max(1, n // (_GROUPS * k))
        scores = np.full((min(rows, len(users)), size, -(-n // size)), -np.inf, np.float32)
        width, bound, found, precision = scores[:1].size, np.empty(len(users)), [], 0
        for start in range(0, len(users), rows):
            part = slice(start, start + rows)
            above, bound[part] = self._above(users[part], k, scores, precision)
            while len(above) > _MANY * k * len(users[part]) and precision + 1 < len(self._columns):
                precision += 1
                above, bound[part] = self._above(users[part], k, scores, precision)
            found.append(above + start * width)
        place = np.concatenate(found)
        row = place // width
        counts = np.bincount(row, minlength=len(users))
        places = np.full((len(users), counts.max(initial=0)), -1)
        places[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = place - row * width
        return places, bound + users.astype(np.float64) @ self._mean

    def _above(self, users: Floats, k: int, scores: Floats, precision: int) -> tuple[Ints, Doubles]:
        """Places, in `scores` laid flat, of what may be among the k best of each user, and what no other exceeds, [B].

        scores: to be filled, float32 [B or more, size, groups]; -inf past the items.
        """
        columns = self._columns[precision]
        rounded = torch.from_numpy(users).to(columns.dtype)
        scores = scores[: len(users)]
        flat = torch.from_numpy(scores.reshape(len(users), -1))[:, : columns.shape[1]]
        if columns.dtype == torch.float32:
            torch.mm(rounded, columns, out=flat)
        else:
            flat.copy_(rounded @ columns)
        least = np.sort(scores.max(axis=1), axis=1)[:, -k].astype(np.float64)
        norm, moved = _norms(torch.from_numpy(users).T), _norms((rounded - torch.from_numpy(users)).T)
        off = norm * (self._moved[precision] + self._largest * users.shape[1] * 2.0**-22)
        off += moved * (self._largest + self._moved[precision])
        share = 0.0 if columns.dtype == torch.float32 else _BFLOAT16
        least -= share * np.abs(least)
        cut = least - 2 * off
        cut -= share * np.abs(cut)
        cut = np.nextafter(cut.astype(np.float32), np.float32(-np.inf))
        return np.flatnonzero(scores.reshape(len(users), -1) >= cut[:, None]), least - off


def _norms(columns: torch.Tensor) -> Doubles:
    """Of each column, float64 [n]."""
    return torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64).numpy()


def _multiplies_bfloat16() -> bool:
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
