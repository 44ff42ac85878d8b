"""What breaks a job on a large log though the clicks are not more: skew, very many users and items, very many files.

Logs of the project's simulator, 10 days; protocol `day`, items that occur twice, windows of 50; Parquet in and out, the start
of the JVM apart.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

import jobs.events
import jobs.samples
import jobs.vocab
from recall_lib.commands import simulate, simulator
from recall_lib.commands.simulator import Plan, plan_for
from recall_lib.config import Config, Evaluation, Feature, Features, Input, ItemId, Paths, Samples, Spark
from recall_lib.day.context import Context
from recall_lib.store import schemas
from recall_lib.transforms.events import user_bucket
from tests.benchmarks.common import CORES, GIB, PeakMemory, Row, smaller
from tests.benchmarks.stages import Stage, last_stage, stages_after

FEW_FILES, MANY_FILES = 20, 20_000
MILLION = 1_000_000
LEAST_CLICKS = 4_000  # however small the scale
MEMORY_LIMIT = 3 * GIB  # of every process
STRAGGLER_LIMIT = 3.0  # times the median task of a stage
_STRAGGLER_SECONDS = 2.0  # a stage without a task as long is over before anyone waits for it
# A visit may go on after midnight: the log has up to a day more than the plan.
_DAYS = [f"{date.fromisoformat(simulator.FIRST_DAY) + timedelta(days=n)}" for n in range(simulator.DAYS + 2)]
DT = _DAYS.pop()


def measure(scale: float, work: Path) -> list[Row]:
    """All rows; every size is multiplied by `scale`."""

    def scaled(millions: float) -> int:
        return max(LEAST_CLICKS, int(millions * MILLION * scale))

    build(publish_clicks(work / "warm_up", plan_for(scaled(0.2))), jobs.vocab, jobs.samples)  # the JVM's code
    shutil.rmtree(work / "warm_up")
    plain = plan_for(scaled(10))
    skewed = plan_for(scaled(10), skew=0.5, robot=scaled(10) // 10)
    return [
        *skew(work, plain, skewed, negatives=0),
        *skew(work, plain, skewed, negatives=5),
        wide(work, plan_for(scaled(20), users=scaled(20) // 4, items=max(scaled(20) // 20, 1500))),
        files(work, plan_for(scaled(5)), max(FEW_FILES, int(MANY_FILES * scale))),
    ]


@dataclass(frozen=True)
class Built:
    """Seconds of some jobs, what Spark did in them, their peak memory."""

    spark: Any
    seconds: float
    stages: list[Stage]
    memory: PeakMemory


def config(root: Path, **sections: Any) -> Config:
    """The settings of the benchmark."""
    common = {
        "features": Features(item_id=ItemId(min_count=2)),
        "evaluation": Evaluation(protocol="day"),
        "paths": Paths(root=str(root)),
        "spark": Spark(master=f"local[{CORES}]"),
    }
    return Config(**common | sections)


def publish_clicks(root: Path, plan: Plan, **sections: Any) -> Context:
    """Publish the plan's clicks as events, a user's clicks of a day in one file, as the events job leaves them."""
    ctx = Context(config(root, **sections), DT, "bench")
    clicks = simulate.clicks(ctx.spark, plan).withColumn("dt", F.date_format("event_ts", "yyyy-MM-dd"))
    spread = clicks.repartition(ctx.config.spark.partitions, "dt", user_bucket())
    with ctx.tables.publishing("events", _DAYS) as staged:
        staged.write(spread, schemas.events(ctx.config.features))
    return ctx


def build(ctx: Context, *steps: Any) -> Built:
    """Run jobs, each a module or a function of the context."""
    before, started = last_stage(ctx.spark), time.perf_counter()
    with PeakMemory() as memory:
        for step in steps:
            getattr(step, "run", step)(ctx)
    return Built(ctx.spark, time.perf_counter() - started, stages_after(ctx.spark, before), memory)


# -- skew --------------------------------------------------------------------------------------------------------------
def skew(work: Path, plain: Plan, skewed: Plan, *, negatives: int) -> Iterator[Row]:
    """Rows skew and straggler, or with negatives skew_negatives and straggler_negatives."""
    suffix = "_negatives" if negatives else ""
    samples = Samples(window_size=50, negatives_per_positive=negatives)
    built = []
    for plan in (plain, skewed):
        ctx = publish_clicks(work / "skew", plan, samples=samples)
        built.append(build(ctx, jobs.vocab, jobs.samples))
        events, _ = ctx.history()
        clicks, share = events.count(), events.groupBy("item_id").count().agg(F.max("count")).first()[0] / events.count()
        shutil.rmtree(work / "skew")
    even, uneven = built
    note = f"{clicks:,} clicks, {skewed.robot:,} of one reader, {share:.0%} on one item, {negatives} negatives a target; "
    yield smaller(f"skew{suffix}", uneven.seconds, even.seconds, "s", note + "peer: as many clicks without skew")
    yield straggler(f"straggler{suffix}", uneven, even)


def straggler(name: str, built: Built, other: Built) -> Row:
    """The longest task over the median of its stage, of the stage where it is worst."""
    note = f"peer: the limit; stages without a task of {_STRAGGLER_SECONDS:g} s do not count"
    found = longest_over_median(built)
    if not found:
        return Row(name, None, STRAGGLER_LIMIT, None, "x median", f"{note}: there is no other")
    worst, longest, stage = max(found, key=lambda task: task[0])
    without = max((ratio for ratio, _, _ in longest_over_median(other)), default=0.0)
    note = f"longest task {longest:.1f} s of {stage}; without skew at worst {without:.1f}; {note}"
    return smaller(name, worst, STRAGGLER_LIMIT, "x median", note)


def longest_over_median(built: Built) -> list[tuple[float, float, Stage]]:
    """(longest task over the median one, its seconds, stage) of every stage that counts."""
    context = built.spark.sparkContext
    store = context._jsc.sc().statusStore()
    quantiles = context._gateway.new_array(context._jvm.double, 2)
    quantiles[0], quantiles[1] = 0.5, 1.0
    found = []
    for stage in built.stages:
        times = store.taskSummary(stage.number, 0, quantiles)
        if times.isDefined():
            median, longest = (times.get().executorRunTime().apply(n) / 1000 for n in (0, 1))
            if longest >= _STRAGGLER_SECONDS:
                found.append((longest / median, longest, stage))
    return found


# -- many users and items ----------------------------------------------------------------------------------------------
def wide(work: Path, plan: Plan) -> Row:
    """Row wide: peak memory of the largest process, with a vocabulary of users and one of items."""
    features = Features(item_id=ItemId(min_count=1), user=(Feature(name="user_id", min_count=1),))
    ctx = publish_clicks(work / "wide", plan, features=features)
    built = build(ctx, jobs.vocab, jobs.samples)
    made = ctx.tables.get("vocab", DT).manifest
    users, items = made["sizes"]["user_id"], made["sizes"]["item_id"]
    note = f"{made['train_clicks']:,} training clicks, {users:,} ids of users, {items:,} of items; "
    note += f"vocab and samples {built.seconds:.1f} s; resident: {built.memory}; peer: the limit of a process"
    shutil.rmtree(work / "wide")
    return smaller("wide", built.memory.largest / GIB, MEMORY_LIMIT / GIB, "GiB", note)


# -- many files --------------------------------------------------------------------------------------------------------
def files(work: Path, plan: Plan, many: int) -> Row:
    """Row files: raw log to samples, from many files against the same clicks in few."""
    ingest: Callable[[Context], None] = partial(jobs.events.run, backfill=True)
    built, made = [], []
    for wanted in (FEW_FILES, many):
        ctx = Context(config(work / "files", input=Input(path=str(work / "log"))), DT, "bench")
        log = simulate.write(ctx.spark, plan, str(work / "log"), wanted // plan.days)
        laps = [build(ctx, step) for step in (ingest, jobs.vocab, jobs.samples)]
        built.append(laps)
        made.append(log)
        shutil.rmtree(work / "files")
        shutil.rmtree(work / "log")
    few, more = (sum(lap.seconds for lap in laps) for laps in built)
    parts = ", ".join(f"{name} {lap.seconds:.1f} s" for name, lap in zip(("events", "vocab", "samples"), built[1], strict=True))
    largest = max((lap.memory for lap in built[1]), key=lambda memory: memory.largest)
    note = f"{made[1]['clicks']:,} clicks in {made[1]['files']:,} raw files: {parts}; resident: {largest}; "
    note += f"peer: the same in {made[0]['files']}"
    return smaller("files", more, few, "s", note)
