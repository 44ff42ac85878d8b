"""Exact search by one matrix product with all items: the fastest way for small catalogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from recall_lib.samples.ragged import Float32s, Float64s, Ints, Ragged

_BLOCK = 1 << 21  # scores of one matrix product
_GROUPS = 2  # groups of items per wanted item; the groups' best scores bound the k-th best score
_MANY = 4  # candidates per wanted item; if there are more, the scores are too close to each other for bfloat16
_BFLOAT16 = 2.0**-8  # the largest relative error of rounding to bfloat16


class ExactSearch:
    """Multiplies items with users, in bfloat16 on CPUs that have instructions for it.

    Split the items into groups and take each group's best score. The k-th largest of these is a lower bound of the k-th best
    score, so only items above it can be among the best k. Only the groups' best scores are sorted. Scores in bfloat16 may be
    off by a known amount; the bound is lowered by that amount. If too many items lie above it, the scores are computed
    again in float32. The items' mean is subtracted first: this changes all scores of a user by the same amount, and smaller
    numbers lose less when they are rounded.
    """

    def __init__(self, items: Float32s) -> None:
        """items: float32 [n, d], n > 0."""
        self._mean = items.mean(axis=0)
        columns = torch.from_numpy(np.ascontiguousarray((items - self._mean).T))  # [d, n]
        self._columns = [columns.bfloat16(), columns] if _multiplies_bfloat16() else [columns]  # the coarsest first
        self._largest = _norms(columns).max()
        self._moved = [_norms(rounded - columns).max() for rounded in self._columns]  # the largest rounding error of an item

    def best(self, users: Float32s, k: int) -> tuple[Ints, Float64s]:
        """The k items with the largest inner products, and a few others.

        Args:
            users: float32 [B, d].
            k: up to n.

        Returns:
            Items in no particular order, int64 [B, k or more], padded with -1. A score that no other item exceeds, float64 [B].
        """
        n = self._columns[0].shape[1]
        rows, bound, found, precision = max(1, _BLOCK // n), np.empty(len(users)), [], 0
        for start in range(0, len(users), rows):
            part = slice(start, start + rows)
            above, bound[part] = self._above(users[part], k, precision)
            while len(above) > _MANY * k * len(users[part]) and precision + 1 < len(self._columns):
                precision += 1  # for the later blocks as well
                above, bound[part] = self._above(users[part], k, precision)
            found.append(above + start * n)
        user, item = np.divmod(np.concatenate(found), n)  # [found] each, ascending by user
        counts = np.bincount(user, minlength=len(users))
        # [found] -> [B, most found]: the i-th item found for a user goes to column i.
        items = np.full((len(users), counts.max(initial=0)), -1)
        items[user, Ragged.spans(np.zeros_like(counts), counts).values] = item
        return items, bound + users.astype(np.float64) @ self._mean

    def _above(self, users: Float32s, k: int, precision: int) -> tuple[Ints, Float64s]:
        """The items that may be among each user's k best, as positions user * n + item in the flattened scores [B * n].

        Also returns a bound, float64 [B]; no other item's score exceeds it.
        """
        keys, off, rounding = self._multiply(users, precision)
        cut, bound, positive = _cut(keys, k, off, rounding)
        if not positive:  # one more pass over all scores, which most searches do not need
            cut, bound, _ = _cut(_ordered(keys), k, off, rounding)
        return np.flatnonzero(keys >= cut[:, None]), bound

    def _multiply(self, users: Float32s, precision: int) -> tuple[Any, Float64s, float]:
        """The scores and the size of their errors.

        Returns:
            The bits of the scores, int16 (bfloat16) or int32 (float32) [B, n]; how far a score may be off before it is stored,
            float64 [B]; the largest relative error of storing it.
        """
        columns = self._columns[precision]
        given = torch.from_numpy(users)
        rounded = given.to(columns.dtype)
        norm, moved = _norms(given.T), _norms((rounded - given).T)
        # |u'v' - uv| <= |u||v' - v| + |u' - u||v'|, and the sum of d products in float32 errs by at most d 2^-22 |u||v|.
        off = norm * (self._moved[precision] + self._largest * users.shape[1] * 2.0**-22)
        off += moved * (self._largest + self._moved[precision])
        is_float32 = columns.dtype == torch.float32
        scores = (rounded @ columns).view(torch.int32 if is_float32 else torch.int16)
        return scores.numpy(), off, 0.0 if is_float32 else _BFLOAT16


def _cut(keys: Any, k: int, off: Float64s, rounding: float) -> tuple[Any, Float64s, bool]:
    """Where to cut: below `cut` no item is among its user's k best.

    For an item, let s be the exact score, c the computed score (|c - s| <= off), and r the stored one
    (|r - c| <= rounding |r|). Let R be the k-th largest of the groups' best r.

        1. k items have r >= R.
        2. So these have c >= R - rounding |R|, called C,
        3. and s >= C - off: this is the bound, and the k-th best score is not below it.
        4. Any item with s >= bound has c >= bound - off = C - 2 off, called D,
        5. and r >= D - rounding |D|: this is the cut. What lies below it has s < bound.

    Args:
        keys: the stored scores' bits, [B, n]. Those of positive scores are in the order of the scores; `_ordered` keys all are.
        k: items wanted.
        off: see above, float64 [B].
        rounding: see above.

    Returns:
        The cut as a key, [B]; the bound, float64 [B]; whether both lie among positive scores. If not, they are valid only for
        `_ordered` keys.
    """
    kth_key = _kth_of_groups(keys, k)
    kth = _numbers(kth_key)
    computed = kth - rounding * np.abs(kth)
    cut = computed - 2 * off
    cut -= rounding * np.abs(cut)
    cut_key = _keys_below(cut, keys.dtype)
    return cut_key, computed - off, bool((np.minimum(kth_key, cut_key) > 0).all())


def _kth_of_groups(keys: Any, k: int) -> Any:
    """The k-th largest of the groups' largest keys, [B]. Item i is in group i % groups; a few last items are in no group."""
    n = keys.shape[1]
    size = max(1, n // (_GROUPS * k))
    groups = n // size  # k or more
    largest = keys[:, : size * groups].reshape(len(keys), size, groups).max(axis=1)  # [B, size, groups] -> [B, groups]
    return np.sort(largest, axis=1)[:, -k]


def _ordered(bits: Any) -> Any:
    """Changes the bits of floats, as signed integers, in place, so that they order like the floats. Twice: back again.

    A float is | sign | exponent | fraction |. The bits of positive floats are already in order. A negative float of larger size
    has larger bits, so all of its bits but the sign are flipped.
    """
    bits ^= (bits >> (8 * bits.itemsize - 1)) & np.iinfo(bits.dtype).max
    return bits


def _numbers(keys: Any) -> Float64s:
    """The numbers of ordered keys, [B]; a negative bfloat16 becomes a little too small, by less than its last bit."""
    wide = keys.astype(np.int32) << (32 - 8 * keys.itemsize)  # a bfloat16 is the upper half of a float32
    return _ordered(wide).view(np.float32).astype(np.float64)


def _keys_below(numbers: Float64s, dtype: np.dtype) -> Any:
    """The ordered keys of the numbers just below the given ones, [B]."""
    below = np.nextafter(numbers.astype(np.float32), np.float32(-np.inf))
    return (_ordered(below.view(np.int32)) >> (32 - 8 * dtype.itemsize)).astype(dtype)


def _norms(columns: torch.Tensor) -> Float64s:
    """The norm of each column, float64 [n]."""
    return torch.linalg.vector_norm(columns, dim=0, dtype=torch.float64).numpy()


def _multiplies_bfloat16() -> bool:
    can = torch.cpu.get_capabilities()
    return bool(can.get("avx512_bf16") or can.get("amx_bf16"))
