"""Cuts windows out of segments of clicks, in NumPy; histories are cut nowhere else (SPEC 3.2, 3.3).

A segment is a part of one user's tokens, oldest first, stored once. Each of its targets sees the up to `window_size` tokens
before it. Training, evaluation, inference and `recall dump` all cut their windows here. Training may also use whole stretches
of a segment (training.unit `run`): an encoder then runs once for all targets of a stretch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa

from recall_lib.config import Features, Samples
from recall_lib.samples.ragged import Float32s, Ints, Ragged, ceil_div, ranges

T = TypeVar("T")


class Shared(NamedTuple, Generic[T]):
    """Which part of which history each target sees, if several targets share a history.

    Attributes:
        history: number of the history, int64 [T].
        seen: how many of its first tokens the target sees, int64 [T].
    """

    history: T
    seen: T


@dataclass(frozen=True)
class Windows:
    """What a model sees of T targets in S histories: one history per target (T = S), or with `shared` one for several targets.

    Attributes:
        history: item ids in `samples.order` (ragged int64 [S]).
        item: for each item feature, the values of each token, one history after another (ragged [tokens]).
        user: for each user feature of one value, int64 [T].
        example_age: days, float32 [T].
        target: item ids, int64 [T]; 0 if there is no target (inference), 1 if it is outside the vocabulary.
        negatives: item ids, int64 [T, negatives_per_positive], padded with 0.
        lists: per user feature of several values, and per further sequence the tokens before the target (ragged int [T]).
        numbers: per numeric feature of users, float32 [T]; NaN where unknown.
        item_numbers: per numeric feature of items, float32 [tokens], in the order of `history`.
        weight: of each target in the loss, float32 [T]; None: 1.
        shared: the part of a history that each target sees; None: target i sees all of history i.
    """

    history: Ragged
    item: dict[str, Ragged]
    user: dict[str, Ints]
    example_age: Float32s
    target: Ints
    negatives: Ints
    lists: dict[str, Ragged] = field(default_factory=dict)
    numbers: dict[str, Float32s] = field(default_factory=dict)
    item_numbers: dict[str, Float32s] = field(default_factory=dict)
    weight: Float32s | None = None
    shared: Shared[Ints] | None = None

    def bags(self) -> dict[str, Ragged]:
        """For each item feature, all values of a history's tokens as one list (ragged [S])."""
        return {name: Ragged(values.values, values.offsets[self.history.offsets]) for name, values in self.item.items()}


