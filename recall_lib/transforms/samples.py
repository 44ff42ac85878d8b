"""Encoded clicks -> the samples' rows: each user's clicks brought together, and `samples.build` applied to them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pyarrow as pa
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recall_lib.config import Features, Samples
from recall_lib.samples import build
from recall_lib.samples.build import Recipe
from recall_lib.spark.grouping import map_users
from recall_lib.spark.writing import WRITTEN, write_files
from recall_lib.store import schemas


def columns(clicks: DataFrame, features: Features, flag: Column, *, own_ages: bool) -> DataFrame:
    """What `samples.clicks.Users` is made of, without what would be the same in every row.

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
        return write_files((f"{folder}/split={split}", rows) for split, rows in build.split_samples(table, recipe))

    return map_users(clicks, partitions, write, WRITTEN)


def samples_of_day(clicks: DataFrame, partitions: int, features: Features, settings: Samples) -> DataFrame:
    """schemas.runs: each user's first flagged click with the clicks before it; users without any before it give no row."""
    return map_users(
        clicks, partitions, partial(build.samples_of_day, features=features, settings=settings), schemas.runs(features)
    )


def histories(clicks: DataFrame, partitions: int, features: Features, settings: Samples) -> DataFrame:
    """schemas.runs: every user's history and newest user features, no start token and no target (inference)."""
    return map_users(clicks, partitions, partial(build.histories, features=features, settings=settings), schemas.runs(features))
