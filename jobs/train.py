"""Train the model on the samples of a day and publish it as models/dt=<day>.

Reads samples/dt (train, validation) and vocab/dt; writes the weights (safetensors), what they mean (JSON), the log (JSON
lines and TensorBoard events), and moves models/latest.json forward. A killed run is taken up again from its last epoch. With
training.init `yesterday` the weights are at first those of models/dt of the day before; with training.max_hr_drop a model that
is too much worse than the one that serves the day before is published, but does not serve.
"""

from __future__ import annotations

import sys
from typing import Any

from recall_lib.errors import DataRefused
from recall_lib.inference import fingerprints
from recall_lib.inference.item_counts import item_counts
from recall_lib.io.tables import Tables
from recall_lib.job import Context, main
from recall_lib.training import promotion
from recall_lib.training.launch import launch
from recall_lib.training.shards import plan
from recall_lib.training.spec import FirstWeights, TrainSpec, first_weights, sample_files


def run(ctx: Context) -> None:
    """Train and publish one day's model."""
    first = first_weights(Tables(ctx.config), ctx.dt)  # before Spark starts
    config, tables = ctx.config, ctx.tables
    inputs = _inputs(ctx, first)
    spec = _spec(ctx, inputs, first)
    plan([file.targets for file in spec.train], config.training.ranks, config.training.batch_size)
    facts: dict[str, Any] = {"init": "yesterday" if first else "scratch"}
    with tables.publish_files("models", ctx.dt, inputs=inputs, facts=facts) as folder:
        facts.update(launch(spec, folder))
        facts["digest"] = facts["version"]  # the files' own would tell of clocks and speeds in the logs
        verdict = promotion.judge(tables, ctx.dt, facts["version"], facts["validation"])
        facts["serving_dt"] = verdict.serving_dt
        inputs.update(verdict.inputs)
    checkpoint = _checkpoint(tables, ctx.dt)
    if tables.fs.exists(checkpoint):
        tables.fs.rm(checkpoint)
    tables.point_to_latest("models", verdict.serving_dt, in_place_of=ctx.dt, version=verdict.version)
    start = f", started from models/dt={first.dt}" if first else ""
    ctx.say(
        f"model {facts['version']} from {facts['targets']} targets in {facts['seconds']} s{start}, "
        f"validation {facts['validation']}"
    )
    if verdict.why:
        ctx.say(verdict.why)


def _inputs(ctx: Context, first: FirstWeights | None) -> dict[str, str]:
    """The digest of everything that decides the weights, by name.

    Raises:
        DataRefused: a table is missing, or was made with another vocabulary or for other settings.
    """
    config, tables = ctx.config, ctx.tables
    inputs = {"vocab": tables.manifest("vocab", ctx.dt)["digest"]}
    for split in ("train", "validation"):
        manifest = tables.require_settings("samples", ctx.dt, split=split)
        if manifest["inputs"].get("vocab") != inputs["vocab"]:
            raise DataRefused(
                f"samples/dt={ctx.dt}/split={split} was made with another vocabulary: run `recall samples --dt {ctx.dt}`"
            )
        if manifest.get("target_days") != config.target_days(ctx.dt):
            raise DataRefused(
                f"samples/dt={ctx.dt}/split={split} was made for another training.init or yesterday_days: "
                f"run `recall samples --dt {ctx.dt}`"
            )
        inputs[split] = manifest["digest"]
    if config.model.item_rows != "own":
        inputs["items"] = fingerprints.items_of_vocab(tables, ctx.dt)["digest"]
    if first:
        inputs[f"models/dt={first.dt}"] = first.version
    return inputs


def _spec(ctx: Context, inputs: dict[str, str], first: FirstWeights | None) -> TrainSpec:
    config, tables = ctx.config, ctx.tables
    vocab, vocab_files = tables.manifest("vocab", ctx.dt), tables.files("vocab", ctx.dt)
    files = {
        split: sample_files(
            tables.uri(tables.folder("samples", ctx.dt, split=split)), tables.manifest("samples", ctx.dt, split=split)
        )
        for split in ("train", "validation")
    }
    return TrainSpec(
        features=config.features,
        samples=config.samples,
        model=config.model,
        training=config.training,
        seed=config.seed,
        filter_seen=config.top_n.filter_seen,
        sizes=vocab["sizes"],
        counts=item_counts(vocab_files).tolist(),
        train=files["train"],
        validation=files["validation"],
        items=tables.files("items", ctx.dt) if "items" in inputs else (),
        vocab=vocab["digest"],
        vocab_files=vocab_files,
        first=first,
        inputs=" ".join(inputs.values()),
        checkpoint=tables.uri(_checkpoint(tables, ctx.dt)),
    )


def _checkpoint(tables: Tables, dt: str) -> str:
    return f"{tables.root}/_checkpoints/models-dt={dt}.safetensors"


if __name__ == "__main__":
    sys.exit(main(run))
