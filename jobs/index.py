"""Build the FAISS index of the items' vectors, and export the vectors for online search.

With `index.factory` the index is the one that the setting names. Without it the job chooses the
index with the fewest comparisons that reaches `index.recall_target` on a sample of the day's users.
It infers these users' vectors only for this choice. The manifest records the index, its recall, and
the users/s of this index and of the exact search.

Files:
  items.faiss                       position p is item index p + 2
  item_ids.parquet                  item_index, item_id, id_rank
  item_vectors.npy                  row = item index
  item_vectors_simple_lsh.npy       for engines that search by cosine; vectors keep their scale
  item_vectors_simple_lsh_unit.npy  the same, scaled to norm 1

In both SIMPLE-LSH files a user u is searched as [u/|u| ; 0].
"""

import sys
from functools import partial

import numpy as np
from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.inputs import listed_users, map_histories
from recall_lib.day.job import main
from recall_lib.inference.shipping import ship_published
from recall_lib.inference.vectors import user_vectors
from recall_lib.retrieval import simple_lsh
from recall_lib.retrieval.index import ItemIndex
from recall_lib.retrieval.tuning import build_by_promise, measure
from recall_lib.store import schemas
from recall_lib.store.arrays import read_item_vectors

USERS, DRAWN = 2000, 4  # that an index is tried on; of whom so many times as many are drawn


def run(ctx: Context) -> None:
    """Publish index/dt."""
    settings, n = ctx.config.index, ctx.config.top_n.n
    of_items = ctx.serving.require(ctx.tables.get("vectors", ctx.dt, kind="item"))
    item_ids, vectors = read_item_vectors(of_items.files)
    users, inputs = sample_users(ctx, vectors.shape[1])
    inputs |= {"models": ctx.serving.model.digest, of_items.name_in_day: of_items.digest}
    if settings.factory:
        index = ItemIndex.build(vectors, item_ids, settings.factory, settings.nprobe)
        facts = {"factory": settings.factory, "nprobe": settings.nprobe} | measure(index, index.exact(), users, n)
    else:
        index, facts = build_by_promise(vectors, item_ids, users, n, settings.recall_target)
    with ctx.tables.publishing("index", ctx.dt, inputs=inputs, facts=ctx.serving.stamp | facts) as staged:
        index.save(staged.folder)
        np.save(staged.folder / "item_vectors_simple_lsh.npy", simple_lsh.precise_items(vectors))
        np.save(staged.folder / "item_vectors_simple_lsh_unit.npy", simple_lsh.unit_items(vectors))
    visited = f", {facts['nprobe']} lists visited" if facts["nprobe"] else ""
    ctx.say(
        f"{facts['factory']}{visited} over {len(vectors) - 2} items of {vectors.shape[1]} dimensions: recall@{n} "
        f"{facts['recall']:.4f}, {facts['users_per_second']:.0f} users/s (exact {facts['exact_users_per_second']:.0f})"
    )


def sample_users(ctx: Context, width: int) -> tuple[np.ndarray, dict[str, str]]:
    """Different vectors of up to USERS users, float32 [m, width], the same in every run, and the digests of the clicks.

    Users of whom the model knows nothing share one vector, and are not searched for.
    """
    in_order = listed_users(ctx)[0].orderBy(F.xxhash64(F.lit(ctx.config.seed), F.lit("index"), "user_id"), "user_id")
    drawn = in_order.limit(DRAWN * USERS).collect()
    # Without the hint Spark, which does not know how few they are, would shuffle all clicks to join them.
    users = F.broadcast(ctx.spark.createDataFrame(drawn, in_order.schema))
    work = partial(user_vectors, model=ship_published(ctx.spark, ctx.serving.model))
    found, inputs = map_histories(ctx, work, schemas.USER_VECTORS, users)
    vector = {row["user_id"]: row["vector"] for row in found.collect()}
    vectors = np.array([vector[user] for (user,) in drawn], np.float32).reshape(-1, width)
    _, first = np.unique(vectors, axis=0, return_index=True)
    return vectors[np.sort(first)[:USERS]], inputs


if __name__ == "__main__":
    sys.exit(main(run))
