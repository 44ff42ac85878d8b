"""Events and vocabulary -> samples: training runs, and the held-out targets with the clicks before them."""

import sys
from functools import partial
from typing import Any

from pyspark.sql import functions as F

from recall_lib import reading, schemas
from recall_lib.inference.item_counts import item_counts
from recall_lib.io.tables import Tables
from recall_lib.job import Context, main
from recall_lib.training.spec import first_weights
from recall_lib.transforms import samples as transform
from recall_lib.transforms.holdout import SPLITS, TEST, first_moment, tie_breaker, validates
from recall_lib.transforms.vocab import encode


def run(ctx: Context) -> None:
    """Publish samples/dt for every split; with protocol `day` the test split waits for the events of dt."""
    config = ctx.config
    first_weights(Tables(config), ctx.dt)  # a day that cannot be trained is refused before Spark starts
    ctx.tables.require_settings("vocab", ctx.dt)
    events, inputs = ctx.history()
    vocab, inputs["vocab"] = ctx.vocab()
    facts = ctx.tables.manifest("vocab", ctx.dt)
    by_day = config.evaluation.protocol == "day"
    recipe = transform.Recipe(
        features=config.features,
        settings=config.samples,
        protocol=config.evaluation.protocol,
        seed=config.seed,
        newest_ts=facts["newest_ts"],
        train_clicks=facts["train_clicks"],
        load_counts=partial(item_counts, ctx.tables.files("vocab", ctx.dt)),
        targets_since=first_moment(ctx.dt, config.target_days(ctx.dt)),
    )
    clicks = encode(tie_breaker(events), vocab, config.features)
    flag = validates(config.seed) if by_day else F.lit(False)
    # Their number decides the files, and with them the order of training: it comes from the data, not from the cluster.
    partitions = reading.partitions_of_history(ctx, multiple_of=config.training.ranks)
    clicks = transform.columns(clicks, config.features, flag, own_ages=bool(config.input.columns.example_age))
    splits = [split for split in SPLITS if not (by_day and split == TEST)]
    write = partial(transform.split_samples, clicks, partitions, recipe)
    made = {"inputs": inputs, "facts": {"target_days": config.target_days(ctx.dt)}}
    for manifest in ctx.tables.publish_splits(write, schemas.runs(config.features), "samples", ctx.dt, splits, **made):
        _say(ctx, manifest)
    if by_day and ctx.tables.find("events", ctx.dt):
        publish_test_of_day(ctx)


def publish_test_of_day(ctx: Context) -> None:
    """The test split of protocol `day`, once the events of dt are there."""
    frame, inputs, facts = reading.test_of_day(ctx, ctx.dt)
    schema = schemas.runs(ctx.config.features)
    _say(ctx, ctx.tables.publish(frame, schema, "samples", ctx.dt, inputs=inputs, facts=facts, split=TEST))


def _say(ctx: Context, manifest: dict[str, Any]) -> None:
    targets = sum(file["values"].get("example_age", 0) for file in manifest["files"])
    ctx.say(f"{manifest['split']}: {targets} targets in {manifest['rows']} runs")


if __name__ == "__main__":
    sys.exit(main(run))
