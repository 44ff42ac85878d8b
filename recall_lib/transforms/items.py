"""What is known about each item before dt: its features, and a prior from its recent clicks."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recall_lib.config import Features, Recency
from recall_lib.samples.ids import FIRST_INDEX

# The prior's constants, chosen on the days 2017-10-08 to 2017-10-15 of Globo.com's log, each as dt.
_SMOOTHING = 0.01  # clicks that are added, so that an item without recent clicks has a logarithm
_GROWTH = 0.5  # recent clicks are divided by an item's lifetime rate to this power, so that growing items rank higher
_LONGEST_LIFE = 1000  # hours
_SHARE = 0.25  # power of the share of the feature's value
_SHARE_HALF_LIFE = 96.0  # hours
_LEAST_SHARE = 1e-5
_UNIT = 1 << 20  # decayed clicks are summed as whole numbers of 1 / _UNIT click, so that the order of the sums does not matter


def newest_features(clicks: DataFrame, features: Features) -> DataFrame:
    """Each known item with its features at its newest click: item_index, `<feature>_index` (lists of ids), `<number>_value`.

    Args:
        clicks: encoded events with `tie`.
    """
    columns = {
        f"{f.name}_index": F.col(f"{f.name}_index") if f.multi else F.array(f"{f.name}_index") for f in features.token_ids
    }
    columns |= {f"{n.name}_value": F.col(f"{n.name}_value") for n in features.token_numbers}
    known = clicks.where(F.col("item_index") >= FIRST_INDEX)
    if not columns:
        return known.select("item_index").distinct()
    order = F.struct("event_ts", "position", "user_id", "tie")
    newest = F.max_by(F.struct(*(value.alias(name) for name, value in columns.items())), order)
    return known.groupBy("item_index").agg(newest.alias("newest")).select("item_index", "newest.*")


def recency_prior(clicks: DataFrame, items: DataFrame, end: int, recency: Recency) -> DataFrame:
    """`items` with `prior`, a double: log(d + .01) - .5 log((n + 1) / (life + 1)) + .25 log(share + .00001).

    d: the item's clicks, where a click's weight halves with every `half_life_hours` before dt begins. n: all its clicks.
    life: hours since its first click, at most 1000. share: the share of the item's value of `feature` in the clicks of about
    the last four days (half-life 96 h).

    Args:
        clicks: encoded events before dt.
        items: the result of `newest_features`.
        end: the moment at which dt begins, µs since 1970.
        recency: the settings.
    """
    hours = (F.lit(end) - F.unix_micros("event_ts")) / F.lit(3.6e9)

    def decayed(half_life: float) -> Column:
        return F.sum(F.round(F.pow(F.lit(2.0), -hours / F.lit(half_life)) * _UNIT).cast("long"))

    by_item = clicks.where(F.col("item_index") >= FIRST_INDEX).groupBy("item_index")
    counted = by_item.agg(
        decayed(recency.half_life_hours).alias("recent"),
        decayed(_SHARE_HALF_LIFE).alias("of_late"),
        F.count(F.lit(1)).alias("clicks"),
        F.max(hours).alias("life"),
    )
    rate = (F.col("clicks") + 1) / (F.least("life", F.lit(_LONGEST_LIFE)) + 1)
    prior = F.log(F.col("recent") / _UNIT + _SMOOTHING) - _GROWTH * F.log(rate)
    rows = items.join(counted, "item_index")
    if recency.feature:
        value = F.col(f"{recency.feature}_index")[0]
        shares = rows.groupBy(value.alias("value")).agg(F.sum("of_late").alias("of_value"))
        total = rows.agg(F.sum("of_late").alias("of_all"))
        rows = rows.withColumn("value", value).join(shares, "value").crossJoin(F.broadcast(total))
        share = F.coalesce(F.try_divide("of_value", "of_all"), F.lit(0.0))  # of_all is 0 if every click is old
        prior += _SHARE * F.log(share + _LEAST_SHARE)
    return rows.select(*items.columns, prior.alias("prior"))
