"""Encoded clicks -> rows of samples: brings each user's clicks together and applies `samples.build` to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import pyarrow as pa
from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from recall_lib.config import Features, Samples
from recall_lib.samples import build
from recall_lib.samples.build import Recipe
from recall_lib.spark.grouping import map_users
from recall_lib.spark.writing import WRITTEN, write_files
from recall_lib.store import schemas

Work = Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]


def columns(clicks: DataFrame, features: Features, *marks: str) -> DataFrame:
    """The columns from which `samples.clicks.Users` is made.

    Args:
        clicks: encoded events with `tie`.
        marks: further columns of `clicks` that the caller needs: `validates` for `split_samples`, `is_target` for
            `samples_of_day`, `example_age` where the log brings it, `position` where it orders clicks of one time.
    """
    names = [f"{f.name}_index" for f in (*features.target_ids, *features.token_ids)]
    names += [f"{n.name}_value" for n in (*features.target_numbers, *features.token_numbers)] + ["weight"] * features.weighted
    tie = ["tie"] if names or "example_age" in marks else []  # otherwise clicks of one time and item are equal in all columns
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
    """The files (writing.WRITTEN) of the samples; tasks write them, below a folder, when Spark computes this frame.

    Args:
        clicks: the result of `columns`, held-out clicks included; with protocol `day` with the mark `validates`.
        partitions: each partition gives one file per split. Its training rows are in random order.
        recipe: what decides the samples apart from the clicks.
        folder: each split gets the folder `split=<split>` in it.
    """

    def write(table: pa.Table) -> Iterator[pa.RecordBatch]:
        return write_files((f"{folder}/split={split}", rows) for split, rows in build.split_samples(table, recipe))

    return map_users(clicks, partitions, write, WRITTEN)


def samples_of_day(clicks: DataFrame, partitions: int, features: Features, settings: Samples) -> DataFrame:
    """schemas.segments: each user's first click with `is_target`, and the clicks before it; without these, no row."""
    rows = partial(build.samples_of_day, features=features, settings=settings)
    return map_users(clicks, partitions, rows, schemas.segments(features))


def map_histories(
    clicks: DataFrame, partitions: int, features: Features, settings: Samples, work: Work, schema: StructType
) -> DataFrame:
    """What `work` makes of every user's history and newest user features, in the executors.

    Args:
        clicks: `columns`.
        partitions: of the result.
        features: that the clicks were encoded for.
        settings: of the samples.
        work: gets batches of schemas.segments: a row per user, no start token and no target. It runs in the process that
            makes them, so the histories are not sent to Spark and back.
        schema: of the rows that `work` yields.
    """

    def kernel(table: pa.Table) -> Iterator[pa.RecordBatch]:
        return work(build.histories(table, features, settings))

    return map_users(clicks, partitions, kernel, schema)
