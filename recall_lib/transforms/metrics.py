"""Counts of ranks and of recommended items -> metrics (SPEC 7)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import IntegerType, LongType, StringType, StructField, StructType

from recall_lib.transforms.accuracy import hit_rate, ndcg, ratio

CUTOFFS = (10, 50, 200)
EASE = "ease"
RECOMMENDERS = ("model", "popular", "recent_popular", "item_knn", EASE)
# EASE inverts a dense matrix of the items. With this many it takes 2.7 GB and a minute or two of the driver.
MOST_EASE_ITEMS = 15_000
RANKS = 0  # a "cutoff" that says: the row counts a rank
# cutoff 0: `count` test users had their target at rank `key` of the whole catalogue (0: a miss).
# cutoff K: item index `key` was `count` times among the first K of a list.
TALLY = StructType(
    [
        StructField("recommender", StringType()),
        StructField("cutoff", IntegerType()),
        StructField("key", LongType()),
        StructField("count", LongType()),
    ]
)


def recommenders(items: int) -> tuple[str, ...]:
    """The recommenders that are scored for a catalogue of this many items."""
    return tuple(name for name in RECOMMENDERS if name != EASE or 0 < items <= MOST_EASE_ITEMS)


def add_up(tallies: DataFrame) -> DataFrame:
    """TALLY with one row per (recommender, cutoff, key)."""
    return tallies.groupBy("recommender", "cutoff", "key").agg(F.sum("count").alias("count"))


def rank_counts(tally: DataFrame) -> dict[str, dict[int, int]]:
    """{recommender: {rank: users}}, with at most as many ranks as there are items."""
    counts: dict[str, dict[int, int]] = {}
    for row in tally.where(F.col("cutoff") == RANKS).collect():
        counts.setdefault(row["recommender"], {})[row["key"]] = row["count"]
    return counts


def list_counts(tally: DataFrame, items: DataFrame) -> dict[tuple[str, int], tuple[int, int, int]]:
    """{(recommender, K): (distinct items, items, sum of the items' training clicks)} over the first K of all lists.

    Args:
        tally: the result of `add_up`.
        items: item_index and count, the item's training clicks.
    """
    named = (
        tally.where(F.col("cutoff") != RANKS)
        .withColumnRenamed("count", "times")
        .join(items, tally["key"] == items["item_index"])
    )
    sums = named.groupBy("recommender", "cutoff").agg(F.count(F.lit(1)), F.sum("times"), F.sum(F.col("times") * F.col("count")))
    return {(name, k): (distinct, times, clicks) for name, k, distinct, times, clicks in sums.collect()}


def summarise(ranks: Mapping[int, int], lists: Mapping[int, tuple[int, int, int]], items: int) -> dict[str, float | None]:
    """The metrics of one recommender; None if there is nothing to average.

    A user has one target, so recall@K equals hr@K. mrr is computed over the whole ranking.

    Args:
        ranks: {rank: users}, 0 for a miss.
        lists: {K: the value of `list_counts`}.
        items: number of items in the catalogue.
    """
    metrics: dict[str, float | None] = {}
    for k in CUTOFFS:
        distinct, times, clicks = lists.get(k, (0, 0, 0))
        metrics[f"hr@{k}"] = metrics[f"recall@{k}"] = hit_rate(ranks, k)
        metrics[f"ndcg@{k}"] = ndcg(ranks, k)
        metrics[f"coverage@{k}"] = ratio(distinct, items)
        metrics[f"popularity@{k}"] = ratio(clicks, times)
    metrics["mrr"] = ratio(math.fsum(n / rank for rank, n in ranks.items() if rank), sum(ranks.values()))
    return metrics


def repeated_users(firsts: DataFrame, events: DataFrame) -> DataFrame:
    """user_id of the users whose first click of the day is on an item that they clicked before."""
    return firsts.join(events.select("user_id", "item_id").distinct(), ["user_id", "item_id"], "left_semi").select("user_id")


def report(head: Mapping[str, Any], tally: DataFrame, items: DataFrame, size: int) -> dict[str, Any]:
    """`head` with the number of scored users and a block for each of `recommenders(size)`.

    Args:
        head: protocol, status, users_new, users_repeat.
        tally: the result of `add_up`.
        items: item_index and count.
        size: number of items in the catalogue.
    """
    ranks, lists = rank_counts(tally), list_counts(tally, items)
    blocks = {
        name: summarise(ranks.get(name, {}), {k: lists[name, k] for k in CUTOFFS if (name, k) in lists}, size)
        for name in recommenders(size)
    }
    return {**head, "users": sum(ranks.get(RECOMMENDERS[0], {}).values()), **blocks}
