"""Frequency filter, ids and encoding (SPEC 2)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial, reduce
from typing import Any

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recall_lib.config import Feature, Features
from recall_lib.samples.ids import FIRST_INDEX, IMPRESSIONS, ITEM_ID, UNKNOWN
from recall_lib.transforms.numbers import encode_numbers, encode_time


@dataclass(frozen=True)
class FeatureSize:
    """The number of a feature's ids, 0 and 1 included, and how often its known and its unknown values occur."""

    feature: str
    ids: int = FIRST_INDEX
    known_count: int = 0
    unknown_count: int = 0


def count_values(clicks: DataFrame, features: Features, activity: DataFrame | None = None) -> DataFrame:
    """Training counts: rows (feature, value, count); value null counts the values that are unknown in the log itself.

    Items, item features and user_id count once per click, other user features once per user (as in P). An item that only
    held-out clicks have is counted 0 if item_id.min_count is 1, so that it keeps an id.

    Args:
        clicks: the result of `training_counts`.
        features: the features to count.
        activity: the events of further sequences, whose tokens are all counted.
    """
    # One frame per feature: each reads only its own column, and counts before it shuffles.
    counted = [_count(clicks, ITEM_ID, F.col(ITEM_ID))]
    for feature in (*features.user, *features.item):
        if feature.buckets:
            continue
        rows = clicks
        if feature in features.user and feature.name != "user_id":
            pairs = clicks.groupBy("user_id", feature.name).agg(F.sum("_n").alias("_clicks")).where("_clicks > 0")
            rows = pairs.withColumn("_n", F.lit(1))
        value = F.explode(_known_list(feature.name)) if feature.multi else F.col(feature.name)
        counted.append(_count(rows, feature.name, value))
    if activity is not None:
        own = activity.where(F.col("sequence").isin([sequence.name for sequence in features.sequences]))
        tokens = own.select("sequence", F.explode("values").alias("value")).groupBy("sequence", "value")
        counted.append(tokens.agg(F.count(F.lit(1)).alias("count")).withColumnRenamed("sequence", "feature"))
    values = reduce(DataFrame.unionByName, counted)
    may_be_unseen = (F.col("feature") == ITEM_ID) & F.lit(features.item_id.min_count == 1)
    return values.where((F.col("count") > 0) | may_be_unseen)


def training_counts(events: DataFrame, held_out: DataFrame, *, weigh: bool = False) -> DataFrame:
    """The clicks with `_n`, whose sums count the training clicks.

    Args:
        events: all clicks, held-out ones included.
        held_out: the clicks among them that are not for training. They are few, so their counts are subtracted.
        weigh: count each click by its weight.
    """
    one = F.col("weight").cast("decimal(18,6)") if weigh else F.lit(1)
    return events.withColumn("_n", one).unionByName(held_out.select(*events.columns, (-one).alias("_n")))


def _count(rows: DataFrame, name: str, value: Column) -> DataFrame:
    values = rows.select(value.alias("value"), "_n").groupBy("value").agg(F.round(F.sum("_n")).cast("long").alias("count"))
    return values.select(F.lit(name).alias("feature"), "value", "count")


def filter_rare(counts: DataFrame, features: Features) -> DataFrame:
    """The counts, in which value null takes in every value with fewer than its feature's min_count."""
    limits = {f.name: f.min_count for f in (*features.user, *features.item)} | {ITEM_ID: features.item_id.min_count}
    limits |= {sequence.name: sequence.min_count for sequence in features.sequences}
    limit = F.create_map(*(F.lit(part) for pair in limits.items() for part in pair))[F.col("feature")]
    # Items that only held-out clicks have (count 0) are kept: count_values yields them only if the limit is 1.
    kept = (F.col("count") >= limit) | (F.col("count") == 0)
    return (
        counts.withColumn("value", F.when(kept, F.col("value"))).groupBy("feature", "value").agg(F.sum("count").alias("count"))
    )


