"""The array types of the NumPy code, and lists of different lengths as two arrays: all values, and where each list begins."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Ints = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Ragged:
    """Lists of different lengths, laid end to end: list i is values[offsets[i]:offsets[i + 1]]."""

    values: npt.NDArray  # [total]
    offsets: Ints  # [n + 1]

    @classmethod
    def of(cls, values: npt.NDArray, lengths: npt.NDArray) -> Ragged:
        """From the values and each list's length."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def from_arrow(cls, column: pa.Array) -> Ragged:
        """From an Arrow list column without nulls, sliced or not."""
        offsets = column.offsets.to_numpy().astype(np.int64)
        return cls(column.values.to_numpy(zero_copy_only=False)[offsets[0] : offsets[-1]], offsets - offsets[0])

    @property
    def lengths(self) -> Ints:
        """Length of each list, [n]."""
        return np.diff(self.offsets)

    def slices(self, start: Ints, stop: Ints) -> Ragged:
        """New lists values[start[i]:stop[i]], for any starts and stops into the values."""
        places = Ragged.spans(start, stop)
        return Ragged(self.values[places.values], places.offsets)

    @classmethod
    def spans(cls, start: Ints, stop: Ints) -> Ragged:
        """The whole numbers from start[i] to below stop[i]."""
        offsets = np.append(0, np.cumsum(stop - start))
        return cls(np.arange(offsets[-1]) + np.repeat(start - offsets[:-1], stop - start), offsets)


def ranges(lengths: Ints) -> Ints:
    """For each length n the numbers 0 to n - 1, end to end, [total]."""
    return Ragged.spans(np.zeros_like(lengths), lengths).values


def ceil_div(numbers: Ints, by: int) -> Ints:
    """Quotients of whole numbers, rounded up."""
    return -(-numbers // by)
