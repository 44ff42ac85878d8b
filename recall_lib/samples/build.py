"""Users' clicks -> the samples (SPEC 3): training segments with their targets, and one row a user for everything held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from recall_lib.config import Features, Samples
from recall_lib.samples import clicks as kernels
from recall_lib.samples.clicks import Negatives, Users
from recall_lib.samples.negatives import sampling_weights
from recall_lib.samples.ragged import Float64s, Ints

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
_MICROSECONDS_A_DAY = 86_400 * 1_000_000


@dataclass(frozen=True)
class Recipe:
    """What decides the samples beside the clicks.

    Attributes:
        seed: of all random choices.
        newest_ts: µs of the newest training click; null where clicks have no time.
        train_clicks: all training clicks that the vocabulary counts, those of filtered items too.
        load_counts: gives the training clicks of each item index, where the executor needs them.
        targets_since: µs of the first click that may be a training target; null: all may.
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
    """3.4: of a target of each item index (1 and more: always)."""
    share = np.maximum(counts, 1) / max(train_clicks, 1)
    return (np.sqrt(share / threshold) + 1) * threshold / share


def split_samples(table: pa.Table, recipe: Recipe) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The samples of some users, before the hold-out: (split, rows of schemas.segments)."""
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
        shown = users.sequences[kernels.IMPRESSIONS] if settings.negatives == "impressions" else None
        negatives = Negatives(own, weights, shown)
    target = kernels.targets(users, tokens, starts, settings, keep, recipe.targets_since)
    rows = kernels.training_rows(users, tokens, starts, target, _ages(users, recipe.newest_ts), settings)
    for batch in kernels.record_batches(users, rows, recipe.features, settings.negatives_per_positive, negatives=negatives):
        yield TRAIN, batch
    for split, targets in held_out.items():
        for batch in _held_out_batches(users, targets, recipe.features, settings):
            yield split, batch


def _held_out(users: Users, protocol: str) -> dict[str, Ints]:
    """The held-out clicks of each split, as transforms.holdout.assign_splits."""
    last, clicks = users.offsets[1:] - 1, np.diff(users.offsets)
    if protocol == "day":
        assert users.validates is not None, "protocol day needs the column `validates`"
        return {VALIDATION: last[users.validates[last]]}
    return {VALIDATION: last[clicks >= 3] - 1, TEST: last[clicks >= 2]}


def _ages(users: Users, newest_ts: int | None) -> Float64s:
    """Days from each click to the newest training click, or what the log says."""
    age = np.zeros(len(users.order)) if newest_ts is None else (newest_ts - users.order) / _MICROSECONDS_A_DAY
    return np.where(np.isnan(users.age), age, users.age)


def samples_of_day(table: pa.Table, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    """Each user's first click with `is_target`, as a target; users without any click before it give no row."""
    users = Users.of(table, features)
    assert users.is_target is not None, "the rows need the column `is_target`"
    targets = np.flatnonzero(users.is_target)
    _, first = np.unique(users.user[targets], return_index=True)
    yield from _held_out_batches(users, targets[first], features, settings)


def _held_out_batches(users: Users, targets: Ints, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    """Targets with an earlier click; the history is empty where all earlier ones were filtered."""
    user = users.user[targets]
    before = targets > users.offsets[user]
    yield from _rows_of(users, user[before], targets[before], features, settings, start_token=True)


def histories(table: pa.Table, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    """Every user's history and newest user features, no start token and no target (inference)."""
    users = Users.of(table, features)
    yield from _rows_of(users, np.arange(len(users.ids)), users.offsets[1:], features, settings, start_token=False)


def _rows_of(
    users: Users, user: Ints, targets: Ints, features: Features, settings: Samples, *, start_token: bool
) -> Iterator[pa.RecordBatch]:
    rows = kernels.held_out_rows(users, user, targets, settings, start_token=start_token)
    seen = kernels.seen_items(users, user, targets)
    yield from kernels.record_batches(users, rows, features, settings.negatives_per_positive, seen=seen)
