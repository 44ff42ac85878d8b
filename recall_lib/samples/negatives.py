"""Negatives of a target (SPEC 3.6): by count^alpha, never an item of the user's own, drawn without replacement."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from recall_lib.samples.ids import PADDING
from recall_lib.samples.ragged import Bools, Float64s, Ints, Ragged

# Rejections tried before a target's draw is finished exactly over the candidates that are left.
_ROUNDS = 16


def draw(
    keys: npt.NDArray[np.uint64], own: Ragged, weights: Float64s, k: int, given: Ints | None = None
) -> npt.NDArray[np.int32]:
    """k different items a target, each next one by its share of the weight that is left.

    Args:
        keys: a target each, uint64 [n]; equal keys draw equally.
        own: the items that target may not have, ascending (ragged [n]).
        weights: of each item index, [items]; 0 for what is never drawn (0, 1, count 0).
        k: negatives a target.
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
    forbidden = np.repeat(np.arange(n), own.lengths) * items + own.values  # ascending: rows, then items
    for column in range(k):
        open_rows = np.flatnonzero(drawn[:, column] == PADDING)
        for attempt in range(_ROUNDS):
            uniform = _uniform(keys[open_rows], np.uint64(column * _ROUNDS + attempt))
            item = np.minimum(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"), items - 1)
            taken = _contains(forbidden, open_rows * items + item) | (drawn[open_rows, :column] == item[:, None]).any(1)
            drawn[open_rows[~taken], column] = item[~taken]
            open_rows = open_rows[taken]
            if not len(open_rows):
                break
        for row in open_rows:
            barred = np.concatenate([own.values[own.offsets[row] : own.offsets[row + 1]], drawn[row, :column]])
            drawn[row, column] = _draw_exactly(keys[row], column, weights, barred)
    return drawn.astype(np.int32)


def _draw_exactly(key: np.uint64, column: int, weights: Float64s, barred: Ints) -> int:
    left = weights.copy()
    left[barred] = 0
    cumulative = np.cumsum(left)
    if not cumulative[-1]:
        return PADDING
    uniform = _uniform(np.array([key]), np.uint64(column * _ROUNDS + _ROUNDS - 1) + np.uint64(1 << 32))
    item = int(np.searchsorted(cumulative, uniform[0] * cumulative[-1], side="right"))
    return item if item < len(left) and left[item] else int(np.flatnonzero(left)[-1])


def _contains(ascending: Ints, values: Ints) -> Bools:
    if not len(ascending):
        return np.zeros(len(values), bool)
    place = np.minimum(np.searchsorted(ascending, values), len(ascending) - 1)
    return ascending[place] == values


def _uniform(keys: npt.NDArray[np.uint64], counter: np.uint64) -> Float64s:
    """Uniform in [0, 1) as a pure function of (key, counter): the finaliser of SplitMix64 (Steele et al., 2014)."""
    with np.errstate(over="ignore"):
        z = mix(keys + (counter + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15))
    return (z >> np.uint64(11)).astype(np.float64) / float(1 << 53)


def mix(z: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's finaliser."""
    with np.errstate(over="ignore"):
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def sampling_weights(counts: Ints, alpha: float) -> Float64s:
    """count^alpha of each item index; 0 where the count is 0, whatever alpha."""
    return np.where(counts > 0, np.power(np.maximum(counts, 1), alpha, dtype=np.float64), 0.0)
