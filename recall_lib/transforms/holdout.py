"""A user's clicks in order, and which of them are held out (SPEC 3.1, 3.8)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recall_lib.config import Input
from recall_lib.samples.build import TEST, TRAIN, VALIDATION

# Protocol `day` validates on the last click of this share of the users.
_VALIDATION_PERCENT = 5


def click_order(*, newest_first: bool = False) -> list[Column]:
    """Order of a user's clicks: time or position, ties by item id bytes, then by the row's whole content."""
    columns = [F.col("event_ts"), F.col("position"), F.col("item_id"), F.col("tie")]
    return [column.desc() for column in columns] if newest_first else [column.asc() for column in columns]


def first_moment(dt: str, days: int | None, settings: Input) -> int | None:
    """µs at which the last so many days before dt begin; null days: null."""
    return days and settings.day_begins((date.fromisoformat(dt) - timedelta(days=days)).isoformat())


def not_before(clicks: DataFrame, moment: int | None) -> DataFrame:
    """The clicks from a moment on, µs; null: all."""
    return clicks if moment is None else clicks.where(F.col("event_ts") >= F.timestamp_micros(F.lit(moment)))


def tie_breaker(events: DataFrame) -> DataFrame:
    """Adds column `tie`: orders clicks that agree in user, time and item but not in their features."""
    rest = [F.col(name) for name in events.columns if name not in ("user_id", "item_id", "event_ts", "position")]
    # A hash skips nulls: who is null is hashed too, or (a, null) and (null, a) would be equal.
    return events.withColumn("tie", F.xxhash64(*rest, *(column.isNull() for column in rest)))


def validates(seed: int) -> Column:
    """Whether a user's last click is the validation of protocol `day`."""
    return F.pmod(F.xxhash64(F.lit(seed), F.lit("validation"), "user_id"), F.lit(100)) < _VALIDATION_PERCENT


def assign_splits(events: DataFrame, protocol: str, seed: int) -> DataFrame:
    """Adds `tie` and `split` to the newest clicks of events before the hold-out is used; the others train.

    `last_click`: the last click is test, the one before validation; users with two clicks have no validation, users with
    one are train only. `day` (events before dt): the last click of 5% of the users is validation; test is not among them.

    Returns:
        Every held-out click and, of the same users, the newest one that is left for training. Ranks are limited before
        rows are moved, so that a user of a million clicks is three rows.
    """
    events = tie_breaker(events)
    by_user = Window.partitionBy("user_id")
    from_end = F.row_number().over(by_user.orderBy(*click_order(newest_first=True)))
    if protocol == "day":
        newest = events.where(validates(seed)).withColumn("from_end", from_end).where("from_end <= 2")
        split = F.when(F.col("from_end") == 1, VALIDATION).otherwise(TRAIN)
    else:
        newest = events.withColumn("from_end", from_end).where("from_end <= 3")
        clicks = F.count(F.lit(1)).over(by_user)  # 3 stands for more
        split = (
            F.when((F.col("from_end") == 1) & (clicks >= 2), TEST)
            .when((F.col("from_end") == 2) & (clicks >= 3), VALIDATION)
            .otherwise(TRAIN)
        )
    return newest.withColumn("split", split).drop("from_end")


def training_clicks(events: DataFrame) -> DataFrame:
    """What protocol `last_click` leaves for training, with `tie`."""
    by_user = Window.partitionBy("user_id")
    from_end = F.row_number().over(by_user.orderBy(*click_order(newest_first=True)))
    ranked = tie_breaker(events).withColumn("from_end", from_end).withColumn("clicks", F.count(F.lit(1)).over(by_user))
    return ranked.where(F.col("from_end") > F.least(F.lit(2), F.col("clicks") - 1)).drop("from_end", "clicks")


def newest_training_click(events: DataFrame, newest: DataFrame, protocol: str, seed: int) -> int | None:
    """µs of the newest training click; null without clicks or times.

    Args:
        events: before the hold-out.
        newest: what `assign_splits` makes of them, persisted.
    """

    def time_of(clicks: DataFrame) -> int | None:
        row = clicks.agg(F.max(F.unix_micros("event_ts"))).first()
        return row[0] if row else None

    known = time_of(newest.where(F.col("split") == TRAIN))
    if protocol != "day":
        return known
    # The users who do not validate have a newer one only after that: all but the end of the log need not be read.
    others = events.where(~validates(seed))
    if known is not None:
        others = others.where(F.col("event_ts") >= F.lit(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=known)))
    newer = time_of(others)
    return max(filter(None, (known, newer)), default=None)