class Segments:
    """A block of segments (see schemas.segments) that can be cut into windows. Its targets are numbered 0 to len(self) - 1."""

    def __init__(self, lists: Mapping[str, Ragged], features: Features, samples: Samples) -> None:
        """`lists`: every list column of the schema, by name (ragged [segments])."""
        self.samples = samples
        self.items = lists["item_index"]
        # For each target, [T]: its token among all tokens of the block; its segment; the first token of its segment.
        self._token = np.flatnonzero(lists["is_target"].values)
        self.segment_of_target = np.searchsorted(self.items.offsets, self._token, side="right") - 1
        self._start = self.items.offsets[self.segment_of_target]
        self._age = lists["example_age"].values
        self._negatives = lists["negatives"].values
        self._weight = lists["weight"].values if features.weighted else None
        self._user = {f.name: lists[f"{f.name}_index"].values for f in features.target_ids if not f.multi}
        self._numbers = {n.name: lists[f"{n.name}_value"].values for n in features.target_numbers}
        self._item_numbers = {n.name: lists[f"{n.name}_value"].values for n in features.token_numbers}
        # For each item feature, the values of each token (ragged [tokens]).
        self._item = {
            f.name: Ragged.of(
                lists[f"{f.name}_index"].values,
                lists[f"{f.name}_length"].values if f.multi else np.ones(len(self.items.values), np.int64),
            )
            for f in features.token_ids
        }
        self._lists = {
            f.name: Ragged.of(lists[f"{f.name}_index"].values, lists[f"{f.name}_length"].values)
            for f in features.target_ids
            if f.multi
        }
        for sequence in features.sequences:
            self._lists[sequence.name] = self._before(lists, sequence.name, sequence.window_size)

    @classmethod
    def from_arrow(cls, table: pa.Table | pa.RecordBatch, features: Features, samples: Samples) -> Segments:
        """Make segments from rows of samples or histories."""
        columns: dict[str, Ragged] = {}
        for name in table.schema.names:
            if pa.types.is_list(table.schema.field(name).type):
                column = table.column(name)
                columns[name] = Ragged.from_arrow(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
        return cls(columns, features, samples)

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.segment_of_target)

    def _before(self, lists: Mapping[str, Ragged], name: str, window: int) -> Ragged:
        """The tokens of the last `window` events of a further sequence that each target sees (ragged [T])."""
        events = lists[f"{name}_length"]  # ragged [segments], values: tokens of each event
        tokens = Ragged.of(lists[f"{name}_index"].values, events.values)  # ragged [events]
        oldest = events.offsets[self.segment_of_target]
        end = oldest + lists[f"{name}_seen"].values
        return tokens.slices(tokens.offsets[np.maximum(oldest, end - window)], tokens.offsets[end])

    def windows(self, targets: Ints) -> Windows:
        """The windows of the given targets, in the given order."""
        token, start = self._token[targets], self._start[targets]
        first = np.maximum(start, token - self.samples.window_size)
        return self._windows(first, token, targets)

    def stretches(self, random: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """The segments cut into stretches of up to window_size + 1 tokens; neighbours share a token.

        Cuts are made from the newest token backwards. In a segment that must be cut, the newest stretch has a random length,
        so that every epoch has other cuts. With window_size 3, a segment of 9 tokens whose newest stretch has 2 places for
        targets:

            token             0  1  2  3  4  5  6  7  8
            newest                              6  7  8
            1 newer                    3  4  5  6
            2 newer           0  1  2  3

        In a stretch every token but the first may be a target. It sees the tokens before it in the stretch. So each target
        belongs to one stretch.

        Returns:
            For each stretch with a target: its first token, its end (exclusive), its number of targets, int64 [stretches] each.
        """
        window, tokens = self.samples.window_size, self.items.lengths
        # For each segment, [segments]: places for targets in its newest stretch; places before that; number of stretches.
        drawn = random.integers((window + 1) // 2, window + 1, len(tokens))
        newest = np.where(tokens > window + 1, drawn, np.maximum(tokens - 1, 0))
        older = np.maximum(tokens - 1 - newest, 0)
        pieces = 1 + ceil_div(older, window)
        # For each stretch, [stretches]: its segment, how many of the segment's stretches are newer, and which tokens it has.
        segment = np.repeat(np.arange(len(tokens)), pieces)
        newer = ranges(pieces)
        tokens_after = np.where(newer > 0, newest[segment] + (newer - 1) * window, 0)
        cut_to = self.items.offsets[segment + 1] - tokens_after
        places = np.where(newer > 0, window, newest[segment])
        cut_from = np.maximum(cut_to - 1 - places, self.items.offsets[segment])
        targets = self._targets_before(cut_to) - self._targets_before(cut_from + 1)
        kept = targets > 0
        return cut_from[kept], cut_to[kept], targets[kept]

    def shared_windows(self, first: Ints, stop: Ints) -> Windows:
        """Stretches as histories, oldest first, that their targets share; a history lacks the stretch's last token."""
        targets = Ragged.spans(self._targets_before(first + 1), self._targets_before(stop))  # ragged [S]
        history = np.repeat(np.arange(len(first)), targets.lengths)  # [T], as `seen`
        seen = self._token[targets.values] - first[history]
        return replace(self._windows(first, stop - 1, targets.values), shared=Shared(history, seen))

    def _targets_before(self, tokens: Ints) -> Ints:
        """How many of the block's targets come before each of these tokens."""
        return np.searchsorted(self._token, tokens)

    def _windows(self, first: Ints, stop: Ints, targets: Ints) -> Windows:
        """Windows with the tokens first[i] to stop[i] - 1 as history i, [S] each, and the data of the targets, [T]."""
        places = Ragged.spans(first, stop)
        token = places.values  # tokens of all histories, [tokens]
        if self.samples.order == "newest_first":
            token = np.repeat(first + stop - 1, stop - first) - token  # reverses each history
        k = self.samples.negatives_per_positive
        # [T * k] -> [T, k]
        negatives = self._negatives.reshape(-1, k)[targets].astype(np.int64) if k else np.zeros((len(targets), 0), np.int64)
        return Windows(
            history=Ragged(self.items.values[token].astype(np.int64), places.offsets),
            item={
                name: feature.slices(feature.offsets[token], feature.offsets[token + 1]) for name, feature in self._item.items()
            },
            user={name: values[targets].astype(np.int64) for name, values in self._user.items()},
            lists={
                name: lists.slices(lists.offsets[targets], lists.offsets[targets + 1]) for name, lists in self._lists.items()
            },
            numbers={name: values[targets].astype(np.float32) for name, values in self._numbers.items()},
            item_numbers={name: values[token].astype(np.float32) for name, values in self._item_numbers.items()},
            example_age=self._age[targets].astype(np.float32),
            target=self.items.values[self._token[targets]].astype(np.int64),
            negatives=negatives,
            weight=None if self._weight is None else self._weight[targets],
        )
