"""The best items by one matrix product with all of them: the fastest way as long as they are few."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]

_BLOCK = 1 << 21  # scores of one product
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
        n = self._columns[0].shape[1]
        rows, bound, found, precision = max(1, _BLOCK // n), np.empty(len(users)), [], 0
        for start in range(0, len(users), rows):
            part = slice(start, start + rows)
            above, bound[part] = self._above(users[part], k, precision)
            while len(above) > _MANY * k * len(users[part]) and precision + 1 < len(self._columns):
                precision += 1
                above, bound[part] = self._above(users[part], k, precision)
            found.append(above + start * n)
        place = np.concatenate(found)
        row = place // n
        counts = np.bincount(row, minlength=len(users))
        places = np.full((len(users), counts.max(initial=0)), -1)
        places[row, np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)] = place - row * n
        return places, bound + users.astype(np.float64) @ self._mean

    def _above(self, users: Floats, k: int, precision: int) -> tuple[Ints, Doubles]:
        """Places, in scores [B, n] laid flat, of what may be among the k best of each user; what no other exceeds, [B]."""
        columns = self._columns[precision]
        given = torch.from_numpy(users)
        rounded = given.to(columns.dtype)
        norm, moved = _norms(given.T), _norms((rounded - given).T)
        off = norm * (self._moved[precision] + self._largest * users.shape[1] * 2.0**-22)
        off += moved * (self._largest + self._moved[precision])
        share = 0.0 if columns.dtype == torch.float32 else _BFLOAT16
        bits = 8 * columns.dtype.itemsize
        keys = (rounded @ columns).view(torch.int16 if bits == 16 else torch.int32).numpy()
        size = max(1, keys.shape[1] // (_GROUPS * k))
        groups = keys.shape[1] // size
        for ordered in (False, True):
            if ordered:
                _order(keys)
            maxima = keys[:, : size * groups].reshape(len(keys), size, groups).max(axis=1)
            least_key = np.sort(maxima, axis=1)[:, -k]
            least = _order(least_key.astype(np.int32) << 32 - bits).view(np.float32).astype(np.float64)
            least -= share * np.abs(least)
            cut = least - 2 * off
            cut -= share * np.abs(cut)
            cut_key = _order(np.nextafter(cut.astype(np.float32), np.float32(-np.inf)).view(np.int32)) >> 32 - bits
            if (np.minimum(least_key, cut_key) > 0).all():  # the bits of positive numbers are in order
                break
        return np.flatnonzero(keys >= cut_key.astype(keys.dtype)[:, None]), least - off


def _order(bits: Any) -> Any:
    """The bits of floats, as signed integers, in place made to order as the floats do, and back."""
    bits ^= (bits >> 8 * bits.itemsize - 1) & np.iinfo(bits.dtype).max
    return bits


def _norms(columns: torch.Tensor) -> Doubles:
    """Of each column, float64 [n]."""
    return torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64).numpy()


def _multiplies_bfloat16() -> bool:
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
