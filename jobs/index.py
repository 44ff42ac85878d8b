"""Item vectors -> index/dt: a FAISS index, the ids of its items, and the vectors as files for an online search.

Without `index.factory` the index is the one of the fewest comparisons that keeps `index.recall_target` on a sample of the
day's users; the manifest says which it is, the recall measured, and users/s of it and of the exact search.

Files: items.faiss (position p is item index p + 2), item_ids.parquet (item_index, item_id, id_rank), item_vectors.npy (row =
item index), and for a search by cosine the same in both forms of SIMPLE-LSH, item_vectors_simple_lsh.npy (their own numbers)
and item_vectors_simple_lsh_unit.npy (of norm 1); the user side of both is [u/|u| ; 0].
"""

import sys

import numpy as np
from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.retrieval import simple_lsh
from recall_lib.retrieval.index import ItemIndex
from recall_lib.retrieval.tuning import build_by_promise, measure
from recall_lib.store import schemas
from recall_lib.store.arrays import read_item_vectors

USERS, DRAWN = 2000, 4  # that an index is tried on; of whom so many times as many are drawn


def run(ctx: Context) -> None:
    """Publish index/dt."""
    settings, n = ctx.config.index, ctx.config.top_n.n
    of_items, of_users = (ctx.serving.require(ctx.tables.get("vectors", ctx.dt, kind=kind)) for kind in ("item", "user"))
    inputs = {"vectors/kind=item": of_items.digest, "vectors/kind=user": of_users.digest}
    item_ids, vectors = read_item_vectors(of_items.files)
    users = sample_users(of_users.read(schemas.USER_VECTORS), ctx.config.seed, vectors.shape[1])
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


def sample_users(table: DataFrame, seed: int, width: int) -> np.ndarray:
    """Different vectors of up to USERS users of schemas.USER_VECTORS, float32 [m, width], the same in every run.

    Users of whom the model knows nothing share one vector, and are not searched for.
    """
    chosen = table.orderBy(F.xxhash64(F.lit(seed), F.lit("index"), "user_id"), "user_id").limit(DRAWN * USERS)
    vectors = np.array([row["vector"] for row in chosen.collect()], np.float32).reshape(-1, width)
    _, first = np.unique(vectors, axis=0, return_index=True)
    return vectors[np.sort(first)[:USERS]]


if __name__ == "__main__":
    sys.exit(main(run))
