"""Publish every user's vector and the N best items for the user, best first.

With `top_n.user_id_only` the job also publishes top_n_user_id: the lists from the user id alone.
One pass over the users writes all of them. The vectors are published first.
"""

import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import numpy as np
from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.inputs import listed_users, map_histories, read_allowed_items
from recall_lib.day.job import main
from recall_lib.inference.shipping import ship_folder, ship_published
from recall_lib.inference.top_n import TOP_N, TOP_N_USER_ID, VECTORS, save_recommendable, write_pass
from recall_lib.process.errors import DataRefused
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.samples.ragged import Ints
from recall_lib.spark.writing import WRITTEN
from recall_lib.store import schemas
from recall_lib.transforms.popular import ALL
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish vectors/dt for kind=user, top_n/dt, and top_n_user_id/dt where it is asked for."""
    settings, serving = ctx.config.top_n, ctx.serving
    published_index = serving.require(ctx.tables.get("index", ctx.dt))
    allowed, made_from, facts = read_allowed_items(ctx)
    clicks, popular = read_popular(ctx, len(allowed))
    model, index = ship_published(ctx.spark, serving.model), ship_published(ctx.spark, published_index)
    users, counts = listed_users(ctx)
    made_from |= {"index": index.digest, "popular": popular}
    # Counted apart from the work on them: the audits compare the two.
    facts |= serving.stamp | counts | {"users_in": users.count()}
    tables = [TOP_N, TOP_N_USER_ID] if settings.user_id_only else [TOP_N]
    with ExitStack() as stack:
        # The blocks end in the reverse order: the vectors are swapped in first, then top_n.
        staged = {
            table: stack.enter_context(ctx.tables.publishing(table, ctx.dt, inputs=made_from, facts=facts))
            for table in reversed(tables)
        }
        staged[VECTORS] = stack.enter_context(ctx.tables.publishing(VECTORS, ctx.dt, facts=serving.stamp, kind="user"))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        save_recommendable(folder, allowed, clicks)
        work = partial(
            write_pass,
            folders={table: one.address for table, one in staged.items()},
            model=model,
            index=index,
            recommendable=ship_folder(ctx.spark, folder, f"recommendable-{ctx.run_id}"),
            n=settings.n,
            filter_seen=settings.filter_seen,
        )
        files, inputs = map_histories(ctx, work, WRITTEN, users if counts else None)
        written = files.collect()
        for table, one in staged.items():
            one.inputs |= inputs | {"models": model.digest}
            one.keep(written, schemas.USER_VECTORS if table == VECTORS else schemas.TOP_N)
    for table in tables:
        rows = staged[table].publication.manifest["rows"]
        ctx.say(f"{table}: {rows} users, up to {settings.n} of {allowed.sum()} items each")


def read_popular(ctx: Context, items: int) -> tuple[Ints, str]:
    """Clicks in popular/dt, window `all`, of each item index of the serving day, [items], and the table's digest.

    Raises:
        DataRefused: popular/dt was made with another vocabulary.
    """
    popular, vocab = ctx.tables.get("popular", ctx.dt), ctx.serving.vocab
    table = popular.read(schemas.POPULAR).where(F.col("window") == ALL)
    counted = table.join(known_items(vocab.read(schemas.VOCAB)), "item_id").select("item_index", "count").toPandas()
    lacking = vocab.dt == ctx.dt and len(counted) < items - FIRST_INDEX
    if lacking or popular.inputs["vocab"] != ctx.tables.get("vocab", ctx.dt).digest:
        raise DataRefused(f"{popular.name} was made with another vocabulary: run `recall popular --dt {ctx.dt}`")
    clicks = np.zeros(items, np.int64)
    clicks[counted["item_index"]] = counted["count"]
    return clicks, popular.digest


if __name__ == "__main__":
    sys.exit(main(run))
