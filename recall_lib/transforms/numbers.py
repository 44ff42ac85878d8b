"""Numeric features and times: the training clicks' percentiles, and what the samples hold of each number (paper, 4.1)."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recall_lib.config import Features, Number
from recall_lib.samples.ids import FIRST_INDEX, UNKNOWN
from recall_lib.samples.ragged import Float64s, Ints

PERCENTILES = 101  # from the smallest number to the largest

# Numbers are counted with this many digits, so that even a number that differs in every click has few thousand different ones.
_DIGITS = 4


def count_numbers(clicks: DataFrame, features: Features) -> dict[str, tuple[Float64s, Ints, int]]:
    """Of each numeric feature: its different numbers, ascending, how often each occurs, and how often it is unknown.

    Args:
        clicks: the result of vocab.training_counts.
    """
    counted = {}
    for number in features.numbers:
        value = F.format_string(f"%.{_DIGITS - 1}e", number.name).cast("double")
        rows = clicks.select(F.when(F.col(number.name).isNotNull(), value).alias("value"), "_n").groupBy("value")
        table = rows.agg(F.round(F.sum("_n")).cast("long").alias("count")).where("count > 0").toPandas()
        known = table[table["value"].notna()].sort_values("value")
        values, counts = known["value"].to_numpy(np.float64), known["count"].to_numpy(np.int64)
        counted[number.name] = values, counts, int(table["count"].sum() - counts.sum())
    return counted


def percentiles(values: Float64s, counts: Ints) -> Float64s:
    """The smallest number, the largest, and 99 between them, [101]: a q-th part of the clicks is at or below the q-th."""
    upto = np.cumsum(counts)
    place = np.linspace(0, 1, PERCENTILES) * upto[-1]
    return values[np.searchsorted(upto, place).clip(max=len(values) - 1)]


def vocab_rows(counted: Mapping[str, tuple[Float64s, Ints, int]]) -> list[tuple[str, int, str, int]]:
    """Rows of schemas.VOCAB with the percentiles of each feature that has a known number."""
    return [
        (name, q, repr(float(value)), int(counts.sum()))
        for name, (values, counts, _) in counted.items()
        if len(values)
        for q, value in enumerate(percentiles(values, counts))
    ]


def read_percentiles(vocab: DataFrame, features: Features) -> dict[str, Float64s]:
    """The percentiles of each numeric feature in a vocabulary; a feature of which nothing is known has none."""
    names = [number.name for number in features.numbers]
    if not names:
        return {}
    table = vocab.where(F.col("feature").isin(names)).select("feature", "index", "value").toPandas().sort_values("index")
    return {str(name): rows["value"].to_numpy(np.float64) for name, rows in table.groupby("feature")}


def place_in(values: Float64s, grid: Float64s | None) -> Float64s:
    """Where numbers stand among percentiles, [0, 1]; NaN stays NaN, and without percentiles everything is NaN.

    Numbers between two percentiles are interpolated. One that several percentiles share stands in their middle.
    """
    if grid is None:
        return np.full(len(values), np.nan)
    share = np.linspace(0, 1, len(grid))
    distinct, first = np.unique(grid, return_index=True)
    last = np.append(first[1:], len(grid)) - 1
    return np.interp(values, distinct, (share[first] + share[last]) / 2)


def encode_numbers(clicks: DataFrame, vocab: DataFrame, features: Features) -> DataFrame:
    """Adds `<number>_index` (int) for numbers in buckets, and `<number>_value` (float, NaN where unknown) for the others."""
    grids = read_percentiles(vocab, features)
    for number in features.numbers:
        suffix = "index" if number.form == "buckets" else "value"
        clicks = clicks.withColumn(f"{number.name}_{suffix}", _encoded(number, grids.get(number.name)))
    return clicks


def _encoded(number: Number, grid: Float64s | None) -> Column:
    value = F.coalesce(F.col(number.name), F.lit(float("nan")))
    if number.form == "raw":
        return value.cast("float")
    kind = "int" if number.form == "buckets" else "float"

    @F.pandas_udf(kind)  # type: ignore[call-overload]
    def encoded(values: pd.Series) -> pd.Series:
        place = place_in(values.to_numpy(np.float64), grid)
        if number.form != "buckets":
            return pd.Series(place.astype(np.float32))
        known = ~np.isnan(place)
        bucket = np.full(len(place), UNKNOWN, np.int32)
        bucket[known] = FIRST_INDEX + np.minimum((place[known] * number.buckets).astype(np.int32), number.buckets - 1)
        return pd.Series(bucket)

    return encoded(value)


def encode_time(clicks: DataFrame, features: Features) -> DataFrame:
    """Adds `hour_index` and `weekday_index` (Monday first) of event_ts in UTC, where they are features."""
    return _with_time(clicks, F.col("event_ts"), features)


def at_moment(clicks: DataFrame, moment: int, features: Features) -> DataFrame:
    """The same clicks with the hour and weekday of a moment, µs since 1970: that at which the lists' day begins."""
    return _with_time(clicks, F.timestamp_micros(F.lit(moment)), features)


def _with_time(clicks: DataFrame, time: Column, features: Features) -> DataFrame:
    parts = {"hour": F.hour(time), "weekday": F.weekday(time)}
    index = {f"{f.name}_index": F.coalesce(parts[f.name] + FIRST_INDEX, F.lit(UNKNOWN)) for f in features.time}
    return clicks.withColumns({name: column.cast("int") for name, column in index.items()}) if index else clicks
