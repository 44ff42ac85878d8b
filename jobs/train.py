"""Train the model on the samples of a day and publish it as models/dt=<day>.

Reads samples/dt (train, validation) and vocab/dt; writes the weights (safetensors), what they mean (JSON), the log (JSON
lines and TensorBoard events), and moves models/latest.json forward. A killed run is taken up again from its last epoch.
"""

from __future__ import annotations

import sys
from typing import Any

from recall_lib.errors import DataRefused
from recall_lib.inference import fingerprints
from recall_lib.inference.item_counts import item_counts
from recall_lib.job import Context, main
from recall_lib.training.launch import launch
from recall_lib.training.shards import plan
from recall_lib.training.spec import TrainSpec, sample_files


def run(ctx: Context) -> None:
    """Train and publish one day's model."""
    config, tables = ctx.config, ctx.tables
    vocab = tables.manifest("vocab", ctx.dt)
    same = ("features", "samples")
    splits = {split: tables.require_settings("samples", ctx.dt, *same, split=split) for split in ("train", "validation")}
    for split, manifest in splits.items():
        if manifest["inputs"].get("vocab") != vocab["digest"]:
            raise DataRefused(
                f"samples/dt={ctx.dt}/split={split} was made with another vocabulary: run `recall samples --dt {ctx.dt}`"
            )
    folders = {split: tables.uri(tables.folder("samples", ctx.dt, split=split)) for split in splits}
    files = {split: sample_files(folders[split], manifest) for split, manifest in splits.items()}
    known = fingerprints.items_of_vocab(tables, ctx.dt) if config.model.item_rows != "own" else None
    checkpoint = f"{tables.root}/_checkpoints/models-dt={ctx.dt}.safetensors"
    inputs = {"vocab": vocab["digest"]} | {split: manifest["digest"] for split, manifest in splits.items()}
    inputs |= {"items": known["digest"]} if known else {}
    spec = TrainSpec(
        features=config.features,
        samples=config.samples,
        model=config.model,
        training=config.training,
        seed=config.seed,
        filter_seen=config.top_n.filter_seen,
        sizes=vocab["sizes"],
        counts=item_counts(tables.files("vocab", ctx.dt)).tolist(),
        train=files["train"],
        validation=files["validation"],
        items=tables.files("items", ctx.dt) if known else (),
        vocab=vocab["digest"],
        inputs=" ".join(inputs.values()),
        checkpoint=tables.uri(checkpoint),
    )
    plan([file.targets for file in spec.train], config.training.ranks, config.training.batch_size)
    facts: dict[str, Any] = {}
    with tables.publish_files("models", ctx.dt, inputs=inputs, facts=facts) as folder:
        facts.update(launch(spec, folder))
        facts["digest"] = facts["version"]  # the files' own would tell of clocks and speeds in the logs
    if tables.fs.exists(checkpoint):
        tables.fs.rm(checkpoint)
    tables.point_to_latest("models", ctx.dt, version=facts["version"])
    ctx.say(
        f"model {facts['version']} from {facts['targets']} targets in {facts['seconds']} s, validation {facts['validation']}"
    )


if __name__ == "__main__":
    sys.exit(main(run))
