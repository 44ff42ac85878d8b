"""Publish one vector per item. The score is its inner product with the user's vector.

The job top_n publishes the users' vectors, in the same pass that searches with them.
"""

import sys
from functools import partial

from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.inputs import with_priors
from recall_lib.day.job import main
from recall_lib.inference.shipping import ship_published
from recall_lib.inference.vectors import item_vectors
from recall_lib.spark.executors import map_batches
from recall_lib.store import schemas
from recall_lib.store.serving import items_of_vocab
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish vectors/dt for kind=item."""
    serving, features = ctx.serving, ctx.config.features
    model = ship_published(ctx.spark, serving.model)
    made_from = {"vocab": serving.vocab.digest, "models": model.digest}
    items = known_items(serving.vocab.read(schemas.VOCAB))
    if ctx.config.model.recency:
        vocab = ctx.tables.get("vocab", ctx.dt)
        table = items_of_vocab(ctx.tables, vocab)
        made_from["items"] = table.digest
        items = with_priors(items, table.read(schemas.items(features)), vocab.read(schemas.VOCAB))
    else:
        items = items.withColumn("prior", F.lit(0.0))
    with ctx.tables.publishing("vectors", ctx.dt, inputs=made_from, facts=serving.stamp, kind="item") as staged:
        items = items.repartitionByRange(ctx.config.spark.partitions, "item_index")
        vectors = map_batches(items, partial(item_vectors, model=model), schemas.ITEM_VECTORS)
        staged.write(vectors, schemas.ITEM_VECTORS)
    ctx.say(f"{staged.publication.manifest['rows']} items")


if __name__ == "__main__":
    sys.exit(main(run))