def assign_ids(counts: DataFrame, partitions: int) -> tuple[DataFrame, list[FeatureSize]]:
    """schemas.VOCAB: ids from 2 by falling count, ties by value bytes; value null is 1. Also returns each feature's size.

    The values of all features are sorted into ranges at once. Then each partition numbers its own rows, starting from the
    totals of the partitions before it. No step sees more than one partition's rows, and the driver gets only partitions x
    features numbers.

    Args:
        counts: persisted.
    """
    known = counts.where("value IS NOT NULL")
    order = [F.col("feature"), F.col("count").desc(), F.col("value")]
    # Persisted, because the numbering below must see the same partitions that were counted.
    ranged = known.repartitionByRange(partitions, *order).withColumn("part", F.spark_partition_id()).persist()
    totals = ranged.groupBy("feature", "part").agg(F.count(F.lit(1)), F.sum("count")).collect()
    unknown = counts.where("value IS NULL").select("feature", F.lit(UNKNOWN).alias("index"), "value", "count")
    sizes = {row["feature"]: FeatureSize(row["feature"], unknown_count=row["count"]) for row in unknown.collect()}
    starts: list[tuple[str, int, int]] = []
    for feature, part, values, count in sorted(totals):
        size = sizes.setdefault(feature, FeatureSize(feature))
        starts.append((feature, part, size.ids))
        sizes[feature] = replace(size, ids=size.ids + values, known_count=size.known_count + count)
    if not starts:
        return unknown, list(sizes.values())
    rank = F.row_number().over(Window.partitionBy("part", "feature").orderBy(F.col("count").desc(), "value"))
    offsets = counts.sparkSession.createDataFrame(starts, "feature string, part int, start long")
    numbered = ranged.join(F.broadcast(offsets), ["feature", "part"])
    numbered = numbered.select("feature", (rank - 1 + F.col("start")).cast("int").alias("index"), "value", "count")
    return numbered.unionByName(unknown), list(sizes.values())


def describe(found: list[FeatureSize], features: Features) -> dict[str, Any]:
    """Facts for the manifest.

    Returns:
        {"sizes": ids of each feature, 0 and 1 included, "known_count" and "unknown_count": how often each feature's known and
        unknown values occur, "train_clicks": the training clicks}
    """
    items = next((size for size in found if size.feature == ITEM_ID), FeatureSize(ITEM_ID))
    sizes = dict.fromkeys([ITEM_ID, *(f.name for f in (*features.user, *features.item, *features.sequences))], FIRST_INDEX)
    sizes |= {size.feature: size.ids for size in found}
    sizes |= {f.name: FIRST_INDEX + f.buckets for f in (*features.user, *features.item) if f.buckets}
    sizes |= {n.name: FIRST_INDEX + n.buckets for n in features.numbers if n.form == "buckets"}
    sizes |= {f.name: FIRST_INDEX + f.values for f in features.time}
    return {
        "sizes": sizes,
        "known_count": {size.feature: size.known_count for size in found},
        "unknown_count": {size.feature: size.unknown_count for size in found},
        "train_clicks": items.known_count + items.unknown_count,
    }


def known_items(vocab: DataFrame) -> DataFrame:
    """item_index, item_id: every item that has an id."""
    items = vocab.where((F.col("feature") == ITEM_ID) & F.col("value").isNotNull())
    return items.select(F.col("index").alias("item_index"), F.col("value").alias("item_id"))


def encode(events: DataFrame, vocab: DataFrame, features: Features) -> DataFrame:
    """Adds item_index, `<feature>_index` (int, or list for multi) and `<number>_value` (float)."""
    items = vocab.where((F.col("feature") == ITEM_ID) & F.col("value").isNotNull())
    items = items.select(F.col("value").alias(ITEM_ID), F.col("index").alias("item_index"))
    encoded = events.join(items, ITEM_ID, "left").withColumn("item_index", F.coalesce("item_index", F.lit(UNKNOWN)))
    for feature in (*features.user, *features.item):
        column = f"{feature.name}_index"
        if feature.buckets:
            each = partial(_bucket, feature)
            encoded = encoded.withColumn(
                column, F.transform(_known_list(feature.name), each) if feature.multi else each(F.col(feature.name))
            )
        elif not feature.multi:
            encoded = encoded.join(_lookup(vocab, feature.name), feature.name, "left")
            encoded = encoded.withColumn(column, F.coalesce(column, F.lit(UNKNOWN)))
    # Lists of items and of users apart, so that few different combinations of lists occur.
    for group in (features.user, features.item):
        if lists := [feature.name for feature in group if feature.multi and not feature.buckets]:
            encoded = encoded.join(_encode_lists(events, vocab, lists), lists, "left")
            unknown = F.array(F.lit(UNKNOWN))  # of a row without a click, whose lists are null
            encoded = encoded.withColumns({f"{name}_index": F.coalesce(f"{name}_index", unknown) for name in lists})
    return encode_time(encode_numbers(encoded, vocab, features), features)


