"""Publish each item's features and, for `model.recency`, the prior from its recent clicks.

The table is written only if `model.item_rows` or `model.recency` needs it.
"""

import sys

from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.store import schemas
from recall_lib.transforms.holdout import tie_breaker
from recall_lib.transforms.items import newest_features, recency_prior
from recall_lib.transforms.vocab import encode


def run(ctx: Context) -> None:
    """Publish items/dt, where the model asks for it."""
    features, model = ctx.config.features, ctx.config.model
    if not model.asks_for_items:
        return ctx.say("model.item_rows is own and model.recency not set: nothing to write")
    events, inputs = ctx.history()
    vocab = ctx.tables.get("vocab", ctx.dt)
    clicks = encode(tie_breaker(events), vocab.read(schemas.VOCAB), features)
    items = newest_features(clicks, features)
    if model.recency:
        items = recency_prior(clicks, items, ctx.config.input.day_begins(ctx.dt), model.recency)
    else:
        items = items.withColumn("prior", F.lit(0.0))
    with ctx.tables.publishing("items", ctx.dt, inputs=inputs | {"vocab": vocab.digest}) as staged:
        staged.write(items, schemas.items(features))
    ctx.say(f"{staged.publication.manifest['rows']} items")


if __name__ == "__main__":
    sys.exit(main(run))
