"""The order of a user's clicks, and which of them are held out (SPEC 3.1, 3.8)."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recall_lib.config import Input
from recall_lib.samples.build import TEST, TRAIN, VALIDATION

# Protocol `day` validates on the last click of this share of the users.
_VALIDATION_PERCENT = 5


def click_order(*, newest_first: bool = False) -> list[Column]:
    """The order of a user's clicks: by time or position; ties by item id bytes, then by the row's whole content."""
    columns = [F.col("event_ts"), F.col("position"), F.col("item_id"), F.col("tie")]
    return [column.desc() for column in columns] if newest_first else [column.asc() for column in columns]


def first_moment(dt: str, days: int | None, settings: Input) -> int | None:
    """The moment at which the last `days` days before dt begin, µs since 1970; None for None."""
    return None if days is None else settings.day_begins((date.fromisoformat(dt) - timedelta(days=days)).isoformat())


def not_before(clicks: DataFrame, moment: int | None) -> DataFrame:
    """The clicks from a moment (µs since 1970) on; None: all clicks."""
    return clicks if moment is None else clicks.where(F.col("event_ts") >= F.timestamp_micros(F.lit(moment)))


def tie_breaker(events: DataFrame) -> DataFrame:
    """Adds column `tie`, which orders clicks of the same user, time and item that have different features."""
    rest = [F.col(name) for name in events.columns if name not in ("user_id", "item_id", "event_ts", "position")]
    # A hash skips nulls. So it also gets which columns are null; otherwise (a, null) and (null, a) would be equal.
    return events.withColumn("tie", F.xxhash64(*rest, *(column.isNull() for column in rest)))


def validates(seed: int) -> Column:
    """Whether protocol `day` validates on a user's last click."""
    return F.pmod(F.xxhash64(F.lit(seed), F.lit("validation"), "user_id"), F.lit(100)) < _VALIDATION_PERCENT


def assign_splits(events: DataFrame, protocol: str, seed: int) -> DataFrame:
    """Each user's newest clicks, with `tie` and `split`; all other clicks are for training.

    `samples.build` holds out the same clicks in NumPy. Here it is done in SQL, because the vocabulary counts clicks without
    bringing all of a user's clicks together.

    Protocol `last_click`: a user's last click is for testing, and the one before it for validation. Users with two clicks
    have none for validation; a user's only click is for training. Protocol `day` (events before dt): the last click of 5% of
    the users is for validation, and none is for testing.

    Returns:
        Every held-out click and, of the same users, the newest click that is left for training. Spark limits the ranks
        before it moves rows, so that a user with a million clicks becomes three rows.
    """
    events = tie_breaker(events)
    by_user = Window.partitionBy("user_id")
    from_end = F.row_number().over(by_user.orderBy(*click_order(newest_first=True)))
    if protocol == "day":
        newest = events.where(validates(seed)).withColumn("_from_end", from_end).where("_from_end <= 2")
        split = F.when(F.col("_from_end") == 1, VALIDATION).otherwise(TRAIN)
    else:
        newest = events.withColumn("_from_end", from_end).where("_from_end <= 3")
        clicks = F.count(F.lit(1)).over(by_user)  # 3 means 3 or more
        split = (
            F.when((F.col("_from_end") == 1) & (clicks >= 2), TEST)
            .when((F.col("_from_end") == 2) & (clicks >= 3), VALIDATION)
            .otherwise(TRAIN)
        )
    return newest.withColumn("split", split).drop("_from_end")


def training_clicks(events: DataFrame) -> DataFrame:
    """The clicks that protocol `last_click` leaves for training, with `tie`."""
    by_user = Window.partitionBy("user_id")
    from_end = F.row_number().over(by_user.orderBy(*click_order(newest_first=True)))
    trains = from_end > F.least(F.lit(2), F.count(F.lit(1)).over(by_user) - 1)
    return tie_breaker(events).withColumn("_trains", trains).where("_trains").drop("_trains")


def newest_training_click(events: DataFrame, newest: DataFrame, protocol: str, seed: int) -> int | None:
    """The time of the newest training click, µs since 1970; None if there are no clicks, or clicks have no time.

    Args:
        events: all clicks, held-out ones included.
        newest: the result of `assign_splits` for them, persisted.
        protocol: as for `assign_splits`.
        seed: as for `assign_splits`.
    """

    def time_of(clicks: DataFrame) -> int | None:
        row = clicks.agg(F.max(F.unix_micros("event_ts"))).first()
        return row[0] if row else None

    known = time_of(newest.where(F.col("split") == TRAIN))
    if protocol != "day":
        return known
    # Users without a validation click matter only if they have a later one. So only the end of the log is read for them.
    others = events.where(~validates(seed))
    if known is not None:
        others = others.where(F.col("event_ts") >= F.lit(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=known)))
    newer = time_of(others)
    return max(filter(None, (known, newer)), default=None)