def encode_activity(activity: DataFrame, vocab: DataFrame, features: Features) -> DataFrame:
    """Adds `tokens`, the ids of `values`, in their order. Events of sequences that are no features are left out."""
    vocab_of = {sequence.name: sequence.name for sequence in features.sequences} | {IMPRESSIONS: ITEM_ID}
    activity = activity.where(F.col("sequence").isin(list(vocab_of)))
    sequence_of = F.create_map(*(F.lit(part) for name, feature in vocab_of.items() for part in (feature, name)))
    ids = vocab.where(F.col("feature").isin(list(vocab_of.values())) & F.col("value").isNotNull()).select(
        sequence_of[F.col("feature")].alias("sequence"), F.col("value").alias("_value"), F.col("index").alias("_id")
    )
    lists = activity.select("sequence", "values").distinct()
    values = lists.select("*", F.posexplode("values").alias("_place", "_value")).join(ids, ["sequence", "_value"], "left")
    entry = F.struct("_place", F.coalesce("_id", F.lit(UNKNOWN)).alias("id"))
    tokens = values.groupBy("sequence", "values").agg(
        F.transform(F.sort_array(F.collect_list(entry)), lambda e: e["id"]).alias("tokens")
    )
    return activity.join(tokens, ["sequence", "values"])


def _lookup(vocab: DataFrame, feature: str) -> DataFrame:
    values = vocab.where((F.col("feature") == feature) & F.col("value").isNotNull())
    return values.select(F.col("value").alias(feature), F.col("index").alias(f"{feature}_index"))


def _encode_lists(events: DataFrame, vocab: DataFrame, names: list[str]) -> DataFrame:
    """Each distinct combination of lists with `<name>_index`: clicks repeat few, as most lists belong to an item.

    All lists go end to end through one explosion, one join and one grouping, so that the plan does not grow with their number.
    """
    known = {name: _known_list(name) for name in names}
    pairs = F.concat(*(F.transform(values, partial(_named, name)) for name, values in known.items()))
    sizes = F.array(*(F.size(values) for values in known.values()))
    lists = events.select(*names).distinct().withColumn("_key", _key(names))
    values = lists.select("_key", sizes.alias("_sizes"), F.posexplode(pairs).alias("_place", "_pair"))
    table = vocab.where(F.col("feature").isin(names) & F.col("value").isNotNull()).select("feature", "value", "index")
    values = values.select("_key", "_sizes", "_place", "_pair.*").join(table, ["feature", "value"], "left")
    entry = F.struct("_place", F.coalesce("index", F.lit(UNKNOWN)).alias("index"))
    ids = F.transform(F.sort_array(F.collect_list(entry)), lambda e: e["index"])
    encoded = lists.join(values.groupBy("_key", "_sizes").agg(ids.alias("_ids")), "_key")
    own = [F.slice("_ids", _start(n), F.col("_sizes")[n]) for n in range(len(names))]
    return encoded.select(*names, *(ids.alias(f"{name}_index") for name, ids in zip(names, own, strict=True)))


def _start(n: int) -> Column:
    """Where the nth list begins in _ids; a sum of columns would be nested so deep that Spark compiles it for minutes."""
    return F.aggregate(F.slice("_sizes", 1, n), F.lit(1), lambda total, size: total + size)


def _named(feature: str, value: Column) -> Column:
    return F.struct(F.lit(feature).alias("feature"), value.alias("value"))


def _key(names: list[str]) -> Column:
    """128 bits of hash of the lists; xxhash64 skips nulls and ignores where a list ends, so these are hashed too."""
    parts: list[Column] = []
    for name in names:
        parts += [F.col(name), F.coalesce(F.size(name), F.lit(-1)), F.transform(name, lambda value: value.isNull())]
    return F.struct(*(F.xxhash64(F.lit(salt), *parts).alias(f"_{salt}") for salt in (1, 2)))


def _known_list(name: str) -> Column:
    """A list without values counts as one unknown value, as an empty field does."""
    return F.when(F.size(name) > 0, F.col(name)).otherwise(F.array(F.lit(None).cast("string")))


def _bucket(feature: Feature, value: Column) -> Column:
    bucket = F.pmod(F.xxhash64(F.lit(feature.name), value), F.lit(feature.buckets)) + FIRST_INDEX
    return F.when(value.isNull(), UNKNOWN).otherwise(bucket).cast("int")
