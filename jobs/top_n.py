"""Histories, model and index -> top_n/dt: the N best items of every user, best first.

With `top_n.user_id_only` also top_n_user_id/dt, the lists that the user id alone gives.
"""

import sys
from functools import partial

import numpy as np
from pyspark.sql import functions as F

from recall_lib import reading, schemas
from recall_lib.errors import DataRefused
from recall_lib.ids import FIRST_INDEX, ITEM_ID
from recall_lib.inference import fingerprints
from recall_lib.inference.shipping import ship_published
from recall_lib.inference.top_n import Popular, top_n
from recall_lib.job import Context, main
from recall_lib.transforms.popular import ALL
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish top_n/dt, and top_n_user_id/dt where it is asked for."""
    settings, tables = ctx.config.top_n, ctx.tables
    stamp = fingerprints.model_of_vocab(tables, ctx.dt)
    fingerprints.require_stamp(tables, stamp, "index", ctx.dt)
    popular = read_popular(ctx)
    model, index = ship_published(tables, "models", ctx.dt), ship_published(tables, "index", ctx.dt)
    histories, inputs = reading.read_histories(ctx)
    inputs |= {"models": model.digest, "index": index.digest, "popular": tables.manifest("popular", ctx.dt)["digest"]}
    facts = stamp | {"users_in": reading.count_users(ctx)}
    search = partial(top_n, model=model, index=index, popular=popular, n=settings.n, filter_seen=settings.filter_seen)
    for user_id_only in (False, True) if settings.user_id_only else (False,):
        rows = histories.mapInArrow(partial(search, user_id_only=user_id_only), schemas.TOP_N)
        dataset = "top_n_user_id" if user_id_only else "top_n"
        manifest = tables.publish(rows, schemas.TOP_N, dataset, ctx.dt, inputs=inputs, facts=facts)
        ctx.say(f"{dataset}: {manifest['rows']} users, up to {settings.n} items each")


def read_popular(ctx: Context) -> Popular:
    """The first top_n.n items of popular/dt, window `all`.

    Raises:
        DataRefused: popular/dt was made with another vocabulary or for a smaller n.
    """
    vocab, digest = ctx.vocab()
    n = min(ctx.config.top_n.n, ctx.tables.manifest("vocab", ctx.dt)["sizes"][ITEM_ID] - FIRST_INDEX)
    table = ctx.tables.read("popular", ctx.dt, schemas.POPULAR).where((F.col("window") == ALL) & (F.col("rank") <= n))
    hottest = table.join(known_items(vocab), "item_id").orderBy("rank").select("item_index", "count").collect()
    if ctx.tables.manifest("popular", ctx.dt)["inputs"]["vocab"] != digest or len(hottest) < n:
        raise DataRefused(f"popular/dt={ctx.dt} does not fit this vocabulary and top_n.n: run `recall popular --dt {ctx.dt}`")
    return Popular(np.array([row["item_index"] for row in hottest]), np.array([row["count"] for row in hottest]))


if __name__ == "__main__":
    sys.exit(main(run))
