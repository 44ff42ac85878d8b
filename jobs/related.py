"""Publish the items most related to each item, by their vectors and by common users."""

import sys
from functools import partial

import numpy as np

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.inference.covisits import count_covisits
from recall_lib.inference.related import related_by_covisits, related_by_vectors
from recall_lib.inference.shipping import ship_published
from recall_lib.samples.ids import ITEM_ID
from recall_lib.spark.executors import map_batches
from recall_lib.store import schemas
from recall_lib.transforms import related as transform
from recall_lib.transforms.holdout import tie_breaker
from recall_lib.transforms.vocab import known_items

MOST = 50  # related items kept of each


def run(ctx: Context) -> None:
    """Publish related/dt."""
    n, vocab = min(ctx.config.top_n.n, MOST), ctx.serving.vocab
    index = ship_published(ctx.spark, ctx.serving.require(ctx.tables.get("index", ctx.dt)))
    events, inputs = ctx.history()
    inputs |= {"vocab": vocab.digest, "index": index.digest}
    size, blocks = vocab.manifest["sizes"][ITEM_ID], ctx.config.spark.partitions
    items = known_items(vocab.read(schemas.VOCAB))
    nearest = items.repartitionByRange(blocks, "item_index").select("item_index")
    nearest = map_batches(
        nearest, partial(related_by_vectors, index=index, n=n, has_bias=ctx.config.model.has_bias), schemas.RELATED
    )
    users = transform.items_of_users(tie_breaker(events).join(items, "item_id")).persist()
    users_of_item = np.zeros(size, np.int64)
    counted = transform.users_of_items(users).toPandas()
    users_of_item[counted["item_index"]] = counted["users"]
    pairs = map_batches(
        transform.spread_by_item(users, blocks), partial(count_covisits, items=size, blocks=blocks), transform.COVISITS
    )
    together = map_batches(pairs, partial(related_by_covisits, index=index, users_of_item=users_of_item, n=n), schemas.RELATED)
    with ctx.tables.publishing("related", ctx.dt, inputs=inputs, facts=ctx.serving.stamp) as staged:
        staged.write(nearest.unionByName(together), schemas.RELATED)
    ctx.say(f"{staged.publication.manifest['rows']} lists of up to {n} items")
    users.unpersist()


if __name__ == "__main__":
    sys.exit(main(run))
