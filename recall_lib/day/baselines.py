"""The counts that the baselines rank by: Spark counts them, and they are written as files for the executors."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
from pyspark.sql import DataFrame

from recall_lib.inference.covisits import as_matrix, count_covisits
from recall_lib.retrieval.baselines import save_cosines, save_ease
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.samples.ragged import Ints
from recall_lib.spark.executors import map_batches
from recall_lib.transforms import related
from recall_lib.transforms.metrics import EASE, recommenders
from recall_lib.transforms.popular import count_items


def save_baselines(
    folder: Path, clicks: DataFrame, recent: DataFrame, items: DataFrame, popular: Ints, id_rank: Ints, blocks: int
) -> None:
    """Write popular.npy and recent.npy (clicks of each item index), the items' cosines, and EASE's weights if EASE is used.

    The driver's memory does not grow with the users, but it holds the counts: one for each pair of items with a common user.

    Args:
        folder: an existing folder.
        clicks: training clicks with `tie`.
        recent: the recent clicks among them.
        items: item_index, item_id.
        popular: training count of each item index, int64 [n].
        id_rank: the rank of each item's id, for ties, int64 [n].
        blocks: number of blocks of items that are counted separately.
    """
    counted = count_items(recent, items).toPandas()
    of_late = np.zeros(len(id_rank), np.int64)
    of_late[counted["item_index"]] = counted["count"]
    np.save(folder / "popular.npy", popular)
    np.save(folder / "recent.npy", of_late)
    users = related.items_of_users(clicks.join(items, "item_id"))
    count = partial(count_covisits, items=len(id_rank), blocks=blocks)
    pairs = map_batches(related.spread_by_item(users, blocks), count, related.COVISITS)
    covisits = as_matrix(pairs.toPandas(), len(id_rank))
    save_cosines(covisits, id_rank, folder)
    if EASE in recommenders(len(id_rank) - FIRST_INDEX):
        save_ease(covisits, id_rank, folder)
