"""Kinds of events, and the further sequences that the rows of a log form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recall_lib.config import Events
from recall_lib.log.values import Mask

_TOKENS = pa.list_(pa.string())
# The events that a row is: of which sequence, and its tokens.
TYPE = pa.list_(pa.struct([("sequence", pa.string()), ("values", _TOKENS)]))


@dataclass(frozen=True)
class Kinds:
    """What kind of event each row is, [rows].

    Attributes:
        name: the kind as the log has it; null where the log has no kinds.
        click: whether it is a click.
        shown: whether it shows an item without a click.
        unreadable: whether the kind cannot be read.
        weight: of the click in the loss, float64.
    """

    name: pa.Array
    click: Mask
    shown: Mask
    unreadable: Mask
    weight: pa.Array

    @classmethod
    def by_flag(cls, flags: npt.NDArray[np.int8]) -> Kinds:
        """From a click column: 1 is a click, 0 an impression, -1 neither."""
        rows = len(flags)
        return cls(pa.nulls(rows, pa.string()), flags == 1, flags == 0, flags < 0, pa.array(np.ones(rows)))

    @classmethod
    def by_name(cls, name: pa.Array, settings: Events) -> Kinds:
        """From a column of kinds; a kind that the config does not name is no click."""

        weight = np.ones(len(name))
        for kind, factor in settings.weights.items():
            weight[_is_one_of(name, [kind])] = factor
        unknown = name.is_null().to_numpy(zero_copy_only=False)
        return cls(name, _is_one_of(name, settings.click), _is_one_of(name, settings.impressions), unknown, pa.array(weight))

    @property
    def needs_item(self) -> Mask:
        """Rows that mean nothing without an item."""
        return self.click | self.shown | self.unreadable

    def of(self, kinds: Sequence[str]) -> Mask:
        """Rows of these kinds; without any, the clicks."""
        return (
            pc.is_in(self.name, value_set=pa.array(kinds, pa.string())).to_numpy(zero_copy_only=False) if kinds else self.click
        )


def _is_one_of(name: pa.Array, kinds: Sequence[str]) -> Mask:
    return pc.is_in(name, value_set=pa.array(kinds, pa.string())).to_numpy(zero_copy_only=False)


def without_nulls(lists: pa.Array) -> pa.Array:
    """The same lists without null values."""
    rows = pc.list_parent_indices(lists)
    keep = pc.is_valid(lists.flatten())
    lengths = np.bincount(rows.filter(keep).to_numpy(zero_copy_only=False), minlength=len(lists))
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(lengths)).astype(np.int32), lists.flatten().filter(keep))


def words(lists: pa.Array) -> pa.Array:
    """Each text's words in lower case, and its pairs of neighbouring words, `a b c` as a, b, c, `a b`, `b c`."""

    def tokens(texts: list[str | None]) -> list[str]:
        found = []
        for text in texts:
            own = (text or "").lower().split()
            found += [*own, *map(" ".join, pairwise(own))]
        return found

    return pa.array([tokens(texts) for texts in lists.to_pylist()], _TOKENS)


def lists(found: Sequence[tuple[str, pa.Array, Mask]], rows: int) -> pa.Array:
    """Each row's events, TYPE.

    Args:
        found: of each sequence its name, the tokens of each row, and which rows are events of it; a row without tokens is none.
        rows: number of rows.
    """
    row = [
        np.flatnonzero(mask & (pc.list_value_length(tokens).to_numpy(zero_copy_only=False) > 0)) for _, tokens, mask in found
    ]
    order = np.argsort(np.concatenate(row), kind="stable")
    names = pa.array(np.repeat([name for name, _, _ in found], [len(own) for own in row]), pa.string())
    tokens = pa.concat_arrays([tokens.take(pa.array(own)) for (_, tokens, _), own in zip(found, row, strict=True)])
    events = pa.StructArray.from_arrays([names, tokens], ["sequence", "values"]).take(pa.array(order))
    counts = np.bincount(np.concatenate(row), minlength=rows)
    return pa.ListArray.from_arrays(np.append(0, np.cumsum(counts)).astype(np.int32), events)
