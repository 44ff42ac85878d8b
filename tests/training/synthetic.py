"""Small sample files and the spec of a training run on them."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from recall_lib.config import Feature, Features, ItemId, Model, Samples, Training
from recall_lib.training.spec import SampleFile, TrainSpec

FEATURES = Features(
    item_id=ItemId(dim=8),
    user=(Feature(name="city", dim=4),),
    item=(Feature(name="category", dim=4), Feature(name="tags", dim=4, multi=True)),
)
SAMPLES = Samples(window_size=4)
ITEMS = 22  # ids, 0 and 1 included
Vocabulary = dict[str, list[str]]  # per feature the values of ids 2, 3, ...

VALUES: Vocabulary = {
    "item_id": [f"i{n}" for n in range(20)],
    "city": ["a", "b", "c"],
    "category": ["k", "l", "m", "n"],
    "tags": [f"t{n}" for n in range(7)],
}
SIZES = {"item_id": ITEMS, "city": 5, "category": 6, "tags": 9}


def write_runs(
    path: Path, users: list[list[int]], *, held_out: bool = False, negatives: int = 0, row_group_size: int = 50
) -> SampleFile:
    """A file with a run a user, every click but the first a target; held out: the last one alone, the others seen."""
    rows: list[dict[str, Any]] = []
    for number, items in enumerate(users):
        positions = [len(items) - 1] if held_out else list(range(1, len(items)))
        tags = [[2 + (item + j) % 7 for j in range(1 + item % 3)] for item in items]
        rows.append(
            {
                "user_id": f"{path.stem}-{number}",
                "item_index": items,
                "is_target": [place in positions for place in range(len(items))],
                "example_age": [p / 4 for p in positions],
                "negatives": []
                if held_out
                else [2 + (items[p] + j) % (ITEMS - 2) for p in positions for j in range(negatives)],
                "city_index": [2 + p % 3 for p in positions],
                "category_index": [2 + item % 4 for item in items],
                "tags_index": [tag for values in tags for tag in values],
                "tags_length": [len(values) for values in tags],
            }
            | {"seen": sorted(set(items[:-1])) if held_out else []}
        )
    kinds = {"user_id": pa.string(), "example_age": pa.list_(pa.float32()), "is_target": pa.list_(pa.bool_())}
    schema = pa.schema([(name, kinds.get(name, pa.list_(pa.int32()))) for name in rows[0]])
    pq.write_table(pa.Table.from_pylist(rows, schema), path, row_group_size=row_group_size)
    return SampleFile(url=f"file://{path}", targets=sum(sum(row["is_target"]) for row in rows))


def sequences(users: int, length: int, *, ordered: bool, seed: int = 0) -> list[list[int]]:
    """Clicks that follow a fixed order of the items from a random first one, or no order at all."""
    random = np.random.default_rng(seed)
    if not ordered:
        return random.integers(2, ITEMS, (users, length)).tolist()
    starts = random.integers(0, ITEMS - 2, users)
    return [[2 + (int(start) + 3 * i) % (ITEMS - 2) for i in range(length)] for start in starts]


def make_spec(train: list[SampleFile], validation: list[SampleFile], **settings: Any) -> TrainSpec:
    """A small model that learns in seconds; `training`, `model` and other fields can be overridden."""
    training = {"loss": "full_softmax", "batch_size": 64, "epochs": 4, "learning_rate": 0.02, "device": "cpu"}
    model = {"tower": (16, 8), "encoder": "mean", "embedding_std": 0.1}
    if validation and "vocab_files" not in settings:
        folder = Path(validation[0].url.removeprefix("file://")).parent / "vocab"
        settings["vocab_files"] = write_vocab(folder, VALUES)
    return TrainSpec(
        features=FEATURES,
        samples=settings.pop("samples", SAMPLES),
        model=Model(**model | settings.pop("model", {})),
        training=Training(**training | settings.pop("training", {})),
        sizes=SIZES,
        counts=[0, 0] + [10] * (ITEMS - 2),
        train=train,
        validation=validation,
        **{"seed": 1, "vocab": "v", "inputs": "i"} | settings,
    )


def write_vocab(folder: Path, values: Vocabulary) -> tuple[str, ...]:
    """Two files, rows in no order, with the row of what is unknown that a feature may have."""
    rows = [{"feature": f, "index": 2 + n, "value": v, "count": 5} for f, own in values.items() for n, v in enumerate(own)]
    rows += [{"feature": "city", "index": 1, "value": None, "count": 3}]
    random.Random(3).shuffle(rows)
    folder.mkdir(parents=True, exist_ok=True)
    kinds = {"feature": pa.string(), "index": pa.int32(), "value": pa.string(), "count": pa.int64()}
    for part in range(2):
        pq.write_table(pa.Table.from_pylist(rows[part::2], pa.schema(kinds.items())), folder / f"{part}.parquet")
    return tuple(f"file://{folder}/{part}.parquet" for part in range(2))
