"""The log that benchmarks run on: published events of any size, a pure function of the size."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from pyspark.sql import Column
from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.store import schemas

CLICKS_A_USER, ITEMS, DAYS = 40, 20_000, 10
_START = datetime(2024, 1, 1, tzinfo=UTC)
DT = f"{_START + timedelta(days=DAYS):%Y-%m-%d}"  # the day that follows the log


def publish_log(ctx: Context, clicks: int) -> int:
    """Publish DAYS days of events, CLICKS_A_USER a user at random seconds, item r drawn about in proportion to r^(-2/3).

    Returns:
        The clicks, `clicks` rounded down to whole users.
    """
    users = clicks // CLICKS_A_USER
    log = ctx.spark.range(users).select("id", F.explode(F.sequence(F.lit(1), F.lit(CLICKS_A_USER))).alias("nth"))
    item = F.floor(F.pow(_uniform("item"), F.lit(3.0)) * ITEMS)
    second = F.floor(_uniform("time") * (DAYS * 86_400)) + int(_START.timestamp())
    log = log.select(
        F.format_string("u%07d", "id").alias("user_id"),
        F.format_string("i%05d", item).alias("item_id"),
        F.timestamp_seconds(second).alias("event_ts"),
        F.lit(None).cast("long").alias("position"),
        F.lit(None).cast("double").alias("example_age"),
    ).withColumn("dt", F.date_format("event_ts", "yyyy-MM-dd"))
    days = [f"{_START + timedelta(days=day):%Y-%m-%d}" for day in range(DAYS)]
    # A user's clicks of a day in one file, as the events job leaves them.
    spread = log.repartition(ctx.config.spark.partitions, "dt", F.pmod(F.xxhash64("user_id"), F.lit(64)))
    with ctx.tables.publishing("events", days) as staged:
        staged.write(spread, schemas.events(ctx.config.features))
    return users * CLICKS_A_USER


def _uniform(word: str) -> Column:
    return F.shiftrightunsigned(F.xxhash64(F.lit(word), "id", "nth"), 11) / F.lit(float(1 << 53))
