"""Items that the same users clicked (SPEC 6.3): the tables from which pairs of items are counted."""

from __future__ import annotations

from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, IntegerType, StructField, StructType

from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.transforms.holdout import click_order

# The number of pairs grows with the square of a user's items. If a user has more items, only the last ones count.
MAX_ITEMS_PER_USER = 5_000

_INTS = ArrayType(IntegerType())
# One row per item: the items that its users clicked, itself included, and how many of its users clicked each.
COVISITS = StructType([StructField("item_index", IntegerType()), StructField("other", _INTS), StructField("users", _INTS)])


def items_of_users(clicks: DataFrame) -> DataFrame:
    """user_id, items (int list, ascending): the last MAX_ITEMS_PER_USER distinct known items of each user.

    Args:
        clicks: user_id, item_id, item_index, event_ts, position, tie.
    """
    known = clicks.where(F.col("item_index") >= FIRST_INDEX)
    nth_of_item = F.row_number().over(Window.partitionBy("user_id", "item_id").orderBy(*click_order(newest_first=True)))
    last = known.withColumn("_nth", nth_of_item).where("_nth = 1")
    nth = F.row_number().over(Window.partitionBy("user_id").orderBy(*click_order(newest_first=True)))
    kept = last.withColumn("_nth", nth).where(F.col("_nth") <= MAX_ITEMS_PER_USER)
    return kept.groupBy("user_id").agg(F.sort_array(F.collect_list("item_index")).alias("items"))


def spread_by_item(users: DataFrame, blocks: int) -> DataFrame:
    """block, items: each user's items, once for every block (item_index mod blocks) that has one of them.

    A partition then sees all users of the items in its blocks. So it counts their pairs by itself, without a second shuffle.
    """
    own = F.array_distinct(F.transform("items", lambda item: item % blocks))
    return users.select(F.explode(own).alias("block"), "items").repartition(blocks, "block")


def users_of_items(users: DataFrame) -> DataFrame:
    """item_index, users: how many users have the item."""
    return users.select(F.explode("items").alias("item_index")).groupBy("item_index").agg(F.count(F.lit(1)).alias("users"))
