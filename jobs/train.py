"""Train the model on a day's samples and publish it in models.

Reads samples (train, validation), vocab and, if the model needs it, items. Publishes the weights
(safetensors), their description (JSON) and the training log (JSON lines, TensorBoard events), and
points models/latest.json at the model that serves.

An interrupted run resumes from its last finished epoch. With `training.init: yesterday` training
starts from the weights of the day before. With `training.max_hr_drop` a model whose validation hit
rate falls too far below the serving model's is published, but the earlier model keeps serving.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.process.errors import DataRefused
from recall_lib.samples.build import TRAIN, VALIDATION
from recall_lib.store.arrays import item_counts
from recall_lib.store.publication import Publication
from recall_lib.store.serving import items_of_vocab
from recall_lib.store.tables import Tables
from recall_lib.training import promotion
from recall_lib.training.launch import backend, launch
from recall_lib.training.shards import plan
from recall_lib.training.spec import FirstWeights, TrainSpec, first_weights, sample_files


@dataclass(frozen=True)
class Inputs:
    """Everything that decides the weights, as it was found.

    Attributes:
        vocab: the day's vocabulary.
        splits: the samples, by split: `train` and `validation`.
        items: items/dt, the items' features and prior; None if the model needs neither.
        first: the initial weights; None if they are drawn at random.
    """

    vocab: Publication
    splits: dict[str, Publication]
    items: Publication | None
    first: FirstWeights | None

    def digests(self) -> dict[str, str]:
        """The digest of each of them, by name."""
        tables = [self.vocab, *self.splits.values(), *([self.items] if self.items else [])]
        found = {table.name_in_day: table.digest for table in tables}
        if self.first:
            found[f"models/dt={self.first.dt}"] = self.first.version
        return found


def run(ctx: Context) -> None:
    """Train and publish one day's model."""
    over = backend(ctx.config.training)  # before Spark starts
    tables, training = ctx.tables, ctx.config.training
    found = _inputs(ctx)
    spec = _spec(ctx, found)
    plan([file.targets for file in spec.train], training.ranks, training.batch_size)
    facts: dict[str, Any] = {"init": "yesterday" if found.first else "scratch", "backend": over}
    with tables.publishing("models", ctx.dt, inputs=found.digests(), facts=facts) as staged:
        facts |= launch(spec, staged.folder)
        verdict = promotion.decide(tables, ctx.dt, facts["version"], facts["validation"])
        # The files' own digest would tell of clocks and speeds in the logs.
        staged.facts |= facts | {"digest": facts["version"], "serving_dt": verdict.serving_dt}
        staged.inputs |= verdict.inputs
    checkpoint = _checkpoint(tables, ctx.dt)
    if tables.fs.exists(checkpoint):
        tables.fs.rm(checkpoint)
    tables.point_to_latest("models", verdict.serving_dt, in_place_of=ctx.dt, version=verdict.version)
    ranks = f" on {training.ranks} ranks over {over}" if over else ""
    start = f", started from models/dt={found.first.dt}" if found.first else ""
    ctx.say(
        f"model {facts['version']} from {facts['targets']} targets in {facts['seconds']} s{ranks}{start}, "
        f"validation {facts['validation']}"
    )
    if verdict.why:
        ctx.say(verdict.why)


def _inputs(ctx: Context) -> Inputs:
    """What the model is made from.

    Raises:
        DataRefused: a table is missing, or was made with another vocabulary or for other settings.
        UsageError: there is no model of the day before to start from.
    """
    config, tables = ctx.config, ctx.tables
    first = first_weights(tables, ctx.dt)
    vocab, splits = tables.get("vocab", ctx.dt), {}
    for split in (TRAIN, VALIDATION):
        splits[split] = samples = tables.require_settings("samples", ctx.dt, split=split)
        if samples.inputs.get("vocab") != vocab.digest:
            raise DataRefused(f"{samples.name} was made with another vocabulary: run `recall samples --dt {ctx.dt}`")
        if samples.manifest.get("target_days") != config.target_days(ctx.dt):
            raise DataRefused(
                f"{samples.name} was made for another training.init or yesterday_days: run `recall samples --dt {ctx.dt}`"
            )
    items = items_of_vocab(tables, vocab) if config.model.asks_for_items else None
    return Inputs(vocab, splits, items, first)


def _spec(ctx: Context, found: Inputs) -> TrainSpec:
    config = ctx.config
    return TrainSpec(
        features=config.features,
        samples=config.samples,
        model=config.model,
        training=config.training,
        seed=config.seed,
        filter_seen=config.top_n.filter_seen,
        sizes=found.vocab.manifest["sizes"],
        counts=item_counts(found.vocab.files).tolist(),
        train=sample_files(found.splits[TRAIN]),
        validation=sample_files(found.splits[VALIDATION]),
        items=found.items.files if found.items else (),
        vocab=found.vocab.digest,
        vocab_files=found.vocab.files,
        first=found.first,
        inputs=" ".join(found.digests().values()),
        checkpoint=ctx.tables.uri(_checkpoint(ctx.tables, ctx.dt)),
    )


def _checkpoint(tables: Tables, dt: str) -> str:
    return f"{tables.root}/_checkpoints/models-dt={dt}.safetensors"


if __name__ == "__main__":
    sys.exit(main(run))
