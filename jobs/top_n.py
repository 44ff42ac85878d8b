"""Histories, model and index -> top_n/dt: the N best items of every user, best first.

With `top_n.user_id_only` also top_n_user_id/dt, the lists that the user id alone gives.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.inputs import count_users, read_allowed_items, read_histories
from recall_lib.day.job import main
from recall_lib.inference.shipping import ship_folder, ship_published
from recall_lib.inference.top_n import save_recommendable, write_top_n
from recall_lib.process.errors import DataRefused
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.spark.executors import map_batches
from recall_lib.spark.writing import WRITTEN
from recall_lib.store import schemas
from recall_lib.transforms.popular import ALL
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish top_n/dt, and top_n_user_id/dt where it is asked for."""
    settings, serving = ctx.config.top_n, ctx.serving
    published_index = serving.require(ctx.tables.get("index", ctx.dt))
    allowed, lists = read_allowed_items(ctx)
    clicks, popular = read_popular(ctx, len(allowed))
    model, index = ship_published(ctx.spark, serving.model), ship_published(ctx.spark, published_index)
    histories, inputs = read_histories(ctx)
    inputs |= lists | {"models": model.digest, "index": index.digest, "popular": popular}
    facts = serving.stamp | {"users_in": count_users(ctx)}
    with tempfile.TemporaryDirectory() as folder:
        save_recommendable(Path(folder), allowed, clicks)
        items = ship_folder(ctx.spark, Path(folder), f"recommendable-{ctx.run_id}")
        write = partial(
            write_top_n, model=model, index=index, recommendable=items, n=settings.n, filter_seen=settings.filter_seen
        )
        for dataset in ["top_n", "top_n_user_id"] if settings.user_id_only else ["top_n"]:
            with ctx.tables.publishing(dataset, ctx.dt, inputs=inputs, facts=facts) as staged:
                write_here = partial(write, folder=staged.address, user_id_only=dataset == "top_n_user_id")
                staged.keep(map_batches(histories, write_here, WRITTEN), schemas.TOP_N)
            users = staged.publication.manifest["rows"]
            ctx.say(f"{dataset}: {users} users, up to {settings.n} of {allowed.sum()} items each")


def read_popular(ctx: Context, items: int) -> tuple[npt.NDArray[np.int64], str]:
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
