"""The most clicked items, overall and recently (SPEC 6.2)."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F

from recall_lib.config import Input
from recall_lib.transforms.holdout import click_order, not_before

ALL, RECENT = "all", "recent"
# With ordering `position` clicks have no time. There each user's last clicks count as recent (SPEC 7).
RECENT_CLICKS = 10


def recent_clicks(clicks: DataFrame, dt: str, settings: Input, hours: float) -> DataFrame:
    """The clicks of the last `hours` before dt begins; with ordering `position` each user's last 10.

    Args:
        clicks: clicks before dt; with ordering `position` also with `tie`.
    """
    if settings.ordering == "position":
        newest = F.row_number().over(Window.partitionBy("user_id").orderBy(*click_order(newest_first=True)))
        return clicks.withColumn("_nth", newest).where(F.col("_nth") <= RECENT_CLICKS).drop("_nth")
    return not_before(clicks, settings.day_begins(dt) - round(hours * 3_600_000_000))


def count_items(clicks: DataFrame, items: DataFrame) -> DataFrame:
    """item_index, item_id, count: the clicks of each item of the vocabulary that has any."""
    counts = clicks.groupBy("item_id").agg(F.count(F.lit(1)).alias("count"))
    return counts.join(items, "item_id").select("item_index", "item_id", "count")


def hottest(counts: DataFrame, window: str) -> DataFrame:
    """schemas.POPULAR: the items by falling count, ties by item id bytes. One task sorts them: there is one row per item."""
    rank = F.row_number().over(Window.partitionBy("window").orderBy(F.col("count").desc(), "item_id"))
    return counts.withColumn("window", F.lit(window)).select("window", rank.alias("rank"), "item_id", "count")
