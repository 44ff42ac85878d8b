"""Frequency filter, ids and encoding (SPEC 2)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recall_lib.config import Feature, Features
from recall_lib.ids import FIRST_INDEX, ITEM_ID, UNKNOWN
from recall_lib.transforms.holdout import TRAIN


def count_values(events: DataFrame, features: Features) -> DataFrame:
    """Training counts: rows (feature, value, count); value null counts what is unknown in the log itself.

    Items, item features and user_id count once a click, other user features once a user (as in P). An item that only
    hold-outs have is counted 0 where item_id.min_count is 1, so that it keeps an id.

    Args:
        events: clicks with `split`.
    """
    train = events.where(F.col("split") == TRAIN)

    def pair(name: str, value: Column) -> Column:
        return F.struct(F.lit(name).alias("feature"), value.alias("value"))

    single = [pair(ITEM_ID, F.col(ITEM_ID))]
    single += [pair(f.name, F.col(f.name)) for f in features.item if not f.multi and not f.buckets]
    single += [pair(f.name, F.col(f.name)) for f in features.user if f.name == "user_id" and not f.buckets]
    lists = [F.transform(_known_list(f.name), partial(pair, f.name)) for f in features.item if f.multi and not f.buckets]
    counted = [train.select(F.explode(F.concat(F.array(*single), *lists)).alias("pair")).select("pair.*")]
    per_user = [f.name for f in features.user if f.name != "user_id" and not f.buckets]
    if per_user:
        pairs = train.select("user_id", F.explode(F.array(*(pair(name, F.col(name)) for name in per_user))).alias("pair"))
        counted.append(pairs.distinct().select("pair.*"))
    values = counted[0] if len(counted) == 1 else counted[0].unionByName(counted[1])
    values = values.withColumn("n", F.lit(1))
    if features.item_id.min_count == 1:
        held_out = events.where(F.col("split") != TRAIN).select(F.lit(ITEM_ID).alias("feature"), F.col(ITEM_ID).alias("value"))
        values = values.unionByName(held_out.distinct().withColumn("n", F.lit(0)))
    return values.groupBy("feature", "value").agg(F.sum("n").cast("long").alias("count"))


def filter_rare(counts: DataFrame, features: Features) -> DataFrame:
    """The counts with every value below its feature's min_count folded into value null."""
    limits = {f.name: f.min_count for f in (*features.user, *features.item)} | {ITEM_ID: features.item_id.min_count}
    limit = F.create_map(*(F.lit(part) for pair in limits.items() for part in pair))[F.col("feature")]
    # Items of the hold-out alone (count 0) are kept: count_values only makes them where the limit is 1.
    kept = (F.col("count") >= limit) | (F.col("count") == 0)
    return (
        counts.withColumn("value", F.when(kept, F.col("value"))).groupBy("feature", "value").agg(F.sum("count").alias("count"))
    )


def assign_ids(counts: DataFrame, partitions: int) -> DataFrame:
    """schemas.VOCAB: ids from 2 by falling count, ties by value bytes; value null is 1.

    A range sort over all features at once, then each partition numbers its own rows from the totals of those before it:
    no step sees more than one partition's rows, and only partitions x features numbers reach the driver.
    """
    known = counts.where("value IS NOT NULL")
    order = [F.col("feature"), F.col("count").desc(), F.col("value")]
    # Persisted, because the numbering below must see the very partitions that were counted.
    ranged = known.repartitionByRange(partitions, *order).withColumn("part", F.spark_partition_id()).persist()
    totals = ranged.groupBy("feature", "part").agg(F.count(F.lit(1)).alias("n")).orderBy("feature", "part").collect()
    starts: list[tuple[str, int, int]] = []
    following: dict[str, int] = {}
    for feature, part, n in totals:
        starts.append((feature, part, following.get(feature, FIRST_INDEX)))
        following[feature] = starts[-1][2] + n
    rank = F.row_number().over(Window.partitionBy("part", "feature").orderBy(F.col("count").desc(), "value"))
    unknown = counts.where("value IS NULL").select("feature", F.lit(UNKNOWN).alias("index"), "value", "count")
    if not starts:
        return unknown
    offsets = counts.sparkSession.createDataFrame(starts, "feature string, part int, start long")
    numbered = ranged.join(F.broadcast(offsets), ["feature", "part"])
    numbered = numbered.select("feature", (rank - 1 + F.col("start")).cast("int").alias("index"), "value", "count")
    return numbered.unionByName(unknown)


