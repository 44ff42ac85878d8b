"""The array types of the NumPy code, and lists of different lengths as two arrays: all values, and where each list begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Floats = npt.NDArray[np.floating]  # of either width
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ragged:
    """n lists of different lengths, end to end: list i is values[offsets[i]:offsets[i + 1]].

    lists      [a b] [] [c d e]
    values      a b      c d e        [total]
    offsets    0     2   2     5      [n + 1]
    """

    values: npt.NDArray  # [total]
    offsets: Ints  # [n + 1]

    @classmethod
    def of(cls, values: npt.NDArray, lengths: npt.NDArray) -> Ragged:
        """Make lists from all values, [total], and the length of each list, [n]."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def from_arrow(cls, column: pa.Array) -> Ragged:
        """Make lists from an Arrow list column without nulls; the column may be a slice."""
        offsets = column.offsets.to_numpy().astype(np.int64)
        return cls(column.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0])

    @property
    def lengths(self) -> Ints:
        """The length of each list, [n]."""
        return np.diff(self.offsets)

    def slices(self, start: Ints, stop: Ints) -> Ragged:
        """New lists values[start[i]:stop[i]]; starts and stops may be any places in the values, [m] each."""
        places = Ragged.spans(start, stop)
        return Ragged(self.values[places.values], places.offsets)

    @classmethod
    def spans(cls, start: Ints, stop: Ints) -> Ragged:
        """As list i the whole numbers from start[i] to stop[i] - 1; starts and stops are [m] each."""
        offsets = np.append(0, np.cumsum(stop - start))  # [m + 1]
        # Counted end to end, 0 to total - 1; each list is then moved from its offset to its start.
        return cls(np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start), offsets)


def ranges(lengths: Ints) -> Ints:
    """For each length n the numbers 0 to n - 1; end to end, [total]."""
    return Ragged.spans(np.zeros_like(lengths), lengths).values


def ceil_div(numbers: Ints, by: int) -> Ints:
    """The numbers divided by `by`, rounded up."""
    return -(-numbers // by)
