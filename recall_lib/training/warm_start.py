"""Carries weights over from an earlier day's model (training.init `yesterday`).

The vocabularies of two days may give the same value different ids, so each row of a table moves to its value's new id. Rows of
values that no longer exist are dropped; rows of new values keep their random weights. All other weights are copied. The
optimiser starts fresh.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence

import numpy as np
import pyarrow.compute as pc
import torch
from fsspec.core import url_to_fs

from recall_lib.model import checkpoint
from recall_lib.model.towers import YouTubeDNN
from recall_lib.process.errors import DataRefused
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.samples.ragged import Ints
from recall_lib.store.arrays import read_values
from recall_lib.training.spec import FirstWeights, TrainSpec


@torch.no_grad()
def carry_over(model: YouTubeDNN, first: FirstWeights, spec: TrainSpec) -> None:
    """Overwrite a model's random weights with those of an earlier model.

    Args:
        model: has the same settings as the earlier model, on the CPU.
        first: the earlier model.
        spec: the training run's spec, with its vocabulary and sizes.

    Raises:
        DataRefused: the earlier model has been published again.
    """
    before = _load(first)
    features = spec.features
    fixed = {f.name for f in (*features.user, *features.item) if f.buckets} | {
        f.name for f in (*features.time, *features.numbers)
    }
    ids = {
        name: np.arange(size) if name in fixed else previous_ids(first.vocab, spec.vocab_files, name, size)
        for name, size in spec.sizes.items()
    }
    rows = model.rows_of_features()
    for name, weights in model.named_parameters():
        if name in rows:
            earlier = torch.from_numpy(ids[rows[name]])
            known = earlier >= 0
            weights[known] = before.get_parameter(name)[earlier[known]]
        else:
            weights.copy_(before.get_parameter(name))


def previous_ids(before: Sequence[str], now: Sequence[str], feature: str, size: int) -> Ints:
    """For each id, the id of the same value in an earlier vocabulary, int64 [size]; -1 if the value was not in it.

    Args:
        before: the Parquet files of the earlier schemas.VOCAB table.
        now: the Parquet files of the later one.
        feature: the feature's name.
        size: number of ids in the later vocabulary, including 0 and 1, which do not change.
    """
    then, ours = read_values(before, feature), read_values(now, feature)
    place = pc.index_in(ours["value"], value_set=then["value"].combine_chunks())
    found = np.full(size, -1)
    found[:FIRST_INDEX] = np.arange(FIRST_INDEX)
    known = place.is_valid()
    found[ours["index"].filter(known).to_numpy()] = then["index"].take(place.drop_null()).to_numpy()
    return found


def _load(first: FirstWeights) -> YouTubeDNN:
    fs, folder = url_to_fs(first.folder)
    with tempfile.TemporaryDirectory() as local:
        for name in (checkpoint.WEIGHTS, checkpoint.META):
            fs.get_file(f"{folder}/{name}", f"{local}/{name}")
        model, meta = checkpoint.load(local)
    if meta["version"] != first.version:
        raise DataRefused(f"models/dt={first.dt} was published again while it was being read: run this job again")
    return model
