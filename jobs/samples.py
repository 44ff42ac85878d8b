"""Publish the training samples, and the validation and test samples with their histories.

With `evaluation.protocol: day` the clicks of dt are the test. Their samples are published once the
events of dt are there.
"""

import sys
from functools import partial

from recall_lib.day.context import Context
from recall_lib.day.inputs import partitions_of_history, test_of_day, with_activity
from recall_lib.day.job import main
from recall_lib.samples.build import SPLITS, TEST, Recipe
from recall_lib.store import schemas
from recall_lib.store.arrays import item_counts
from recall_lib.store.publishing import Staged
from recall_lib.training.spec import first_weights, sample_files
from recall_lib.transforms import samples as transform
from recall_lib.transforms.holdout import first_moment, tie_breaker, validates
from recall_lib.transforms.vocab import encode


def run(ctx: Context) -> None:
    """Publish samples/dt for every split; with protocol `day` the test split waits for the events of dt."""
    config = ctx.config
    first_weights(ctx.tables, ctx.dt)  # a day that cannot be trained is refused before Spark starts
    vocab = ctx.tables.require_settings("vocab", ctx.dt)
    events, inputs = ctx.history()
    inputs["vocab"] = vocab.digest
    by_day = config.evaluation.protocol == "day"
    recipe = Recipe(
        features=config.features,
        settings=config.samples,
        protocol=config.evaluation.protocol,
        seed=config.seed,
        newest_ts=vocab.manifest["newest_ts"],
        train_clicks=vocab.manifest["train_clicks"],
        load_counts=partial(item_counts, vocab.files),
        targets_since=first_moment(ctx.dt, config.target_days(ctx.dt), config.input),
    )
    clicks = encode(tie_breaker(events), vocab.read(schemas.VOCAB), config.features)
    if by_day:
        clicks = clicks.withColumn("validates", validates(config.seed))
    marks = ["validates"] * by_day + ["example_age"] * bool(config.input.columns.example_age)
    marks += ["position"] * bool(config.input.columns.order)
    # Their number decides the files, and with them the order of training: it comes from the data, not from the cluster.
    partitions = partitions_of_history(ctx, multiple_of=config.training.ranks)
    clicks, of_activity = with_activity(ctx, transform.columns(clicks, config.features, *marks), vocab)
    inputs |= of_activity
    splits = [split for split in SPLITS if not (by_day and split == TEST)]
    facts = {"target_days": config.target_days(ctx.dt)}
    with ctx.tables.publishing("samples", ctx.dt, split=splits, inputs=inputs, facts=facts) as staged:
        written = transform.split_samples(clicks, partitions, recipe, staged.address)
        staged.keep(written.collect(), schemas.segments(config.features))
    _say(ctx, staged)
    if by_day and ctx.tables.find("events", ctx.dt):
        publish_test_of_day(ctx)


def publish_test_of_day(ctx: Context) -> None:
    """The test split of protocol `day`, once the events of dt are there."""
    frame, inputs, facts = test_of_day(ctx, ctx.tables.get("vocab", ctx.dt))
    with ctx.tables.publishing("samples", ctx.dt, split=TEST, inputs=inputs, facts=facts) as staged:
        staged.write(frame, schemas.segments(ctx.config.features))
    _say(ctx, staged)


def _say(ctx: Context, staged: Staged) -> None:
    for split in staged.published:
        targets = sum(file.targets for file in sample_files(split))
        ctx.say(f"{split.keys['split']}: {targets} targets in {split.manifest['rows']} segments")


if __name__ == "__main__":
    sys.exit(main(run))
