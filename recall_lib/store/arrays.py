"""Readers of item tables as NumPy arrays, for the driver, executors and training ranks alike."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recall_lib.samples.ids import FIRST_INDEX, ITEM_ID
from recall_lib.samples.ragged import Float32s, Float64s, Ints, Ragged
from recall_lib.store.filesystems import read_parquet


@cache
def item_counts(files: tuple[str, ...]) -> Ints:
    """Training count of each item index, int64 [items]; 0 for padding and unknown, which are never recommended.

    Args:
        files: the Parquet files of a vocabulary.
    """
    indexes, counts = [], []
    for name in files:
        table = read_parquet(name, ["feature", "index", "count"])
        table = table.filter(pc.equal(table.column("feature"), ITEM_ID))
        indexes.append(table.column("index").to_numpy())
        counts.append(table.column("count").to_numpy())
    index, count = np.concatenate(indexes), np.concatenate(counts)
    by_index = np.zeros(max(int(index.max(initial=0)) + 1, FIRST_INDEX), np.int64)
    by_index[index] = count
    by_index[:FIRST_INDEX] = 0
    return by_index


def read_values(files: Sequence[str], feature: str) -> pa.Table:
    """The known values of a feature: columns index and value, ascending by index.

    Args:
        files: the Parquet files of a vocabulary.
        feature: the feature's name.
    """
    parts = []
    for name in files:
        table = read_parquet(name, ["feature", "index", "value"])
        known = pc.and_(pc.equal(table["feature"], feature), pc.greater_equal(table["index"], FIRST_INDEX))
        parts.append(table.filter(known).select(["index", "value"]))
    return pa.concat_tables(parts).sort_by("index")


def read_item_ids(files: Sequence[str]) -> pa.Array:
    """The id of each item index, string [n]; null for 0 and 1.

    Args:
        files: the Parquet files of a vocabulary.
    """
    ids = read_values(files, ITEM_ID).column("value").combine_chunks()
    return pa.concat_arrays([pa.nulls(FIRST_INDEX, ids.type), ids])


def read_item_vectors(files: tuple[str, ...]) -> tuple[pa.Array, Float32s]:
    """Ids, string [n], and vectors, float32 [n, d]: row = item index; rows 0 and 1 are null and zero.

    Args:
        files: the Parquet files of a schemas.ITEM_VECTORS table, not empty.
    """
    table = _read(files, ["item_index", "item_id", "vector"])
    flat = table.column("vector").combine_chunks().flatten().to_numpy()
    vectors = flat.reshape(table.num_rows, -1)  # [n * d] -> [n, d]
    reserved = np.zeros((FIRST_INDEX, vectors.shape[1]), np.float32)
    ids = pa.concat_arrays([pa.nulls(FIRST_INDEX, pa.string()), table.column("item_id").combine_chunks()])
    return ids, np.concatenate([reserved, vectors])


def read_item_features(files: Sequence[str], names: Sequence[str], items: int) -> dict[str, Ragged]:
    """For each item feature, the values of each item index (ragged [items], int32); none for an index not in the table.

    Args:
        files: the Parquet files of a schemas.items table.
        names: the features' names.
        items: number of item indexes, 0 and 1 included.
    """
    table = _read(files, ["item_index", *(f"{name}_index" for name in names)])
    # [items + 1]: where the list of each item index begins among the table's rows; of a missing one, where the next one begins.
    place = np.searchsorted(table.column("item_index").to_numpy(), np.arange(items + 1))
    found = {}
    for name in names:
        lists = Ragged.from_arrow(table.column(f"{name}_index").combine_chunks())
        found[name] = Ragged(lists.values, lists.offsets[place])
    return found


def read_item_numbers(files: Sequence[str], names: Sequence[str], items: int) -> dict[str, Float32s]:
    """For each numeric item feature, the value of each item index, float32 [items]; NaN if it is unknown.

    Args:
        files: the Parquet files of a schemas.items table.
        names: the features' names.
        items: number of item indexes, 0 and 1 included.
    """
    table = _read(files, ["item_index", *(f"{name}_value" for name in names)])
    found = {name: np.full(items, np.nan, np.float32) for name in names}
    for name, values in found.items():
        values[table.column("item_index").to_numpy()] = table.column(f"{name}_value").to_numpy()
    return found


def read_priors(files: Sequence[str], items: int) -> Float64s:
    """The prior of each item index, float64 [items].

    An index that is not in the table gets the smallest prior, as in the exported vectors.

    Args:
        files: the Parquet files of a schemas.items table, not empty.
        items: number of item indexes, 0 and 1 included.
    """
    table = _read(files, ["item_index", "prior"])
    known = table.column("prior").to_numpy()
    priors = np.full(items, known.min())
    priors[table.column("item_index").to_numpy()] = known
    return priors


def _read(files: Sequence[str], columns: list[str]) -> pa.Table:
    parts = [read_parquet(name, columns) for name in files]
    return pa.concat_tables(parts).sort_by("item_index").combine_chunks()
