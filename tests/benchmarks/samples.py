"""Events -> vocabulary -> samples, beside pandas, Polars and the floor; how time, memory and bytes grow.

All sides: protocol `day`, no feature but the item, items that occur twice, windows of 50, no negatives; Parquet in and out,
with the start of the JVM, of Python and its imports apart.
"""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import jobs.events
import jobs.samples
import jobs.vocab
from recall_lib.config import Config, Evaluation, Features, ItemId, Paths, Samples, Spark, load_config
from recall_lib.day.context import Context
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Segments
from recall_lib.transforms.holdout import validates
from tests.benchmarks.common import CORES, GIB, ROOT, PeakMemory, Row, faster, run_peer, smaller
from tests.benchmarks.log import CLICKS_A_USER, DT, ITEMS, publish_log
from tests.benchmarks.stages import Stage, last_stage, profile, stages_after

WINDOW, MIN_COUNT, PARTITIONS = 50, 2, 8
REPEATS = 3  # of every measurement; the fastest counts
LEAST_CLICKS = 4_000  # however small the scale
MEMORY_LIMIT = 3 * GIB  # of every process
_MB = 1e6


def measure(scale: float, work: Path) -> list[Row]:
    """All rows, in the issue's order; every size is multiplied by `scale`."""

    def clicks(at_full_scale: int) -> int:
        return max(LEAST_CLICKS, int(at_full_scale * scale))

    check_and_warm_up(work, clicks(200_000))
    million, ten, fifty = (clicks(n * 1_000_000) for n in (1, 10, 50))
    build(work, fifty)  # first, so that the JVM has compiled what it runs before the smaller sizes are measured
    return [
        *against_pandas(work, ours=ten, pandas=clicks(100_000)),
        against_polars(work, ten),
        against_floor(work, ten),
        growth("growth_1m_10m", build(work, million), build(work, ten)),
        growth("growth_10m_50m", build(work, ten), build(work, fifty)),
        bytes_of_windows(work, million),
        *where_time_goes(build(work, ten)),
        *peak_memory(build(work, ten), build(work, fifty)),
        compressed(build(work, ten)),
        *globo(work, Path(os.environ.get("RECALL_TEST_DATA", ROOT.parent / "shared" / "data")) / "globo", whole=scale >= 1),
    ]


# -- ours --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Built:
    """The fastest of some builds of one log, whose tables are still there.

    Attributes:
        clicks: of the log.
        vocab, samples: seconds of the two jobs.
        vocab_stages, samples_stages: what Spark did in them.
        memory: peak over all builds.
    """

    ctx: Context
    clicks: int
    vocab: float
    samples: float
    vocab_stages: list[Stage]
    samples_stages: list[Stage]
    memory: PeakMemory

    @property
    def seconds(self) -> float:
        """Events to samples."""
        return self.vocab + self.samples

    @property
    def speed(self) -> float:
        """Clicks a second."""
        return self.clicks / self.seconds


def config(root: Path) -> Config:
    """The settings of the benchmark."""
    return Config(
        features=Features(item_id=ItemId(min_count=MIN_COUNT)),
        samples=Samples(window_size=WINDOW),
        evaluation=Evaluation(protocol="day"),
        paths=Paths(root=str(root)),
        spark=Spark(master=f"local[{CORES}]", partitions=PARTITIONS),
    )


@cache
def log(work: Path, clicks: int) -> tuple[Context, int]:
    """A log of about so many published clicks, and how many; made once."""
    ctx = Context(config(work / str(clicks)), DT, "bench")
    return ctx, publish_log(ctx, clicks)


@cache
def build(work: Path, clicks: int) -> Built:
    """The fastest of REPEATS builds of vocabulary and samples of a log; measured once a size."""
    ctx, clicks = log(work, clicks)
    runs = []
    with PeakMemory() as memory:
        for _ in range(REPEATS):
            before, started = last_stage(ctx.spark), time.perf_counter()
            jobs.vocab.run(ctx)
            between, vocab_done = last_stage(ctx.spark), time.perf_counter()
            jobs.samples.run(ctx)
            seconds = (vocab_done - started, time.perf_counter() - vocab_done)
            of_vocab = [stage for stage in stages_after(ctx.spark, before) if stage.number <= between]
            runs.append(Built(ctx, clicks, *seconds, of_vocab, stages_after(ctx.spark, between), memory))
    return min(runs, key=lambda run: run.seconds)


