"""Encoded clicks -> the samples' rows: each user's clicks brought together, and `samples.build` applied to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recall_lib.config import Features, Samples
from recall_lib.samples import build
from recall_lib.samples.build import Recipe
from recall_lib.spark.grouping import map_users
from recall_lib.spark.writing import WRITTEN, write_files
from recall_lib.store import schemas


def columns(clicks: DataFrame, features: Features, *marks: str) -> DataFrame:
    """What `samples.clicks.Users` is made of.

    Args:
        clicks: encoded events with `tie`.
        marks: further columns of `clicks` that the caller needs: `validates` for `split_samples`, `is_target` for
            `samples_of_day`, `example_age` where the log brings it.
    """
    names = [f"{f.name}_index" for f in (*features.target_ids, *features.token_ids)]
    names += [f"{n.name}_value" for n in (*features.target_numbers, *features.token_numbers)]
    tie = ["tie"] if names or "example_age" in marks else []  # or clicks of one time and item are the same in every column
    return clicks.select(
        "user_id",
        F.coalesce(F.unix_micros("event_ts"), "position").alias("order"),
        "item_id",
        *tie,
        "item_index",
        *names,
        *marks,
    )


def with_activity(clicks: DataFrame, activity: DataFrame) -> DataFrame:
    """The clicks, and as further rows the events of the sequences; column `sequence` is null in clicks.

    Args:
        clicks: `columns`.
        activity: encoded by `vocab.encode_activity`.
    """
    events = activity.select(
        "user_id",
        "sequence",
        F.coalesce(F.unix_micros("event_ts"), "position").alias("order"),
        F.xxhash64("values").alias("tie"),
        "tokens",
    )
    return clicks.unionByName(events, allowMissingColumns=True)


def split_samples(clicks: DataFrame, partitions: int, recipe: Recipe, folder: str) -> DataFrame:
    """Writes the samples of every split that the clicks hold below a folder when its files (writing.WRITTEN) are asked for.

    Args:
        clicks: `columns`, before the hold-out; with protocol `day` with the mark `validates`.
        partitions: each gives a file a split; its training rows are in random order.
    """

    def write(table: pa.Table) -> Iterator[pa.RecordBatch]:
        return write_files((f"{folder}/split={split}", rows) for split, rows in build.split_samples(table, recipe))

    return map_users(clicks, partitions, write, WRITTEN)


def samples_of_day(clicks: DataFrame, partitions: int, features: Features, settings: Samples) -> DataFrame:
    """schemas.segments: each user's first click with `is_target` and those before it; no row where there are none."""
    rows = partial(build.samples_of_day, features=features, settings=settings)
    return map_users(clicks, partitions, rows, schemas.segments(features))


def histories(clicks: DataFrame, partitions: int, features: Features, settings: Samples) -> DataFrame:
    """schemas.segments: every user's history and newest user features, no start token and no target (inference)."""
    return map_users(
        clicks, partitions, partial(build.histories, features=features, settings=settings), schemas.segments(features)
    )
