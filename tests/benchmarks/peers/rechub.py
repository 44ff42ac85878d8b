"""Preset F's training with torch-rechub: its YoutubeDNN, MatchDataGenerator and MatchTrainer, as its documentation has them.

Argument: JSON {windows, batch_size, negatives, dim, tower, threads, workers}: an .npz file of the training windows
(`history` padded with 0 after the end, `target`, `example_age`, a column for each user feature) and of the vocabularies'
`sizes` as JSON; PyTorch's threads and the DataLoader's workers. Prints JSON {seconds, targets, version}: of one epoch, data
preparation and imports apart.

Not called torch_rechub.py: a script's own folder comes first on Python's path.
"""

import importlib.metadata
import json
import sys
import tempfile
import time
from collections import OrderedDict
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import torch
from torch_rechub.basic.features import DenseFeature, SequenceFeature, SparseFeature
from torch_rechub.models.matching import YoutubeDNN
from torch_rechub.trainers import MatchTrainer
from torch_rechub.utils.data import MatchDataGenerator
from torch_rechub.utils.match import negative_sample


def read_windows(task: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The columns of the model's input, a row a target, and the number of ids of each vocabulary."""
    with np.load(task["windows"]) as file:
        columns = {name: file[name] for name in file.files}
    sizes = json.loads(str(columns.pop("sizes")))
    items, counts = np.unique(columns["target"], return_counts=True)
    most_first = np.argsort(-counts)
    by_count = OrderedDict(zip(items[most_first].tolist(), counts[most_first].tolist(), strict=True))
    drawn = negative_sample(by_count, ratio=len(columns["target"]) * task["negatives"])
    return columns | {"negatives": drawn.reshape(-1, task["negatives"])}, sizes


def make_model(task: dict[str, Any], sizes: dict[str, int]) -> YoutubeDNN:
    """One table of items for history, target and negatives; the history is averaged over its clicks, not its padding."""
    items = {"vocab_size": sizes["item_id"], "embed_dim": task["dim"]}
    of_user = [SparseFeature(name, vocab_size=size, embed_dim=task["dim"]) for name, size in sizes.items() if name != "item_id"]
    history = SequenceFeature("history", **items, pooling="mean", shared_with="target", padding_idx=0)
    target = SparseFeature("target", **items)
    negatives = SequenceFeature("negatives", **items, pooling="concat", shared_with="target")
    return YoutubeDNN(
        [*of_user, history, DenseFeature("example_age")], [target], [negatives], user_params={"dims": task["tower"]}
    )


def main() -> None:
    """Prepare the data, then train one epoch, timed."""
    task = json.loads(sys.argv[1])
    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    np.random.seed(0)
    x, sizes = read_windows(task)
    # Label 0: the first of a target's scores is the clicked item's.
    generator = MatchDataGenerator(x=x, y=np.zeros(len(x["target"]), np.int64))
    batches, _, _ = generator.generate_dataloader(x, x, batch_size=task["batch_size"], num_workers=task["workers"])
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        trainer = MatchTrainer(make_model(task, sizes), mode=2, optimizer_params={"lr": 0.001}, n_epoch=1, model_path=folder)
        started = time.perf_counter()
        trainer.fit(batches)
        seconds = time.perf_counter() - started
    found = {"seconds": seconds, "targets": len(x["target"]), "version": importlib.metadata.version("torch-rechub")}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
