"""Model -> vectors/dt: one vector for every item and every user, whose inner product is the score."""

import sys
from functools import partial

from pyspark.sql import functions as F

from recall_lib import reading, schemas
from recall_lib.executors import map_batches
from recall_lib.inference import fingerprints
from recall_lib.inference.shipping import ship_published
from recall_lib.inference.vectors import item_vectors, user_vectors
from recall_lib.job import Context, main
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish vectors/dt for kind=item and kind=user."""
    serving = fingerprints.serving_day(ctx.tables, ctx.dt)
    stamp = fingerprints.model_of_vocab(ctx.tables, serving)
    model = ship_published(ctx.tables, "models", serving)
    vocab, _ = ctx.vocab(serving)
    made_from = {"vocab": stamp["vocab"], "models": model.digest}
    items = known_items(vocab).withColumn("prior", F.lit(0.0))
    if ctx.config.model.recency:
        made_from["items"] = fingerprints.items_of_vocab(ctx.tables, ctx.dt)["digest"]
        items = reading.with_priors(ctx, known_items(vocab))
    items = items.repartitionByRange(ctx.config.spark.partitions, "item_index")
    vectors = map_batches(items, partial(item_vectors, model=model), schemas.ITEM_VECTORS)
    published = ctx.tables.publish(vectors, schemas.ITEM_VECTORS, "vectors", ctx.dt, inputs=made_from, facts=stamp, kind="item")
    histories, inputs = reading.read_histories(ctx)
    vectors = map_batches(histories, partial(user_vectors, model=model), schemas.USER_VECTORS)
    users = ctx.tables.publish(
        vectors, schemas.USER_VECTORS, "vectors", ctx.dt, inputs=inputs | made_from, facts=stamp, kind="user"
    )
    ctx.say(f"{published['rows']} items, {users['rows']} users")


if __name__ == "__main__":
    sys.exit(main(run))