def files(ctx: Context, dataset: str) -> list[str]:
    """The Parquet files of a dataset, or of a split of samples as `samples/dt=.../split=...`."""
    return sorted(map(str, (Path(ctx.config.paths.root) / dataset).rglob("*.parquet")))


def size(paths: list[str]) -> int:
    """Bytes of files."""
    return sum(Path(path).stat().st_size for path in paths)


def samples_of(split: str) -> str:
    """The dataset of a split."""
    return f"samples/dt={DT}/split={split}"


# -- the same samples --------------------------------------------------------------------------------------------------
def check_and_warm_up(work: Path, clicks: int) -> None:
    """Build a small log, which warms the JVM up, and refuse to measure a peer that makes other samples.

    Raises:
        SystemExit: Polars made other samples than ours.
    """
    ctx = build(work, clicks).ctx
    require_same(ctx, run_polars(work, ctx)["out"])


def require_same(ctx: Context, peer: str) -> None:
    """Compare the windows of ours and of the peer as multisets (SystemExit if they differ)."""
    for split in ("train", "validation"):
        ours, theirs = our_windows(ctx, split), peer_windows(Path(peer) / f"{split}.parquet", split)
        if ours != theirs:
            one = next(iter((ours - theirs) or (theirs - ours)))
            raise SystemExit(
                f"bench: the peer's {split} samples are not ours: {(ours - theirs).total()} of {ours.total()} are ours alone, "
                f"{(theirs - ours).total()} the peer's, e.g. {one}: nothing is reported"
            )


Window = tuple[str, tuple[int, ...], int, float]  # user_id, history, target, example_age


def our_windows(ctx: Context, split: str) -> Counter[Window]:
    """The windows that training cuts out of a published split."""
    windows: Counter[Window] = Counter()
    for users, history, target, age in cut(ctx, split):
        histories = (tuple(own.tolist()) for own in np.split(history.values, history.offsets[1:-1]))
        windows.update(zip(users, histories, target.tolist(), age.tolist(), strict=True))
    return windows


def cut(ctx: Context, split: str) -> Iterator[tuple[list[str], Ragged, np.ndarray, np.ndarray]]:
    """Per published file: user_id, history, target and example_age of all its targets."""
    for file in files(ctx, samples_of(split)):
        table = pq.read_table(file)
        runs = Segments.from_arrow(table, ctx.config.features, ctx.config.samples)
        found = runs.windows(np.arange(len(runs)))
        users = table.column("user_id").take(pa.array(runs.segment_of_target)).to_pylist()
        yield users, found.history, found.target, found.example_age


def peer_windows(path: Path, split: str) -> Counter[Window]:
    """The windows of a file with one row a user, cut click by click: training has all targets, the rest the last one."""
    windows: Counter[Window] = Counter()
    for row in pq.read_table(path).to_pylist():
        items, last = row["item_index"], len(row["item_index"]) - 1
        for place in range(1 if split == "train" else last, last + 1):
            age = row["example_age"][place - 1] if split == "train" else 0.0
            windows[row["user_id"], tuple(items[max(0, place - WINDOW) : place]), items[place], age] += 1
    return windows


# -- peers -------------------------------------------------------------------------------------------------------------
def run_polars(work: Path, ctx: Context) -> dict[str, Any]:
    """Make the samples with Polars: `seconds`, `version` and `out`, the folder of its tables."""
    out = work / "polars"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    events = ctx.spark.read.parquet(*files(ctx, "events"))
    # Polars lacks Spark's hash, so it is told whose last click is held out; looking them up costs about what hashing does.
    held_out = events.select("user_id").distinct().where(validates(ctx.config.seed)).toPandas()
    pq.write_table(pa.Table.from_pandas(held_out), out / "held_out.parquet")
    task = {"events": files(ctx, "events"), "held_out": str(out / "held_out.parquet"), "out": str(out)}
    return run_peer("polars_samples.py", task | {"window_size": WINDOW, "min_count": MIN_COUNT}, REPEATS) | {"out": str(out)}


