"""Held-out clicks -> metrics/dt: hit rate, NDCG, MRR, coverage and popularity of the model and three baselines.

Protocol `day` is scored once the events of dt are published; until then metrics.json says `pending` and has no figures.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from jobs.samples import publish_test_of_day
from recall_lib import schemas
from recall_lib.errors import DataRefused
from recall_lib.ids import FIRST_INDEX, ITEM_ID
from recall_lib.inference import fingerprints
from recall_lib.inference.baselines import save_baselines
from recall_lib.inference.evaluate import evaluate
from recall_lib.inference.item_counts import item_counts
from recall_lib.inference.shipping import ship_folder, ship_published
from recall_lib.job import Context, main
from recall_lib.retrieval.index import read_id_ranks
from recall_lib.transforms import metrics as transform
from recall_lib.transforms.holdout import TEST, TRAIN, assign_splits, tie_breaker
from recall_lib.transforms.popular import recent_clicks
from recall_lib.transforms.samples import first_clicks
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish metrics/dt/metrics.json."""
    protocol, tables = ctx.config.evaluation.protocol, ctx.tables
    if protocol == "day" and not tables.find("events", ctx.dt):
        head = {"protocol": protocol, "status": "pending", "users": 0, "users_new": 0, "users_repeat": 0}
        return _publish(ctx, head, {})
    stamp = fingerprints.model_of_vocab(tables, ctx.dt)
    fingerprints.require_stamp(tables, stamp, "index", ctx.dt)
    test, head, inputs = read_test(ctx)
    model, index = ship_published(tables, "models", ctx.dt), ship_published(tables, "index", ctx.dt)
    with tempfile.TemporaryDirectory() as folder:
        clicks, items = training_clicks(ctx), known_items(ctx.vocab()[0])
        recent = recent_clicks(clicks, ctx.dt, ctx.config.input.ordering, ctx.config.evaluation.recent_hours)
        popular = item_counts(tables.files("vocab", ctx.dt))
        save_baselines(Path(folder), clicks, recent, items, popular, read_id_ranks(index.folder()), ctx.config.spark.partitions)
        baselines = ship_folder(ctx.spark, Path(folder), f"baselines-{tables.run_id}")
        score = partial(evaluate, model=model, index=index, baselines=baselines, filter_seen=ctx.config.top_n.filter_seen)
        tally = transform.add_up(test.mapInArrow(score, transform.TALLY)).persist()
        vocab = ctx.vocab()[0].where(F.col("feature") == ITEM_ID).withColumnRenamed("index", "item_index")
        size = tables.manifest("vocab", ctx.dt)["sizes"][ITEM_ID] - FIRST_INDEX
        report = transform.report(head, tally, vocab.select("item_index", "count"), size)
        tally.unpersist()
    _publish(ctx, report, inputs | {"models": model.digest, "index": index.digest})


def read_test(ctx: Context) -> tuple[DataFrame, dict[str, Any], dict[str, str]]:
    """The scored test rows, the head of metrics.json, and the inputs' digests.

    With protocol `day` the split is made here if the events of dt came, or changed, after the samples.

    Raises:
        DataRefused: the split is missing or was made with another vocabulary.
    """
    tables, protocol = ctx.tables, ctx.config.evaluation.protocol
    made_from = {"vocab": tables.manifest("vocab", ctx.dt)["digest"]}
    if protocol == "day":
        made_from[f"events/dt={ctx.dt}"] = tables.manifest("events", ctx.dt)["digest"]
        published = (
            tables.manifest("samples", ctx.dt, split=TEST) if tables.find("samples", ctx.dt, split=TEST) else {"inputs": {}}
        )
        if not made_from.items() <= published["inputs"].items():
            publish_test_of_day(ctx)
    manifest = tables.manifest("samples", ctx.dt, split=TEST)
    if not made_from.items() <= manifest["inputs"].items():
        raise DataRefused(f"samples/dt={ctx.dt} was made with another vocabulary: run `recall samples --dt {ctx.dt}`")
    test = tables.read("samples", ctx.dt, schemas.runs(ctx.config.features, seen=True), split=TEST)
    head = {"protocol": protocol, "status": "final", "users_new": manifest.get("users_new", 0), "users_repeat": 0}
    if protocol == "day" and ctx.config.top_n.filter_seen:
        # By raw ids: an item that the vocabulary lacks can be a repetition too, and `seen` does not have it.
        events, _ = ctx.history()
        firsts = first_clicks(tie_breaker(tables.read("events", ctx.dt, schemas.events(ctx.config.features))))
        test = test.join(transform.repeated_users(firsts, events), "user_id", "left_anti")
        head["users_repeat"] = manifest["users_repeat"]
    return test, head, made_from | {"samples": manifest["digest"]}


def training_clicks(ctx: Context) -> DataFrame:
    """What the baselines may know, with `tie`: not the held-out clicks of `last_click`; with `day` all before dt."""
    events, _ = ctx.history()
    if ctx.config.evaluation.protocol == "day":
        return tie_breaker(events)
    return assign_splits(events, "last_click", ctx.config.seed).where(F.col("split") == TRAIN)


def _publish(ctx: Context, report: Mapping[str, Any], inputs: dict[str, str]) -> None:
    facts = {"status": report["status"], "users": report["users"]}
    with ctx.tables.publish_files("metrics", ctx.dt, inputs=inputs, facts=facts) as folder:
        (folder / "metrics.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    figures = [
        f"{name} hr@10 {report[name]['hr@10']:.4f}" for name in transform.RECOMMENDERS if report.get(name) and report["users"]
    ]
    ctx.say(f"{report['status']}, {report['users']} users; " + ", ".join(figures))


if __name__ == "__main__":
    sys.exit(main(run))
