"""What is known of each item before dt."""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recall_lib.config import Features
from recall_lib.ids import FIRST_INDEX


def newest_features(clicks: DataFrame, features: Features) -> DataFrame:
    """schemas.items: each known item with its features' ids at its newest click.

    Args:
        clicks: encoded events with `tie`.
    """
    values = [F.col(f"{f.name}_index") if f.multi else F.array(f"{f.name}_index") for f in features.item]
    names = [f"{f.name}_index" for f in features.item]
    order = F.struct("event_ts", "position", "user_id", "tie")
    newest = F.max_by(F.struct(*(value.alias(name) for value, name in zip(values, names, strict=True))), order)
    known = clicks.where(F.col("item_index") >= FIRST_INDEX)
    return known.groupBy("item_index").agg(newest.alias("newest")).select("item_index", "newest.*")