def against_polars(work: Path, clicks: int) -> Row:
    """Row vs_polars."""
    ours = build(work, clicks)
    peer = run_polars(work, ours.ctx)
    note = f"{ours.clicks:,} clicks: ours {ours.seconds:.1f} s, Polars {peer['version']} {peer['seconds']:.1f} s; same samples"
    return faster("vs_polars", ours.speed, ours.clicks / peer["seconds"], "events/s", note)


def against_pandas(work: Path, *, ours: int, pandas: int) -> Iterator[Row]:
    """Row vs_pandas, F as it is written, and vs_pandas_without_shares, F without its dearest step; all targets are kept."""
    ctx, clicks = log(work, pandas)
    built, out = build(work, ours), work / "pandas"
    out.mkdir(parents=True, exist_ok=True)
    for name, shares in (("vs_pandas", True), ("vs_pandas_without_shares", False)):
        task = {"events": files(ctx, "events"), "out": str(out), "window_size": WINDOW, "shares": shares}
        peer = run_peer("fun_rec.py", task, REPEATS)
        note = f"ours {built.clicks:,} clicks in {built.seconds:.1f} s; F's steps in pandas {peer['version']}: {clicks:,} over "
        note += f"{ITEMS:,} items in {peer['seconds']:.1f} s, shares {'' if shares else 'not '}computed"
        yield faster(name, built.speed, clicks / peer["seconds"], "events/s", note)


# -- the floor, growth, bytes ------------------------------------------------------------------------------------------
def against_floor(work: Path, clicks: int) -> Row:
    """Row vs_floor: the used columns read into nothing, then the finished training samples written from memory."""
    ours = build(work, clicks)
    spark = ours.ctx.spark
    started = time.perf_counter()
    events = spark.read.parquet(*files(ours.ctx, "events")).select("user_id", "item_id", "event_ts")
    events.write.format("noop").mode("overwrite").save()
    read = time.perf_counter() - started
    samples = spark.read.parquet(*files(ours.ctx, samples_of("train"))).persist()
    samples.count()
    started = time.perf_counter()
    samples.write.mode("overwrite").parquet(str(work / "floor"))
    written = time.perf_counter() - started
    samples.unpersist()
    note = f"{ours.clicks:,} clicks: ours {ours.seconds:.1f} s; reading {read:.1f} s + writing {written:.1f} s, same session"
    return faster("vs_floor", ours.speed, ours.clicks / (read + written), "events/s", note)


def growth(name: str, small: Built, large: Built) -> Row:
    """Times the clicks over times as long: the speed at the larger size over that at the smaller."""
    note = f"{small.clicks:,} clicks {small.seconds:.1f} s, {large.clicks:,} clicks {large.seconds:.1f} s"
    return faster(name, large.speed, small.speed, "events/s", note)


def bytes_of_windows(work: Path, clicks: int) -> Row:
    """Row bytes_vs_windows: our training samples and one row a target, by one writer without dictionary and compression."""
    ours = build(work, clicks)
    as_ours, as_windows = work / "as_ours.parquet", work / "as_windows.parquet"
    _write(as_ours, (pq.read_table(file) for file in files(ours.ctx, samples_of("train"))))
    _write(as_windows, _padded(ours.ctx))
    targets = pq.read_metadata(as_windows).num_rows
    note = (
        f"{targets:,} targets, {CLICKS_A_USER} clicks a user: user_id, int32 history[{WINDOW}], length, target, example_age; "
    )
    note += "no dictionary, no compression"
    a, b = size([str(as_ours)]) / targets, size([str(as_windows)]) / targets
    return smaller("bytes_vs_windows", a, b, "bytes/target", note)