def describe(vocab: DataFrame, features: Features) -> dict[str, Mapping[str, int]]:
    """Facts for the manifest: sizes (ids per feature, 0 and 1 counted) and counts (values' occurrences, kept and unknown)."""
    known = F.col("value").isNotNull()
    rows = vocab.groupBy("feature").agg(
        F.max("index") + 1,
        F.sum(F.when(known, F.col("count")).otherwise(0)),
        F.sum(F.when(~known, F.col("count")).otherwise(0)),
    )
    found = {name: (max(size, FIRST_INDEX), kept, unknown) for name, size, kept, unknown in rows.collect()}
    sizes = {
        name: found.get(name, (FIRST_INDEX,))[0] for name in [ITEM_ID, *(f.name for f in (*features.user, *features.item))]
    }
    sizes |= {f.name: FIRST_INDEX + f.buckets for f in (*features.user, *features.item) if f.buckets}
    return {
        "sizes": sizes,
        "known_count": {name: kept for name, (_, kept, _) in found.items()},
        "unknown_count": {name: unknown for name, (_, _, unknown) in found.items()},
    }


def known_items(vocab: DataFrame) -> DataFrame:
    """item_index, item_id of every item that has an id."""
    items = vocab.where((F.col("feature") == ITEM_ID) & F.col("value").isNotNull())
    return items.select(F.col("index").alias("item_index"), F.col("value").alias("item_id"))


def encode(events: DataFrame, vocab: DataFrame, features: Features) -> DataFrame:
    """Adds item_index, item_count (training count, null if unknown) and `<feature>_index` (int, or list for multi)."""
    items = vocab.where((F.col("feature") == ITEM_ID) & F.col("value").isNotNull())
    items = items.select(F.col("value").alias(ITEM_ID), F.col("index").alias("item_index"), F.col("count").alias("item_count"))
    encoded = events.join(items, ITEM_ID, "left").withColumn("item_index", F.coalesce("item_index", F.lit(UNKNOWN)))
    for feature in (*features.user, *features.item):
        column = f"{feature.name}_index"
        multi = getattr(feature, "multi", False)
        if feature.buckets:
            each = partial(_bucket, feature)
            encoded = encoded.withColumn(
                column, F.transform(_known_list(feature.name), each) if multi else each(F.col(feature.name))
            )
        elif multi:
            encoded = _encode_lists(encoded, vocab, feature.name)
        else:
            encoded = encoded.join(_lookup(vocab, feature.name, feature.name), feature.name, "left")
            encoded = encoded.withColumn(column, F.coalesce(column, F.lit(UNKNOWN)))
    return encoded


def _lookup(vocab: DataFrame, feature: str, key: str) -> DataFrame:
    values = vocab.where((F.col("feature") == feature) & F.col("value").isNotNull())
    return values.select(F.col("value").alias(key), F.col("index").alias(f"{feature}_index"))


def _encode_lists(events: DataFrame, vocab: DataFrame, name: str) -> DataFrame:
    """Each distinct list is encoded once and joined back: clicks repeat few lists."""
    lists = events.select(name).distinct().withColumn("_list", _known_list(name))
    values = lists.select(name, F.posexplode("_list").alias("_place", "_value"))
    values = values.join(_lookup(vocab, name, "_value"), "_value", "left")
    entry = F.struct("_place", F.coalesce(f"{name}_index", F.lit(UNKNOWN)).alias("index"))
    encoded = values.groupBy(name).agg(
        F.transform(F.sort_array(F.collect_list(entry)), lambda e: e["index"]).alias(f"{name}_index")
    )
    return events.join(encoded, name, "left")


def _known_list(name: str) -> Column:
    """A list without values counts as one unknown value, as an empty field does."""
    return F.when(F.size(name) > 0, F.col(name)).otherwise(F.array(F.lit(None).cast("string")))


def _bucket(feature: Feature, value: Column) -> Column:
    bucket = F.pmod(F.xxhash64(F.lit(feature.name), value), F.lit(feature.buckets)) + FIRST_INDEX
    return F.when(value.isNull(), UNKNOWN).otherwise(bucket).cast("int")
