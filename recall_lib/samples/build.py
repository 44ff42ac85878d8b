"""Users' clicks -> samples (SPEC 3): training segments with their targets, and one row per held-out click."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recall_lib.config import Features, Samples
from recall_lib.samples import clicks as kernels
from recall_lib.samples.clicks import Negatives, Users
from recall_lib.samples.ids import IMPRESSIONS
from recall_lib.samples.negatives import sampling_weights
from recall_lib.samples.ragged import Float64s, Ints

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
_MICROSECONDS_A_DAY = 86_400 * 1_000_000


@dataclass(frozen=True)
class Recipe:
    """What decides the samples apart from the clicks.

    Attributes:
        features: the features of users and items.
        settings: the config's section `samples`.
        protocol: evaluation.protocol, which decides what is held out.
        seed: the seed of all random choices.
        newest_ts: time of the newest training click, µs since 1970; None if clicks have no time.
        train_clicks: number of training clicks that the vocabulary counts, those of filtered items included.
        load_counts: called in the executor; returns the training clicks of each item index.
        targets_since: µs since 1970 from which a click may be a training target; None: every click may be.
    """

    features: Features
    settings: Samples
    protocol: str
    seed: int
    newest_ts: int | None
    train_clicks: int
    load_counts: Callable[[], Ints]
    targets_since: int | None = None


def keep_probability(counts: Ints, train_clicks: int, threshold: float) -> Float64s:
    """The probability that a target is kept (SPEC 3.4), of each item index, [items]; 1 or more: always."""
    share = np.maximum(counts, 1) / max(train_clicks, 1)
    return (np.sqrt(share / threshold) + 1) * threshold / share


def split_samples(table: pa.Table, recipe: Recipe) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The samples of some users, from all their clicks: (split, rows of schemas.segments)."""
    users, settings = Users.of(table, recipe.features, recipe.seed), recipe.settings
    held_out = _held_out(users, recipe.protocol)
    trains = np.ones(len(users.item), bool)
    trains[np.concatenate(list(held_out.values()))] = False
    tokens, starts = kernels.training_tokens(users, trains, settings)
    keep = negatives = None
    if settings.subsample_threshold:
        keep = keep_probability(recipe.load_counts(), recipe.train_clicks, settings.subsample_threshold)
    if settings.negatives_per_positive:
        own = kernels.distinct(users.user[tokens.values], users.item[tokens.values], len(users.ids))
        weights = sampling_weights(recipe.load_counts(), settings.negatives_alpha)
        shown = users.sequences[IMPRESSIONS] if settings.negatives == "impressions" else None
        negatives = Negatives(own, weights, shown)
    target = kernels.targets(users, tokens, starts, settings, keep, recipe.targets_since)
    rows = kernels.training_rows(users, tokens, starts, target, _ages(users, recipe.newest_ts), settings)
    for batch in kernels.record_batches(users, rows, recipe.features, settings.negatives_per_positive, negatives=negatives):
        yield TRAIN, batch
    for split, targets in held_out.items():
        for batch in _held_out_batches(users, targets, recipe.features, settings):
            yield split, batch


def _held_out(users: Users, protocol: str) -> dict[str, Ints]:
    """The held-out clicks of each split; the same clicks that transforms.holdout.assign_splits holds out in SQL."""
    last, clicks = users.offsets[1:] - 1, np.diff(users.offsets)
    if protocol == "day":
        assert users.validates is not None, "protocol day needs the column `validates`"
        return {VALIDATION: last[users.validates[last]]}
    return {VALIDATION: last[clicks >= 3] - 1, TEST: last[clicks >= 2]}


def _ages(users: Users, newest_ts: int | None) -> Float64s:
    """Days from each click to the newest training click, or the age that the log gives, [clicks]."""
    age = np.zeros(len(users.order)) if newest_ts is None else (newest_ts - users.order) / _MICROSECONDS_A_DAY
    return np.where(np.isnan(users.age), age, users.age)


def samples_of_day(table: pa.Table, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    """One row per user: the first click with `is_target` is the target. Users without a click before it have no row."""
    users = Users.of(table, features)
    assert users.is_target is not None, "the rows need the column `is_target`"
    targets = np.flatnonzero(users.is_target)
    _, first = np.unique(users.user[targets], return_index=True)
    yield from _held_out_batches(users, targets[first], features, settings)


def _held_out_batches(users: Users, targets: Ints, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    """A row for each target with an earlier click; its history is empty if all earlier clicks were filtered out."""
    user = users.user[targets]
    before = targets > users.offsets[user]
    yield from _rows_of(users, user[before], targets[before], features, settings, start_token=True)


def histories(table: pa.Table, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    """Every user's history and newest user features, without start token and target (inference)."""
    users = Users.of(table, features)
    yield from _rows_of(users, np.arange(len(users.ids)), users.offsets[1:], features, settings, start_token=False)


def _rows_of(
    users: Users, user: Ints, targets: Ints, features: Features, settings: Samples, *, start_token: bool
) -> Iterator[pa.RecordBatch]:
    rows = kernels.held_out_rows(users, user, targets, settings, start_token=start_token)
    seen = kernels.seen_items(users, user, targets)
    yield from kernels.record_batches(users, rows, features, settings.negatives_per_positive, seen=seen)
