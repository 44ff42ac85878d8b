"""What a training run is given, as JSON: the same for this process, for local ranks and for Spark executors."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from recall_lib.config import Features, Model, Samples, Section, Training
from recall_lib.process.errors import DataRefused, UsageError

if TYPE_CHECKING:
    from recall_lib.store.publication import Publication
    from recall_lib.store.tables import Tables


class SampleFile(Section):
    """A file of samples."""

    url: str  # file:///..., hdfs://..., s3://...
    targets: int


def sample_files(split: Publication) -> list[SampleFile]:
    """The files of a split, with the targets (an example_age each) that its manifest counts."""
    targets = [file["values"].get("example_age", 0) for file in split.manifest["files"]]
    return [SampleFile(url=url, targets=n) for url, n in zip(split.files, targets, strict=True)]


class FirstWeights(Section):
    """An earlier day's model, to start from."""

    dt: str
    version: str
    folder: str  # address of models/dt
    vocab: tuple[str, ...]  # addresses of the files of the vocabulary it was trained on


def first_weights(tables: Tables, dt: str) -> FirstWeights | None:
    """The model that the training of a day starts from (training.init); None: from scratch.

    Raises:
        UsageError: it is not published, is of other settings, or its vocabulary has been made anew since.
    """
    day = tables.config.training.starts_from(dt)
    if day is None:
        return None
    way_out = f"or start {dt} anew with --set training.init=scratch"
    if not tables.find("models", day):
        raise UsageError(f"training.init yesterday starts from models/dt={day}, which is not published: run {day}, {way_out}")
    try:
        model = tables.require_settings("models", day, "features", "model", "samples.window_size", "samples.order")
        vocab = tables.get("vocab", day)
    except DataRefused as error:
        raise UsageError(f"{error}; {way_out}") from None
    if vocab.digest != model.inputs["vocab"]:
        raise UsageError(f"models/dt={day} was trained on another vocabulary than vocab/dt={day}: run {day} again, {way_out}")
    return FirstWeights(dt=day, version=model.manifest["version"], folder=model.uri, vocab=vocab.files)


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
    vocab_files: tuple[str, ...] = ()  # its files' addresses; asked for where `validation` or `first` is
    first: FirstWeights | None = None  # null: weights are drawn
    inputs: str  # digests of all tables and models that the run reads
    filter_seen: bool = True  # whether validation, like the top-N table, leaves out what a user has clicked
    checkpoint: str | None = None  # an address that all ranks' machines can reach; null: none is kept

    @property
    def streamed(self) -> Features:
        """The features that are read with the samples: not the items' where the model knows those of the whole catalogue."""
        return self.features if self.model.item_rows == "own" else self.features.model_copy(update={"item": []})

    def fingerprint(self) -> str:
        """sha256 of what a checkpoint depends on: neither where files lie nor where the ranks run."""
        places = {"train", "validation", "items", "checkpoint", "vocab_files", "first"}  # what they hold is in `inputs`
        facts = self.model_dump(mode="json", exclude=places)
        facts["training"] = self.training.model_dump(mode="json", exclude={"resume", "launcher"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
