"""Events and vocabulary -> samples: training runs, and the held-out targets with the clicks before them."""

import sys
from functools import partial
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from recall_lib import reading, schemas
from recall_lib.inference.item_counts import sampling_weights
from recall_lib.job import Context, main
from recall_lib.transforms import samples as transform
from recall_lib.transforms.holdout import TEST, TRAIN, VALIDATION, assign_splits
from recall_lib.transforms.negatives import add_negatives
from recall_lib.transforms.vocab import encode


def run(ctx: Context) -> None:
    """Publish samples/dt for every split; with protocol `day` the test split waits for the events of dt."""
    config = ctx.config
    features, settings = config.features, config.samples
    ctx.tables.require_settings("vocab", ctx.dt, "features", "input.ordering", "evaluation.protocol", "seed")
    events, inputs = ctx.history()
    vocab, inputs["vocab"] = ctx.vocab()
    clicks = encode(assign_splits(events, config.evaluation.protocol, config.seed), vocab, features).persist()
    runs = transform.train_runs(clicks, features, settings, config.seed)
    files = ctx.tables.files("vocab", ctx.dt)
    weights = partial(sampling_weights, files, settings.negatives_alpha)
    columns = [field for field in schemas.runs(features) if field.name != "negatives"]
    order = F.xxhash64(F.lit(config.seed), F.lit("shuffle"), "user_id", "run")
    shuffled = runs.withColumn("order", order).repartition(config.spark.partitions, "order").sortWithinPartitions("order")
    shuffled = shuffled.select(*(field.name for field in columns), "negative_key", "own")
    draw = partial(add_negatives, load_weights=weights, k=settings.negatives_per_positive)
    drawn = StructType([*columns, schemas.runs(features)["negatives"]])
    train = shuffled.mapInArrow(draw, drawn)
    _publish(ctx, TRAIN, train, inputs)
    _publish(ctx, VALIDATION, transform.held_out(clicks, VALIDATION, (TRAIN,), features, settings), inputs)
    if config.evaluation.protocol == "last_click":
        _publish(ctx, TEST, transform.held_out(clicks, TEST, (TRAIN, VALIDATION), features, settings), inputs)
    ctx.spark.catalog.clearCache()
    if config.evaluation.protocol == "day" and ctx.tables.find("events", ctx.dt):
        publish_test_of_day(ctx)


def publish_test_of_day(ctx: Context) -> None:
    """The test split of protocol `day`, once the events of dt are there."""
    frame, inputs, facts = reading.test_of_day(ctx)
    _publish(ctx, TEST, frame, inputs, **facts)
    ctx.spark.catalog.clearCache()


def _publish(ctx: Context, split: str, frame: DataFrame, inputs: dict[str, str], **facts: Any) -> None:
    schema = schemas.runs(ctx.config.features, seen=split != TRAIN)
    if split != TRAIN:
        frame = frame.repartition(ctx.config.spark.partitions, "user_id").sortWithinPartitions("user_id")
    manifest = ctx.tables.publish(frame, schema, "samples", ctx.dt, inputs=inputs, facts=facts, split=split)
    targets = sum(file["values"].get("target_position", 0) for file in manifest["files"])
    ctx.say(f"{split}: {targets} targets in {manifest['rows']} runs")


if __name__ == "__main__":
    sys.exit(main(run))
