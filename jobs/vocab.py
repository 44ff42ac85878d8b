"""Publish the vocabulary: each feature's frequent values, with ids and training counts.

Values with fewer than `min_count` training clicks share the id "unknown". Values that are hashed
into `buckets` are not listed.
"""

import sys

from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.samples.build import TRAIN
from recall_lib.store import schemas
from recall_lib.transforms import vocab as transform
from recall_lib.transforms.holdout import assign_splits, first_moment, newest_training_click, not_before
from recall_lib.transforms.numbers import count_numbers, vocab_rows


def run(ctx: Context) -> None:
    """Publish vocab/dt."""
    config = ctx.config
    protocol, features = config.evaluation.protocol, config.features
    events, inputs = ctx.history()
    newest = assign_splits(events, protocol, config.seed).persist()
    since = first_moment(ctx.dt, config.samples.look_back_days, config.input)
    held_out = not_before(newest.where(F.col("split") != TRAIN), since)
    weigh = bool(config.input.events and config.input.events.weigh_counts)
    clicks = transform.training_counts(not_before(events, since), held_out, weigh=weigh)
    activity, of_activity = ctx.activity()
    counts = transform.count_values(clicks, features, activity)
    counts = transform.filter_rare(counts, features).persist()
    vocab, sizes = transform.assign_ids(counts, config.spark.partitions)
    facts = transform.describe(sizes, features)
    if features.numbers:
        numbers = count_numbers(clicks, features)
        vocab = vocab.unionByName(ctx.spark.createDataFrame(vocab_rows(numbers), schemas.VOCAB))
        facts["known_count"] |= {name: int(counts.sum()) for name, (_, counts, _) in numbers.items()}
        facts["unknown_count"] |= {name: unknown for name, (_, _, unknown) in numbers.items()}
    facts["newest_ts"] = newest_training_click(events, newest, protocol, config.seed)
    with ctx.tables.publishing("vocab", ctx.dt, inputs=inputs | of_activity, facts=facts) as staged:
        staged.write(vocab, schemas.VOCAB)
    ctx.say("ids per feature: " + ", ".join(f"{name} {size}" for name, size in facts["sizes"].items()))
    ctx.spark.catalog.clearCache()


if __name__ == "__main__":
    sys.exit(main(run))
