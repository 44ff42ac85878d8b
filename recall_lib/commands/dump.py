"""Print a day's samples with raw ids, one JSON object per (history, target) pair.

    recall dump samples --config conf/demo.yaml --dt 2024-03-09 --split test

Each object has user_id, history, target, example_age, negatives and features. An id that is not in
the vocabulary is null, as is the start token. The history is in the order of `samples.order`.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from recall_lib.config import Config
from recall_lib.day.job import context
from recall_lib.process.command import parser, run_command
from recall_lib.samples.build import SPLITS, TRAIN
from recall_lib.samples.ids import FIRST_INDEX, ITEM_ID, PADDING
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Segments, Windows
from recall_lib.store.filesystems import read_batches, read_parquet
from recall_lib.store.publication import Publication
from recall_lib.store.tables import Tables

# Targets cut at a time.
_CHUNK = 4096


def main(argv: Sequence[str] | None = None) -> int:
    """`recall dump samples --config F --dt D --split S`."""
    options = parser("dump", __doc__, "--config", "--dt")
    options.add_argument("dataset", choices=["samples"], help="the table to print")
    options.add_argument("--split", choices=SPLITS, default=TRAIN, help="the split to print (default: %(default)s)")

    def dump(args: argparse.Namespace) -> None:
        ctx = context(args, "dump")
        for sample in samples(ctx.config, ctx.dt, args.split):
            sys.stdout.write(json.dumps(sample, ensure_ascii=False) + "\n")

    return run_command(options, dump, argv)


def samples(config: Config, dt: str, split: str) -> Iterator[dict[str, Any]]:
    """Every sample of a split: {user_id, history, target, example_age, negatives, features} and, with weights, weight.

    Ids are raw; the start token and unknowns are null. The history is in `samples.order`. A user feature is a value; an
    item feature is the list of the history's values, end to end in the history's order. A hashed value and a number in
    buckets are their bucket. A
    sequence is the list of its tokens, oldest first. A number is what the model reads: its place among the percentiles.

    Raises:
        DataRefused: the samples or their vocabulary are not published.
    """
    tables = Tables(config)
    found = tables.require_settings("samples", dt, split=split)
    values = _values_by_index(tables.get("vocab", dt))
    for number in config.features.numbers:
        values.pop(number.name, None)  # its percentiles
    for name in found.files:
        for batch in read_batches(name, _CHUNK):
            segments = Segments.from_arrow(batch, config.features, config.samples)
            users = batch.column("user_id").to_pylist()
            for start in range(0, len(segments), _CHUNK):
                targets = np.arange(start, min(start + _CHUNK, len(segments)))
                yield from _readable(
                    segments.windows(targets), [users[row] for row in segments.segment_of_target[targets]], values
                )


def _values_by_index(vocab: Publication) -> dict[str, list[str | None]]:
    """The raw value of every id, per feature; hashed features are absent."""
    table = pa.concat_tables([read_parquet(name) for name in vocab.files]).to_pandas()
    values: dict[str, list[str | None]] = {}
    for feature, rows in table[table["value"].notna()].groupby("feature"):
        by_index: list[str | None] = [None] * (int(rows["index"].max()) + 1)
        for index, value in zip(rows["index"], rows["value"], strict=True):
            by_index[index] = value
        values[str(feature)] = by_index
    return values


def _readable(windows: Windows, users: list[str], values: dict[str, list[str | None]]) -> Iterator[dict[str, Any]]:
    def raw(feature: str, index: int) -> str | int | None:
        if index < FIRST_INDEX:
            return None
        return values[feature][index] if feature in values else int(index - FIRST_INDEX)

    def own(feature: str, lists: Ragged, i: int) -> list[str | int | None]:
        return [raw(feature, index) for index in lists.values[lists.offsets[i] : lists.offsets[i + 1]]]

    bags = windows.bags()
    for i, user in enumerate(users):
        tokens = slice(windows.history.offsets[i], windows.history.offsets[i + 1])
        sample = {
            "user_id": user,
            "history": own(ITEM_ID, windows.history, i),
            "target": raw(ITEM_ID, windows.target[i]),
            "example_age": float(windows.example_age[i]),
            "negatives": [raw(ITEM_ID, index) for index in windows.negatives[i] if index != PADDING],
            "features": {name: raw(name, ids[i]) for name, ids in windows.user.items()}
            | {name: own(name, lists, i) for name, lists in (windows.lists | bags).items()}
            | {name: _number(numbers[i]) for name, numbers in windows.numbers.items()}
            | {name: [_number(value) for value in item_numbers[tokens]] for name, item_numbers in windows.item_numbers.items()},
        }
        if windows.weight is not None:
            sample["weight"] = float(windows.weight[i])
        yield sample


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
