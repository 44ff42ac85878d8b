"""Counts of pairs of items that the same users clicked, one block of items at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
from scipy import sparse

from recall_lib.samples.ragged import Ragged

_CLICKS = 1 << 22  # clicks whose pairs are counted at once; bounds a worker's memory apart from the counts


def count_covisits(batches: Iterable[pa.RecordBatch], *, items: int, blocks: int) -> Iterator[pa.RecordBatch]:
    """Rows of transforms.related.spread_by_item -> rows of its COVISITS, for the items of the blocks in these rows.

    Memory grows with the number of different pairs, not with the number of users.

    Args:
        batches: all rows of one or more blocks.
        items: number of item indexes.
        blocks: number of blocks that the items were spread over.
    """
    total = sparse.csr_matrix((items, items), dtype=np.int32)
    for table in _stacks(batches):
        lists = Ragged.from_arrow(table.column("items").combine_chunks())  # ragged [rows]; a row is a user in a block
        user = np.repeat(np.arange(len(lists.lengths)), lists.lengths)  # [clicks], as `mine`
        clicked = _matrix(user, lists.values, (len(lists.lengths), items))
        mine = lists.values % blocks == table.column("block").to_numpy()[user]
        # The block's items of each user with all items of the user: [items, rows] @ [rows, items].
        total = total + _matrix(user[mine], lists.values[mine], clicked.shape).T.tocsr() @ clicked
    total.sort_indices()
    rows = np.flatnonzero(np.diff(total.indptr))
    for some in np.array_split(rows, total.nnz // _CLICKS + 1):
        part = total[some]
        yield pa.RecordBatch.from_pydict(
            {
                "item_index": pa.array(some.astype(np.int32)),
                "other": pa.ListArray.from_arrays(pa.array(part.indptr), pa.array(part.indices)),
                "users": pa.ListArray.from_arrays(pa.array(part.indptr), pa.array(part.data)),
            }
        )


def _matrix(rows: npt.NDArray, columns: npt.NDArray, shape: tuple[int, int]) -> sparse.csr_matrix:
    """Ones at the given rows and columns."""
    return sparse.csr_matrix((np.ones(len(rows), np.int32), (rows, columns)), shape)


def as_matrix(covisits: pd.DataFrame, items: int) -> sparse.csr_matrix:
    """Rows of COVISITS as a sparse matrix of counts, [items, items] by item index."""
    rows = covisits.sort_values("item_index")
    lengths = np.zeros(items, np.int64)
    lengths[rows["item_index"]] = rows["other"].str.len()
    starts = np.concatenate([[0], np.cumsum(lengths)])
    other, users = (np.concatenate([np.zeros(0, np.int32), *rows[name]]) for name in ("other", "users"))
    return sparse.csr_matrix((users, other, starts), (items, items))


def _stacks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The same rows in fewer and larger tables."""
    stack: list[pa.RecordBatch] = []
    clicks = 0
    for batch in batches:
        stack.append(batch)
        clicks += len(batch.column("items").flatten())
        if clicks >= _CLICKS:
            yield pa.Table.from_batches(stack)
            stack, clicks = [], 0
    if stack:
        yield pa.Table.from_batches(stack)
