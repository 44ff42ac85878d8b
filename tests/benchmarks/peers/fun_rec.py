"""Preset F's way to build samples, in pandas: a Python loop over users and targets, a Python list a sample.

Argument: JSON {events, out, window_size, shares}: the Parquet files of the clicks; the folder for train.parquet and
test.parquet; whether each target's share of all clicks is computed, as F does for its subsampling. Prints JSON
{seconds, version}; imports are not in the seconds.

The steps are F's with the options of the benchmark: no user features, no cap, no negatives, and every target is kept. Each
user's last click is a test sample. Histories are newest first.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

# user code, history newest first, item code of the target, example_age in days, label, length of the history
_THRESHOLD = 0.001
Sample = tuple[int, list[int], int, float, int, int]


def read_clicks(files: list[str]) -> pd.DataFrame:
    """user_id and item_id as codes (items from 1: 0 is padding), event_ts, example_age in days; oldest click first."""
    clicks = pd.concat([pd.read_parquet(file, columns=["user_id", "item_id", "event_ts"]) for file in files], ignore_index=True)
    for column, first in (("user_id", 0), ("item_id", 1)):
        clicks[column] = np.unique(clicks[column].to_numpy(str), return_inverse=True)[1] + first
    clicks["example_age"] = (clicks["event_ts"].max() - clicks["event_ts"]).dt.total_seconds() / 86_400
    return clicks.sort_values("event_ts")


def slide_windows(clicks: pd.DataFrame, window_size: int, shares: bool) -> tuple[list[Sample], list[Sample]]:
    """Training and test samples, each shuffled."""
    counts = clicks.groupby("item_id")["user_id"].count().to_dict()
    train: list[Sample] = []
    test: list[Sample] = []
    for user, own in clicks.groupby("user_id"):
        items = own["item_id"].tolist()[-window_size:]
        for place in range(1, len(items)):
            history = items[:place][::-1]
            keep = 1.0
            if shares:
                share = counts[items[place]] / np.sum(list(counts.values()))  # F adds up all counts for every target
                keep = max(1.0, (np.sqrt(share / _THRESHOLD) + 1) * _THRESHOLD / share)  # max: subsampling is off
            if place < len(items) - 1:
                if random.random() < keep:
                    train.append((user, history, items[place], own.iloc[place]["example_age"], 1, len(history)))
            else:
                test.append((user, history, items[place], 0.0, 0, len(history)))
    random.shuffle(train)
    random.shuffle(test)
    return train, test


def model_input(samples: list[Sample], window_size: int) -> dict[str, Any]:
    """The samples as arrays, histories padded with 0 after their end."""
    histories = np.zeros((len(samples), window_size), np.int32)
    for row, sample in zip(histories, samples, strict=True):
        row[: sample[5]] = sample[1][:window_size]
    return {
        "user_id": np.array([sample[0] for sample in samples]),
        "history": pa.FixedSizeListArray.from_arrays(histories.reshape(-1), window_size),
        "length": np.array([sample[5] for sample in samples]),
        "target": np.array([sample[2] for sample in samples]),
        "example_age": np.array([sample[3] for sample in samples]),
        "label": np.array([sample[4] for sample in samples]),
    }


def main() -> None:
    """Read, make and write the samples, timed."""
    task = json.loads(sys.argv[1])
    started = time.perf_counter()
    splits = slide_windows(read_clicks(task["events"]), task["window_size"], task["shares"])
    for name, samples in zip(("train", "test"), splits, strict=True):
        pq.write_table(pa.table(model_input(samples, task["window_size"])), Path(task["out"]) / f"{name}.parquet")
    print(json.dumps({"seconds": time.perf_counter() - started, "version": pd.__version__}))


if __name__ == "__main__":
    main()
