"""What a training run is given, as JSON: the same for this process, for local ranks and for Spark executors."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from recall_lib.config import Features, Model, Samples, Section, Training


class SampleFile(Section):
    """A file of samples."""

    url: str  # file:///..., hdfs://..., s3://...
    targets: int


def sample_files(folder: str, manifest: Mapping[str, Any]) -> list[SampleFile]:
    """The files of a split that lies at `folder` (a URI), with the targets (an example_age each) that its manifest counts."""
    return [
        SampleFile(url=f"{folder}/{file['name']}", targets=file["values"].get("example_age", 0)) for file in manifest["files"]
    ]


class TrainSpec(Section):
    """Everything that decides the weights, and where a stopped run is taken up again."""

    features: Features
    samples: Samples
    model: Model
    training: Training
    seed: int
    sizes: dict[str, int]  # ids of each feature
    counts: list[int]  # training clicks of each item id
    train: list[SampleFile]
    validation: list[SampleFile]
    items: tuple[str, ...] = ()  # addresses of the files of items/dt; empty: the model does not ask for them
    vocab: str  # the vocabulary's fingerprint
    inputs: str  # digest of the samples
    filter_seen: bool = True  # whether validation, as the top-N table, leaves out what a user has clicked
    checkpoint: str | None = None  # an address that all ranks' machines can reach; null: none is kept

    @property
    def streamed(self) -> Features:
        """The features that are read with the samples: not the items' where the model knows those of the whole catalogue."""
        return self.features if self.model.item_rows == "own" else self.features.model_copy(update={"item": []})

    def fingerprint(self) -> str:
        """sha256 of what a checkpoint depends on: neither where files lie nor where the ranks run."""
        facts = self.model_dump(mode="json", exclude={"train": True, "validation": True, "items": True, "checkpoint": True})
        facts["training"] = self.training.model_dump(mode="json", exclude={"resume", "launcher"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
