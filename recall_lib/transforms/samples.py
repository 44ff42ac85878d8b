"""Encoded clicks -> runs (SPEC 3): training runs with their targets, and one row a user for everything held out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recall_lib import schemas
from recall_lib.config import Features, Samples
from recall_lib.io.writing import WRITTEN, write_splits
from recall_lib.transforms import users as kernels
from recall_lib.transforms.grouping import map_users
from recall_lib.transforms.holdout import TEST, TRAIN, VALIDATION
from recall_lib.transforms.negatives import sampling_weights
from recall_lib.transforms.users import Users

_MICROSECONDS_A_DAY = 86_400 * 1_000_000
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


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


def columns(clicks: DataFrame, features: Features, flag: Column, *, own_ages: bool) -> DataFrame:
    """What `users.Users` is made of, without what would be the same in every row.

    Args:
        clicks: encoded events with `tie`.
        flag: a mark of clicks, whose meaning is that of the function that gets them.
        own_ages: whether the log brings its example_age.
    """
    names = [f"{f.name}_index" for f in (*features.user, *features.item)]
    names += ["example_age"] * own_ages
    return clicks.select(
        "user_id",
        F.coalesce(F.unix_micros("event_ts"), "position").alias("order"),
        "item_id",
        *(["tie"] if names else []),
        "item_index",
        flag.alias("flag"),
        *names,
    )


def split_samples(clicks: DataFrame, partitions: int, recipe: Recipe, folder: str) -> DataFrame:
    """Writes the samples of every split that the clicks hold below a folder when its files (writing.WRITTEN) are asked for.

    Args:
        clicks: `columns`, before the hold-out; with protocol `day` the users who validate are flagged.
        partitions: each gives a file a split; its training rows are in random order.
    """

    def write(table: pa.Table) -> Iterator[pa.RecordBatch]:
        return write_splits(_split_samples(table, recipe), folder)

    return map_users(clicks, partitions, write, WRITTEN)


def samples_of_day(clicks: DataFrame, partitions: int, features: Features, settings: Samples) -> DataFrame:
    """schemas.runs: each user's first flagged click with the clicks before it; users without any before it give no row."""
    return map_users(clicks, partitions, partial(_samples_of_day, features=features, settings=settings), schemas.runs(features))


def histories(clicks: DataFrame, partitions: int, features: Features, settings: Samples) -> DataFrame:
    """schemas.runs: every user's history and newest user features, no start token and no target (inference)."""
    return map_users(clicks, partitions, partial(_histories, features=features, settings=settings), schemas.runs(features))


def keep_probability(counts: Ints, train_clicks: int, threshold: float) -> Floats:
    """3.4: of a target of each item index (1 and more: always)."""
    share = np.maximum(counts, 1) / max(train_clicks, 1)
    return (np.sqrt(share / threshold) + 1) * threshold / share


def _split_samples(table: pa.Table, recipe: Recipe) -> Iterator[tuple[str, pa.RecordBatch]]:
    users, settings = Users.of(table, recipe.features, recipe.seed), recipe.settings
    held_out = _held_out(users, recipe.protocol)
    trains = np.ones(len(users.item), bool)
    trains[np.concatenate(list(held_out.values()))] = False
    tokens, starts = kernels.training_tokens(users, trains, settings)
    keep = weights = own = None
    if settings.subsample_threshold:
        keep = keep_probability(recipe.load_counts(), recipe.train_clicks, settings.subsample_threshold)
    if settings.negatives_per_positive:
        weights = sampling_weights(recipe.load_counts(), settings.negatives_alpha)
        own = kernels.distinct(users.user[tokens.values], users.item[tokens.values], len(users.ids))
    target = kernels.targets(users, tokens, starts, settings, keep, recipe.targets_since)
    rows = kernels.training_rows(users, tokens, starts, target, _ages(users, recipe.newest_ts), settings)
    k = settings.negatives_per_positive
    for batch in kernels.batches(users, rows, recipe.features, negatives=k, weights=weights, own=own):
        yield TRAIN, batch
    for split, targets in held_out.items():
        for batch in _held_out_batches(users, targets, recipe.features, settings):
            yield split, batch


def _held_out(users: Users, protocol: str) -> dict[str, Ints]:
    """The held-out clicks of each split, as transforms.holdout.assign_splits."""
    last, clicks = users.offsets[1:] - 1, np.diff(users.offsets)
    if protocol == "day":
        return {VALIDATION: last[users.flag[last]]}
    return {VALIDATION: last[clicks >= 3] - 1, TEST: last[clicks >= 2]}


def _ages(users: Users, newest_ts: int | None) -> Floats:
    """Days from each click to the newest training click, or what the log says."""
    age = np.zeros(len(users.order)) if newest_ts is None else (newest_ts - users.order) / _MICROSECONDS_A_DAY
    return np.where(np.isnan(users.age), age, users.age)


def _samples_of_day(table: pa.Table, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    users = Users.of(table, features)
    flagged = np.flatnonzero(users.flag)
    _, first = np.unique(users.user[flagged], return_index=True)
    yield from _held_out_batches(users, flagged[first], features, settings)


def _held_out_batches(users: Users, targets: Ints, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    """Targets with an earlier click; the history is empty where all earlier ones were filtered."""
    user = users.user[targets]
    before = targets > users.offsets[user]
    yield from _rows_of(users, user[before], targets[before], features, settings, start_token=True)


def _histories(table: pa.Table, features: Features, settings: Samples) -> Iterator[pa.RecordBatch]:
    users = Users.of(table, features)
    yield from _rows_of(users, np.arange(len(users.ids)), users.offsets[1:], features, settings, start_token=False)


def _rows_of(
    users: Users, user: Ints, targets: Ints, features: Features, settings: Samples, *, start_token: bool
) -> Iterator[pa.RecordBatch]:
    rows = kernels.held_out_rows(users, user, targets, settings, start_token=start_token)
    seen = kernels.seen_items(users, user, targets)
    yield from kernels.batches(users, rows, features, negatives=settings.negatives_per_positive, seen=seen)