def _padded(ctx: Context) -> Iterator[pa.Table]:
    for users, history, target, age in cut(ctx, "train"):
        padded, length = np.zeros((len(users), WINDOW), np.int32), history.lengths
        padded[np.arange(WINDOW) < length[:, None]] = history.values
        columns = {
            "user_id": pa.array(users),
            "history": pa.FixedSizeListArray.from_arrays(pa.array(padded.reshape(-1)), WINDOW),
            "length": pa.array(length.astype(np.int32)),
            "target": pa.array(target.astype(np.int32)),
            "example_age": pa.array(age),
        }
        yield pa.table(columns)


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    first = next(tables)
    with pq.ParquetWriter(path, first.schema, use_dictionary=False, compression="NONE") as writer:
        writer.write_table(first)
        for table in tables:
            writer.write_table(table)


# -- notes -------------------------------------------------------------------------------------------------------------
def where_time_goes(built: Built) -> Iterator[Row]:
    """Rows profile_vocab and profile_samples."""
    for job, seconds, stages in (
        ("vocab", built.vocab, built.vocab_stages),
        ("samples", built.samples, built.samples_stages),
    ):
        note = f"{seconds / built.seconds:.0%} of {built.clicks:,} clicks; of {CORES} cores' time: {profile(stages, seconds)}"
        yield Row(f"profile_{job}", seconds, None, None, "s", note)


def peak_memory(*sizes: Built) -> Iterator[Row]:
    """A row peak_memory_<millions>m a size: the largest process against what no process may exceed."""
    for built in sizes:
        note = f"{built.clicks:,} clicks, resident: {built.memory}; Java heap at most 1.6 GiB; peer: the limit of a process"
        name = f"peak_memory_{built.clicks / 1e6:g}m"
        yield smaller(name, built.memory.largest / GIB, MEMORY_LIMIT / GIB, "GiB", note)


def compressed(built: Built) -> Row:
    """Row bytes_compressed: the samples beside the events, as published."""
    events, samples = size(files(built.ctx, "events")), size(files(built.ctx, "samples"))
    note = f"as published, {built.clicks:,} clicks: samples {samples / _MB:.1f} MB, peer: the events, {events / _MB:.1f} MB"
    return smaller("bytes_compressed", samples / built.clicks, events / built.clicks, "bytes/click", note)


def globo(work: Path, data: Path, *, whole: bool) -> Iterator[Row]:
    """Rows globo and bytes_globo: conf/globo.yaml on the real log, or on its first ten hours."""
    if not data.is_dir():
        yield Row("globo", None, None, None, "events/s", "skipped: set RECALL_TEST_DATA to the folder that holds globo/")
        return
    clicks, dt = ("clicks", "2017-10-16") if whole else ("clicks/clicks_hour_00*", "2017-10-02")
    settings = {"input.path": data, "input.clicks": clicks, "paths.root": work / "globo", "spark.master": f"local[{CORES}]"}
    overrides = [f"{name}={value}" for name, value in settings.items()]
    ctx = Context(load_config(str(ROOT / "conf" / "globo.yaml"), overrides), dt, "globo")
    laps = [time.perf_counter()]
    jobs.events.run(ctx, backfill=True)
    for job in (jobs.vocab, jobs.samples):
        laps.append(time.perf_counter())
        job.run(ctx)
    laps.append(time.perf_counter())
    ingest, vocab, samples = np.diff(laps)
    events, made = ctx.history()[0].count(), [size(files(ctx, name)) for name in ("events", "samples")]
    note = (
        f"{events:,} clicks before {dt}, conf/globo.yaml: ingest {ingest:.1f} s, vocab {vocab:.1f} s, samples {samples:.1f} s"
    )
    yield Row("globo", events / (vocab + samples), None, None, "events/s", note)
    note = f"as published, all splits: samples {made[1] / _MB:.1f} MB, peer: the events, {made[0] / _MB:.1f} MB"
    yield smaller("bytes_globo", made[1] / events, made[0] / events, "bytes/click", note)
