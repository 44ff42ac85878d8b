"""Exact windows out of runs of clicks, in NumPy: the one place where a history is cut (SPEC 3.2, 3.3).

A run is a part of one user's tokens, oldest first, stored once; each of its targets sees the up to `window_size`
tokens before it. Training, evaluation, inference and `recall dump` all cut their windows here. Training may also take
stretches of a run whole (training.unit `run`): an encoder then runs once for all of a stretch's targets.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from recall_lib.config import Features, Samples
from recall_lib.samples.ragged import Ragged

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Windows:
    """What a model sees of T targets, in S histories: a history a target (T = S), or with `at` one that several share.

    Attributes:
        history: item ids in `samples.order` (ragged int64 [S]).
        item: per item feature the values of each token, history after history (ragged [tokens]).
        user: per user feature, int64 [T].
        example_age: days, float32 [T].
        target: item ids, int64 [T]; 0 where there is none (inference), 1 where it is outside the vocabulary.
        negatives: item ids, int64 [T, negatives_per_positive], padded with 0.
        at: each target's history and how many of its first tokens it sees, int64 [T] both; null: each all of its own.
    """

    history: Ragged
    item: dict[str, Ragged]
    user: dict[str, Ints]
    example_age: npt.NDArray[np.float32]
    target: Ints
    negatives: Ints
    at: tuple[Ints, Ints] | None = None

    def bags(self) -> dict[str, Ragged]:
        """Per item feature the values of all of a history's tokens (ragged [S])."""
        return {name: Ragged(values.values, values.offsets[self.history.offsets]) for name, values in self.item.items()}


class Runs:
    """A block of runs (see schemas.runs), ready to be cut into windows. Targets are numbered 0..len(self) - 1."""

    def __init__(self, lists: Mapping[str, Ragged], features: Features, samples: Samples) -> None:
        """`lists`: every list column of the schema by name."""
        self.samples = samples
        self.items = lists["item_index"]
        # Positions and windows in terms of all tokens of the block, end to end.
        self._token = np.flatnonzero(lists["is_target"].values)
        self.run_of_target = np.searchsorted(self.items.offsets, self._token, side="right") - 1
        self._start = self.items.offsets[self.run_of_target]
        self._age = lists["example_age"].values
        self._negatives = lists["negatives"].values
        self._user = {f.name: lists[f"{f.name}_index"].values for f in features.user}
        # Per item feature: one list of values per token.
        self._item = {
            f.name: Ragged.of(
                lists[f"{f.name}_index"].values,
                lists[f"{f.name}_length"].values if f.multi else np.ones(len(self.items.values), np.int64),
            )
            for f in features.item
        }

    @classmethod
    def from_arrow(cls, table: pa.Table | pa.RecordBatch, features: Features, samples: Samples) -> Runs:
        """From rows of a samples or histories table."""
        columns: dict[str, Ragged] = {}
        for name in table.schema.names:
            if pa.types.is_list(table.schema.field(name).type):
                column = table.column(name)
                columns[name] = Ragged.from_arrow(column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column)
        return cls(columns, features, samples)

    def __len__(self) -> int:
        """Number of targets."""
        return len(self.run_of_target)

    def windows(self, targets: Ints) -> Windows:
        """The windows of the given targets, in the given order."""
        token, start = self._token[targets], self._start[targets]
        first = np.maximum(start, token - self.samples.window_size)
        return self._windows(first, token, targets)

    def stretches(self, random: np.random.Generator) -> tuple[Ints, Ints, Ints]:
        """The runs cut into stretches of up to window_size + 1 tokens, from the newest backwards, neighbours sharing one.

        Each target is the token of one stretch that is not its first, and sees the tokens before it there. The newest
        stretch of a longer run has a random length, so that the cuts lie elsewhere in every epoch.

        Returns:
            Of those with a target: first token, end (exclusive) and number of targets, int64 [stretches] each.
        """
        most, tokens = self.samples.window_size, self.items.lengths
        newest = np.where(tokens > most + 1, random.integers(-(-most // 2), most + 1, len(tokens)), np.maximum(tokens - 1, 0))
        pieces = 1 + -(-np.maximum(tokens - 1 - newest, 0) // most)
        run = np.repeat(np.arange(len(tokens)), pieces)
        back = Ragged.spans(np.zeros_like(pieces), pieces).values  # 0: the newest
        stop = self.items.offsets[run + 1] - np.where(back > 0, newest[run] + (back - 1) * most, 0)
        length = np.where(back > 0, most, newest[run])
        first = np.maximum(stop - 1 - length, self.items.offsets[run])
        targets = np.searchsorted(self._token, stop) - np.searchsorted(self._token, first + 1)
        kept = targets > 0
        return first[kept], stop[kept], targets[kept]

    def shared(self, first: Ints, stop: Ints) -> Windows:
        """Stretches of tokens as histories that their targets share, each without its last token, oldest first."""
        targets = Ragged.spans(np.searchsorted(self._token, first + 1), np.searchsorted(self._token, stop))
        row = np.repeat(np.arange(len(first)), targets.lengths)
        seen = self._token[targets.values] - first[row]
        return replace(self._windows(first, stop - 1, targets.values), at=(row, seen))

    def _windows(self, first: Ints, stop: Ints, targets: Ints) -> Windows:
        """Tokens first to stop as histories, and what is known of targets."""
        places = Ragged.spans(first, stop)
        token = places.values
        if self.samples.order == "newest_first":
            token = np.repeat(first + stop - 1, stop - first) - token
        k = self.samples.negatives_per_positive
        return Windows(
            history=Ragged(self.items.values[token].astype(np.int64), places.offsets),
            item={
                name: feature.slices(feature.offsets[token], feature.offsets[token + 1]) for name, feature in self._item.items()
            },
            user={name: values[targets].astype(np.int64) for name, values in self._user.items()},
            example_age=self._age[targets].astype(np.float32),
            target=self.items.values[self._token[targets]].astype(np.int64),
            negatives=self._negatives.reshape(-1, k)[targets].astype(np.int64) if k else np.zeros((len(targets), 0), np.int64),
        )
