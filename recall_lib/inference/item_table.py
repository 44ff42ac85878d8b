"""The table of item vectors as arrays."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from recall_lib.ids import FIRST_INDEX


def read_item_vectors(files: tuple[str, ...]) -> tuple[pa.Array, npt.NDArray[np.float32]]:
    """Ids, string [n], and vectors, float32 [n, d]: row = item index; rows 0 and 1 are null and zero.

    Args:
        files: the Parquet files of a schemas.ITEM_VECTORS table, not empty.
    """
    parts = []
    for name in files:
        fs, path = url_to_fs(name)
        with fs.open(path, "rb") as file:
            parts.append(pq.read_table(file, columns=["item_index", "item_id", "vector"]))
    table = pa.concat_tables(parts).sort_by("item_index").combine_chunks()
    flat = table.column("vector").combine_chunks().flatten().to_numpy()
    vectors = flat.reshape(table.num_rows, -1)
    reserved = np.zeros((FIRST_INDEX, vectors.shape[1]), np.float32)
    ids = pa.concat_arrays([pa.nulls(FIRST_INDEX, pa.string()), table.column("item_id").combine_chunks()])
    return ids, np.concatenate([reserved, vectors])
