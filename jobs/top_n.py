"""Histories, model and index -> top_n/dt: the N best items of every user, best first.

With `top_n.user_id_only` also top_n_user_id/dt, the lists that the user id alone gives.
"""

import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recall_lib import reading, schemas
from recall_lib.errors import DataRefused
from recall_lib.executors import map_batches
from recall_lib.ids import FIRST_INDEX
from recall_lib.inference import fingerprints
from recall_lib.inference.shipping import ship_folder, ship_published
from recall_lib.inference.top_n import save_recommendable, write_top_n
from recall_lib.io.writing import WRITTEN
from recall_lib.job import Context, main
from recall_lib.transforms.popular import ALL
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish top_n/dt, and top_n_user_id/dt where it is asked for."""
    settings, tables = ctx.config.top_n, ctx.tables
    serving = fingerprints.serving_day(tables, ctx.dt)
    stamp = fingerprints.model_of_vocab(tables, serving)
    fingerprints.require_stamp(tables, stamp, "index", ctx.dt)
    allowed, lists = reading.read_allowed_items(ctx)
    clicks, popular = read_popular(ctx, len(allowed))
    model, index = ship_published(tables, "models", serving), ship_published(tables, "index", ctx.dt)
    histories, inputs = reading.read_histories(ctx)
    inputs |= lists | {"models": model.digest, "index": index.digest, "popular": popular}
    facts = stamp | {"users_in": reading.count_users(ctx)}
    with tempfile.TemporaryDirectory() as folder:
        save_recommendable(Path(folder), allowed, clicks)
        items = ship_folder(ctx.spark, Path(folder), f"recommendable-{tables.run_id}")
        search = partial(
            write_lists, histories, model=model, index=index, recommendable=items, filter_seen=settings.filter_seen
        )
        for user_id_only in (False, True) if settings.user_id_only else (False,):
            write = partial(search, n=settings.n, user_id_only=user_id_only)
            dataset = "top_n_user_id" if user_id_only else "top_n"
            manifest = tables.publish(write, schemas.TOP_N, dataset, ctx.dt, inputs=inputs, facts=facts)
            ctx.say(f"{dataset}: {manifest['rows']} users, up to {settings.n} of {allowed.sum()} items each")


def write_lists(histories: DataFrame, folder: str, **search: Any) -> DataFrame:
    """Writes the list of every user below a folder when its files (writing.WRITTEN) are asked for."""
    return map_batches(histories, partial(write_top_n, folder=folder, **search), WRITTEN)


def read_popular(ctx: Context, items: int) -> tuple[npt.NDArray[np.int64], str]:
    """Clicks in popular/dt, window `all`, of each item index of the serving day, [items], and the table's digest.

    Raises:
        DataRefused: popular/dt was made with another vocabulary.
    """
    serving, manifest = fingerprints.serving_day(ctx.tables, ctx.dt), ctx.tables.manifest("popular", ctx.dt)
    table = ctx.tables.read("popular", ctx.dt, schemas.POPULAR).where(F.col("window") == ALL)
    counted = table.join(known_items(ctx.vocab(serving)[0]), "item_id").select("item_index", "count").toPandas()
    lacking = serving == ctx.dt and len(counted) < items - FIRST_INDEX
    if lacking or manifest["inputs"]["vocab"] != ctx.tables.manifest("vocab", ctx.dt)["digest"]:
        raise DataRefused(f"popular/dt={ctx.dt} was made with another vocabulary: run `recall popular --dt {ctx.dt}`")
    clicks = np.zeros(items, np.int64)
    clicks[counted["item_index"]] = counted["count"]
    return clicks, manifest["digest"]


if __name__ == "__main__":
    sys.exit(main(run))
