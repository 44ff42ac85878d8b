"""The item counts of a vocabulary as a NumPy array, read where they are needed: by an executor or a training rank."""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from recall_lib.ids import FIRST_INDEX, ITEM_ID


@cache
def item_counts(files: tuple[str, ...]) -> npt.NDArray[np.int64]:
    """Training count of each item id, int64 [items]; 0 for padding and unknown, which are no candidates.

    Args:
        files: the Parquet files of a vocabulary.
    """
    indexes, counts = [], []
    for name in files:
        fs, path = url_to_fs(name)
        with fs.open(path, "rb") as file:
            table = pq.read_table(file, columns=["feature", "index", "count"])
        table = table.filter(pc.equal(table.column("feature"), ITEM_ID))
        indexes.append(table.column("index").to_numpy())
        counts.append(table.column("count").to_numpy())
    index, count = np.concatenate(indexes), np.concatenate(counts)
    by_index = np.zeros(max(int(index.max(initial=0)) + 1, FIRST_INDEX), np.int64)
    by_index[index] = count
    by_index[:FIRST_INDEX] = 0
    return by_index
