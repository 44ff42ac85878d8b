"""Item vectors -> index/dt: a FAISS index, the ids of its items, and the vectors as files for an online search.

Files: items.faiss (position p is item index p + 2), item_ids.parquet (item_index, item_id, id_rank), item_vectors.npy
(row = item index) and item_vectors_simple_lsh.npy (the same for a search by cosine: SIMPLE-LSH, user side [u/|u| ; 0]).
"""

import sys

import numpy as np

from recall_lib.inference import fingerprints
from recall_lib.inference.item_table import read_item_vectors
from recall_lib.job import Context, main
from recall_lib.retrieval.index import ItemIndex
from recall_lib.retrieval.simple_lsh import precise_items


def run(ctx: Context) -> None:
    """Publish index/dt."""
    tables, settings = ctx.tables, ctx.config.index
    stamp = fingerprints.model_of_vocab(tables, ctx.dt)
    fingerprints.require_stamp(tables, stamp, "vectors", ctx.dt, kind="item")
    inputs = {"vectors": tables.manifest("vectors", ctx.dt, kind="item")["digest"]}
    item_ids, vectors = read_item_vectors(tables.files("vectors", ctx.dt, kind="item"))
    with tables.publish_files("index", ctx.dt, inputs=inputs, facts=dict(stamp)) as folder:
        ItemIndex.build(vectors, item_ids, settings.factory, settings.nprobe).save(folder)
        np.save(folder / "item_vectors_simple_lsh.npy", precise_items(vectors))
    ctx.say(f"{settings.factory} over {len(vectors) - 2} items of {vectors.shape[1]} dimensions")


if __name__ == "__main__":
    sys.exit(main(run))
