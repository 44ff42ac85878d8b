"""The input of a training run, as JSON: the same for this process, local ranks and Spark executors."""

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
    targets: int  # in this file


def sample_files(split: Publication) -> list[SampleFile]:
    """The files of a split with their numbers of targets, from its manifest: each target has one example_age."""
    targets = [file["values"].get("example_age", 0) for file in split.manifest["files"]]
    return [SampleFile(url=url, targets=n) for url, n in zip(split.files, targets, strict=True)]


class FirstWeights(Section):
    """An earlier day's model, to start from."""

    dt: str
    version: str
    folder: str  # address of models/dt
    vocab: tuple[str, ...]  # addresses of the vocabulary's files that it was trained on


def first_weights(tables: Tables, dt: str) -> FirstWeights | None:
    """The model that the training of a day starts from (training.init); None if it starts from scratch.

    Raises:
        UsageError: that model is not published, has other settings, or its vocabulary was made again after it.
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
    """Everything that decides the weights, and the checkpoint that an interrupted run resumes from."""

    features: Features
    samples: Samples
    model: Model
    training: Training
    seed: int
    sizes: dict[str, int]  # number of ids of each feature
    counts: list[int]  # training clicks of each item id
    train: list[SampleFile]
    validation: list[SampleFile]
    items: tuple[str, ...] = ()  # addresses of the files of items/dt; empty: the model does not need them
    vocab: str  # the vocabulary's fingerprint
    vocab_files: tuple[str, ...] = ()  # addresses of the vocabulary's files; needed for `validation` and `first`
    first: FirstWeights | None = None  # null: weights are drawn at random
    inputs: str  # digests of all tables and models that the run reads
    filter_seen: bool = True  # whether validation, like the top-N table, leaves out the items that a user has clicked
    checkpoint: str | None = None  # an address that all ranks' machines can reach; null: no checkpoint is kept

    @property
    def streamed(self) -> Features:
        """The features read with the samples. Without item features if model.item_rows reads them from items/dt."""
        if self.model.item_rows == "own":
            return self.features
        of_users = tuple(number for number in self.features.numbers if number.of == "user")
        return self.features.model_copy(update={"item": (), "numbers": of_users})

    def fingerprint(self) -> str:
        """sha256 of everything that a checkpoint depends on, which excludes the places of files and of ranks."""
        places = {"train", "validation", "items", "checkpoint", "vocab_files", "first"}  # `inputs` covers their content
        facts = self.model_dump(mode="json", exclude=places)
        facts["training"] = self.training.model_dump(mode="json", exclude={"resume", "launcher"})
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
