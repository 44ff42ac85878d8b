"""Negatives of a target (SPEC 3.6): drawn by count^alpha, without replacement, and never an item of the user."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recall_lib.samples.ids import PADDING
from recall_lib.samples.ragged import Bools, Float64s, Ints, Ragged

# Draws that may be rejected before a negative is drawn exactly from the candidates that are left.
_ROUNDS = 16


def draw(
    keys: npt.NDArray[np.uint64], own: Ragged, weights: Float64s, k: int, given: Ints | None = None
) -> npt.NDArray[np.int32]:
    """k different items per target. Each is drawn in proportion to the weights of the items that are left.

    Args:
        keys: one key per target, uint64 [n]; equal keys draw the same items.
        own: the items that are not negatives of each target, ascending (ragged [n]).
        weights: the weight of each item index, [items]; 0 for items that are never drawn (0, 1, count 0).
        k: negatives per target.
        given: negatives that are there already, [n, k], followed by zeros; None: none. The others are drawn.

    Returns:
        Item indexes, int32 [n, k]; rows with fewer candidates than k end in 0.
    """
    n = len(keys)
    drawn = np.zeros((n, k), np.int64) if given is None else given.copy()
    cumulative = np.cumsum(weights)
    if not n or not k or not cumulative[-1]:
        return drawn.astype(np.int32)
    items = np.int64(len(weights))
    # A pair of row and item as one number, row * items + item: ascending, [total own].
    forbidden = np.repeat(np.arange(n), own.lengths) * items + own.values
    for column in range(k):
        open_rows = np.flatnonzero(drawn[:, column] == PADDING)  # rows without an item in this column
        for attempt in range(_ROUNDS):
            uniform = _uniform(keys[open_rows], np.uint64(column * _ROUNDS + attempt))  # [open rows], as `item` and `taken`
            item = np.minimum(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), items - 1)
            taken = _contains(forbidden, open_rows * items + item) | (drawn[open_rows, :column] == item[:, None]).any(1)
            drawn[open_rows[~taken], column] = item[~taken]
            open_rows = open_rows[taken]
            if not len(open_rows):
                break
        for row in open_rows:  # few: e.g. of users who have clicked almost every item that is drawn often
            barred = np.concatenate([own.values[own.offsets[row] : own.offsets[row + 1]], drawn[row, :column]])
            drawn[row, column] = _draw_exactly(keys[row], column, weights, barred)
    return drawn.astype(np.int32)


def _draw_exactly(key: np.uint64, column: int, weights: Float64s, barred: Ints) -> int:
    """One item by weight, none of the barred ones; PADDING if no item is left."""
    left = weights.copy()
    left[barred] = 0
    cumulative = np.cumsum(left)
    if not cumulative[-1]:
        return PADDING
    uniform = _uniform(np.array([key]), np.uint64(column * _ROUNDS + _ROUNDS - 1) + np.uint64(1 << 32))
    item = int(np.searchsorted(cumulative, uniform[0] * cumulative[-1], side="right"))
    return item if item < len(left) and left[item] else int(np.flatnonzero(left)[-1])


def _contains(ascending: Ints, values: Ints) -> Bools:
    """Whether each value is in a sorted array, [len(values)]."""
    if not len(ascending):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[place] == values


def _uniform(keys: npt.NDArray[np.uint64], counter: np.uint64) -> Float64s:
    """Numbers in [0, 1) that only key and counter decide, by SplitMix64 (Steele et al., 2014), [len(keys)]."""
    with np.errstate(over="ignore"):
        z = mix(keys + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The last step of SplitMix64: a hash of 64 bits to 64 bits."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def sampling_weights(counts: Ints, alpha: float) -> Float64s:
    """count^alpha of each item index, [items]; 0 if the count is 0, whatever alpha."""
    return np.where(counts > 0, np.power(np.maximum(counts, 1), alpha, dtype=np.float64), 0.0)
