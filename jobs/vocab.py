"""Events -> vocabulary: which values survive the frequency filter, their ids and their training counts."""

import sys

from recall_lib import schemas
from recall_lib.job import Context, main
from recall_lib.transforms import vocab as transform
from recall_lib.transforms.holdout import assign_splits


def run(ctx: Context) -> None:
    """Publish vocab/dt."""
    config = ctx.config
    events, inputs = ctx.history()
    clicks = assign_splits(events, config.evaluation.protocol, config.seed)
    counts = transform.filter_rare(transform.count_values(clicks, config.features), config.features)
    vocab = transform.assign_ids(counts, config.spark.partitions).persist()
    facts = transform.describe(vocab, config.features)
    ctx.tables.publish(vocab, schemas.VOCAB, "vocab", ctx.dt, inputs=inputs, facts=facts)
    ctx.say("ids per feature: " + ", ".join(f"{name} {size}" for name, size in facts["sizes"].items()))
    ctx.spark.catalog.clearCache()


if __name__ == "__main__":
    sys.exit(main(run))
