"""Compare the model with its baselines on held-out clicks, and publish metrics.json.

The figures are hit rate, recall, NDCG, MRR, coverage and popularity.

With `evaluation.protocol: day` the clicks of dt are the test. Until the events of dt are published,
metrics.json has the status "pending" and no figures. If they came or changed after the samples, this
job also publishes the test samples.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from jobs.samples import publish_test_of_day
from recall_lib.day.baselines import save_baselines
from recall_lib.day.context import Context
from recall_lib.day.inputs import baseline_clicks, read_test, test_of_day_is_current
from recall_lib.day.job import main
from recall_lib.inference.evaluate import evaluate
from recall_lib.inference.shipping import ship_folder, ship_published
from recall_lib.retrieval.index import read_id_ranks
from recall_lib.samples.ids import FIRST_INDEX, ITEM_ID
from recall_lib.spark.executors import map_batches
from recall_lib.store import schemas
from recall_lib.store.arrays import item_counts
from recall_lib.transforms import metrics as transform
from recall_lib.transforms.popular import recent_clicks
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish metrics/dt/metrics.json."""
    protocol, tables = ctx.config.evaluation.protocol, ctx.tables
    if protocol == "day" and not tables.find("events", ctx.dt):
        head = {"protocol": protocol, "status": "pending", "users": 0, "users_new": 0, "users_repeat": 0}
        return _publish(ctx, head, {})
    serving = ctx.serving
    published_index = serving.require(tables.get("index", ctx.dt))
    if protocol == "day" and serving.dt == ctx.dt and not test_of_day_is_current(ctx):
        publish_test_of_day(ctx)  # the events of dt may have come, or changed, after the samples
    test, head, inputs = read_test(ctx)
    model, index = ship_published(ctx.spark, serving.model), ship_published(ctx.spark, published_index)
    with tempfile.TemporaryDirectory() as folder:
        vocab = serving.vocab.read(schemas.VOCAB)
        clicks, items = baseline_clicks(ctx), known_items(vocab)
        recent = recent_clicks(clicks, ctx.dt, ctx.config.input, ctx.config.evaluation.recent_hours)
        popular = item_counts(serving.vocab.files)
        save_baselines(Path(folder), clicks, recent, items, popular, read_id_ranks(index.folder()), ctx.config.spark.partitions)
        baselines = ship_folder(ctx.spark, Path(folder), f"baselines-{tables.run_id}")
        score = partial(evaluate, model=model, index=index, baselines=baselines, filter_seen=ctx.config.top_n.filter_seen)
        tally = transform.add_up(map_batches(test, score, transform.TALLY)).persist()
        vocab = vocab.where(F.col("feature") == ITEM_ID).withColumnRenamed("index", "item_index")
        size = serving.vocab.manifest["sizes"][ITEM_ID] - FIRST_INDEX
        report = transform.report(head, tally, vocab.select("item_index", "count"), size)
        tally.unpersist()
    _publish(ctx, report, inputs | {"models": model.digest, "index": index.digest})


def _publish(ctx: Context, report: Mapping[str, Any], inputs: dict[str, str]) -> None:
    facts = {"status": report["status"], "users": report["users"]}
    with ctx.tables.publishing("metrics", ctx.dt, inputs=inputs, facts=facts) as staged:
        (staged.folder / "metrics.json").write_text(json.dumps(report, indent=1), encoding="utf-8")
    figures = [
        f"{name} hr@10 {report[name]['hr@10']:.4f}" for name in transform.RECOMMENDERS if report.get(name) and report["users"]
    ]
    ctx.say(f"{report['status']}, {report['users']} users; " + ", ".join(figures))


if __name__ == "__main__":
    sys.exit(main(run))
