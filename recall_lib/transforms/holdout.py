"""A user's clicks in order, and which of them are held out (SPEC 3.1, 3.8)."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLITS = (TRAIN, VALIDATION, TEST)
# Protocol `day` validates on the last click of this share of the users.
_VALIDATION_PERCENT = 5


def click_order(*, newest_first: bool = False) -> list[Column]:
    """Order of a user's clicks: time or position, ties by item id bytes, then by the row's whole content."""
    columns = [F.col("event_ts"), F.col("position"), F.col("item_id"), F.col("tie")]
    return [column.desc() for column in columns] if newest_first else [column.asc() for column in columns]


def tie_breaker(events: DataFrame) -> DataFrame:
    """Adds column `tie`: orders clicks that agree in user, time and item but not in their features."""
    rest = [name for name in events.columns if name not in ("user_id", "item_id", "event_ts", "position")]
    return events.withColumn("tie", F.xxhash64(F.lit(0), *(F.to_json(F.struct(name)) for name in rest)))


def assign_splits(events: DataFrame, protocol: str, seed: int) -> DataFrame:
    """Adds `tie` and `split` to events before the hold-out is used.

    `last_click`: the last click is test, the one before validation; users with two clicks have no validation, users with
    one are train only. `day` (events before dt): the last click of 5% of the users is validation; test is not among them.
    """
    by_user = Window.partitionBy("user_id")
    from_end = F.row_number().over(by_user.orderBy(*click_order(newest_first=True)))
    events = tie_breaker(events).withColumn("from_end", from_end)
    if protocol == "day":
        chosen = F.pmod(F.xxhash64(F.lit(seed), F.lit("validation"), "user_id"), F.lit(100)) < _VALIDATION_PERCENT
        split = F.when((F.col("from_end") == 1) & chosen, VALIDATION).otherwise(TRAIN)
    else:
        clicks = F.count(F.lit(1)).over(by_user)
        split = (
            F.when((F.col("from_end") == 1) & (clicks >= 2), TEST)
            .when((F.col("from_end") == 2) & (clicks >= 3), VALIDATION)
            .otherwise(TRAIN)
        )
    return events.withColumn("split", split).drop("from_end")
