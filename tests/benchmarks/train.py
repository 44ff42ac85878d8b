"""Training, beside torch-rechub, over ranks, beside its own input; gradients of item tables as rows and dense.

Preset F on ml-1m's samples, or on those of a log of like size where ml-1m is absent. Every measurement is a process of its
own, and the fastest of its repeats counts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

import jobs.events
import jobs.samples
import jobs.vocab
from recall_lib.config import load_config
from recall_lib.day.context import Context
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Segments
from recall_lib.store.arrays import item_counts
from recall_lib.training import horovod_ranks
from recall_lib.training.launch import BACKENDS
from recall_lib.training.spec import TrainSpec, sample_files
from tests.benchmarks.common import CORES, ROOT, Row, faster, run_peer, smaller

BATCH, BATCH_OF_RANKS = 2_048, 4_096  # targets per rank and step
REPEATS = 5  # of ours, in one process
ROUNDS = 3  # of two of ours, in turn
PEER_REPEATS = 2  # with each of its settings
THREADS = (1, 2)  # of ours, whose input has a thread of its own; the fastest counts
THREADS_WORKERS = ((2, 0), (1, 1), (1, 2))  # of the peer, whose DataLoader has workers; the fastest counts
USERS, ITEMS, CLICKS_A_USER = 6_040, 3_416, 166  # of ml-1m
USUAL = "horovod" if horovod_ranks.built() else "torch"
TABLES = {"10k": 10_000, "100k": 100_000, "1m": 1_000_000}  # items
DT = "2024-01-01"


def measure(scale: float, work: Path) -> list[Row]:
    """All rows; the number of users and of items is multiplied by `scale`."""
    return [
        against_rechub(work, scale),
        ranks_2_vs_1(work, scale),
        *ranks_over_torch_vs_horovod(work, scale),
        loader_vs_step(work, scale),
        *sparse_vs_dense(scale),
    ]


# -- the samples -------------------------------------------------------------------------------------------------------
@cache
def published(work: Path, scale: float) -> tuple[Context, str]:
    """Preset F's vocabulary and samples, and what log they are of; made once."""
    data = Path(os.environ.get("RECALL_TEST_DATA", ROOT.parent / "shared" / "data")) / "ml-1m"
    if scale >= 1 and data.is_dir():
        name = "ml-1m"
    else:
        data, name = work / "log", f"generated log, ml-1m's size x {scale:g}"
        generate(data, max(50, int(USERS * scale)))
    settings = {
        "input.path": data,
        "input.ordering": "position",
        "paths.root": work / "tables",
        "spark.master": f"local[{CORES}]",
        "training.device": "cpu",
    }
    config = load_config(str(ROOT / "conf" / "fun_rec.yaml"), [f"{key}={value}" for key, value in settings.items()])
    ctx = Context(config, DT, "bench")
    for job in (jobs.events, jobs.vocab, jobs.samples):
        job.run(ctx)
    return ctx, name


def generate(folder: Path, users: int) -> None:
    """A log with ml-1m's columns: CLICKS_A_USER a user on average, most far fewer, item r about in proportion to r^(-2/3)."""
    random = np.random.default_rng(1)
    clicks = np.maximum(20, random.exponential(CLICKS_A_USER, users).astype(int))
    user = np.repeat(np.arange(users), clicks)
    columns = {
        "user_id": user,
        "article_id": (random.random(len(user)) ** 3 * ITEMS).astype(int),
        "expo_time": np.arange(len(user)),
        "click": np.ones_like(user),
        "city": random.integers(678, size=users)[user],
        "age": random.integers(7, size=users)[user],
        "gender": random.integers(2, size=users)[user],
    }
    folder.mkdir(parents=True)
    with pa.CompressedOutputStream(str(folder / "clicks.csv.gz"), "gzip") as file:
        pyarrow.csv.write_csv(pa.table(columns), file)


def spec(ctx: Context, batch_size: int) -> dict[str, Any]:
    """What training is given, as JSON; no validation."""
    vocab, train = ctx.tables.get("vocab", DT), ctx.tables.get("samples", DT, split="train")
    made = TrainSpec(
        features=ctx.config.features,
        samples=ctx.config.samples,
        model=ctx.config.model,
        training=ctx.config.training.model_copy(update={"batch_size": batch_size}),
        seed=ctx.config.seed,
        sizes=vocab.manifest["sizes"],
        counts=item_counts(vocab.files).tolist(),
        train=sample_files(train),
        validation=[],
        vocab=vocab.digest,
        inputs=train.digest,
    )
    return made.model_dump(mode="json")


# -- ours --------------------------------------------------------------------------------------------------------------
def run_ours(
    task: dict[str, Any], *, ranks: int = 1, over: str = USUAL, threads: int = 1, pinned: bool = False
) -> dict[str, Any]:
    """What training.py prints on rank 0 for a task.

    Args:
        task: see there.
        ranks: processes.
        over: what connects them, if there are several.
        threads: of each, for arithmetic.
        pinned: each to a core; else they share the cores.

    Raises:
        SystemExit: a process failed.
    """
    cores = sorted(os.sched_getaffinity(0))
    with ExitStack() as stack:
        environments = stack.enter_context(BACKENDS[over].local_rendezvous(ranks)) if ranks > 1 else [{}]
        processes = []
        for rank, environment in enumerate(environments):
            core = cores[rank % len(cores)] if pinned else None
            argument = json.dumps(task | {"core": core, "over": over if ranks > 1 else None})
            command = [sys.executable, "-m", "tests.benchmarks.training", argument]
            env = os.environ | environment | {"OMP_NUM_THREADS": str(threads)}
            processes.append(
                subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
            )
            stack.callback(processes[-1].kill)
        said = [process.communicate() for process in processes]
    failed = [err for process, (_, err) in zip(processes, said, strict=True) if process.returncode]
    if failed:
        raise SystemExit(f"bench: {task['measure']} failed: {failed[0].strip()[-2000:]}")
    found: dict[str, Any] = json.loads(said[0][0].splitlines()[-1])
    return found


def alternately(*runs: Callable[[], dict[str, Any]]) -> list[dict[str, Any]]:
    """The fastest of each, measured in turn, so that what else the machine does meets all of them."""
    found = [[run() for run in runs] for _ in range(ROUNDS)]
    return [min(of_one, key=lambda result: float(result["seconds"])) for of_one in zip(*found, strict=True)]


def speed(found: dict[str, Any]) -> float:
    """Targets a second."""
    return float(found["targets"] / found["seconds"])


# -- rows --------------------------------------------------------------------------------------------------------------
def against_rechub(work: Path, scale: float) -> Row:
    """Row vs_torch_rechub: an epoch of each; ours from files, the peer's from arrays in memory."""
    ctx, log = published(work, scale)
    task = {"measure": "epoch", "spec": spec(ctx, BATCH), "repeats": REPEATS}
    runs = alternately(*(partial(run_ours, task, threads=n) for n in THREADS))
    ours, threads = min(zip(runs, THREADS, strict=True), key=lambda run: float(run[0]["seconds"]))
    peer = run_rechub(work, ctx)
    if peer["targets"] != ours["targets"]:
        raise SystemExit(f"bench: the peer trains on {peer['targets']} targets, ours on {ours['targets']}: nothing is reported")
    note = (
        f"{log}, preset F, batch {BATCH:,}, an epoch of {ours['targets']:,} targets: ours {ours['seconds']:.2f} s from files, "
    )
    note += (
        f"threads {threads}; torch-rechub {peer['version']} {peer['seconds']:.2f} s from arrays, threads {peer['threads']}, "
    )
    note += f"workers {peer['workers']}; each side's fastest setting"
    return faster("vs_torch_rechub", speed(ours), speed(peer), "targets/s", note)


def run_rechub(work: Path, ctx: Context) -> dict[str, Any]:
    """The peer's fastest epoch on the windows that ours trains on, and with which setting that was."""
    config, path = ctx.config, work / "windows.npz"
    columns = training_windows(ctx)
    sizes = ctx.tables.get("vocab", DT).manifest["sizes"]
    np.savez(path, sizes=json.dumps(sizes), **columns)
    task = {
        "windows": str(path),
        "batch_size": BATCH,
        "negatives": config.training.num_negatives,
        "dim": config.features.item_id.dim,
        "tower": config.model.tower,
    }
    settings = [{"threads": threads, "workers": workers} for threads, workers in THREADS_WORKERS]
    runs = [run_peer("rechub.py", task | setting, PEER_REPEATS) | setting for setting in settings]
    return min(runs, key=lambda found: found["seconds"])


def training_windows(ctx: Context) -> dict[str, np.ndarray]:
    """All targets as the peer reads them: history [n, window_size] padded with 0, target, example_age, user features."""
    features, samples = ctx.config.features, ctx.config.samples
    parts = []
    for file in ctx.tables.get("samples", DT, split="train").files:
        runs = Segments.from_arrow(pq.read_table(file), features, samples)
        found = runs.windows(np.arange(len(runs)))
        history = padded(found.history, samples.window_size)
        columns: dict[str, np.ndarray] = {"history": history, "target": found.target, "example_age": found.example_age}
        parts.append(columns | found.user)
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def padded(lists: Ragged, width: int) -> np.ndarray:
    """Lists as rows [n, width], padded with 0 after their end."""
    inside = np.arange(width) < lists.lengths[:, None]
    rows = np.zeros(inside.shape, np.int64)
    rows[inside] = lists.values
    return rows


def ranks_2_vs_1(work: Path, scale: float) -> Row:
    """Row ranks_2_vs_1: each rank on a core of its own, with one thread."""
    ctx, log = published(work, scale)
    task = {"measure": "epoch", "spec": spec(ctx, BATCH_OF_RANKS), "repeats": REPEATS}
    one, two = alternately(*(partial(run_ours, task, ranks=n, pinned=True) for n in (1, 2)))
    note = f"{log}, preset F, {BATCH_OF_RANKS:,} targets a rank and step, a core and a thread a rank: an epoch of "
    note += f"{one['targets']:,} targets in {two['seconds']:.2f} s; peer: 1 rank, {one['seconds']:.2f} s"
    return faster("ranks_2_vs_1", speed(two), speed(one), "targets/s", note)


def ranks_over_torch_vs_horovod(work: Path, scale: float) -> Iterator[Row]:
    """Row ranks_over_torch_vs_horovod, where Horovod was built: two ranks as in ranks_2_vs_1, connected by either."""
    if not horovod_ranks.built():
        return
    ctx, log = published(work, scale)
    task = {"measure": "epoch", "spec": spec(ctx, BATCH_OF_RANKS), "repeats": REPEATS}
    ours, peer = alternately(*(partial(run_ours, task, ranks=2, over=over, pinned=True) for over in ("torch", "horovod")))
    note = f"{log}, preset F, 2 ranks, {BATCH_OF_RANKS:,} targets a rank and step, a core and a thread a rank: an epoch over "
    note += f"torch.distributed in {ours['seconds']:.2f} s; peer: Horovod, {peer['seconds']:.2f} s"
    yield faster("ranks_over_torch_vs_horovod", speed(ours), speed(peer), "targets/s", note)


def loader_vs_step(work: Path, scale: float) -> Row:
    """Row loader_vs_step: the batches alone, and the steps alone on batches in memory; each on one core."""
    ctx, log = published(work, scale)
    task = {"spec": spec(ctx, BATCH), "repeats": REPEATS}
    measures = [partial(run_ours, task | {"measure": name}, pinned=True) for name in ("loading", "steps")]
    loading, steps = alternately(*measures)
    note = f"{log}, preset F, batch {BATCH:,}, {steps['targets']:,} targets: files to batches {loading['seconds']:.2f} s; "
    note += f"peer: the steps on batches in memory {steps['seconds']:.2f} s; a core and a thread each"
    return faster("loader_vs_step", speed(loading), speed(steps), "targets/s", note)


def sparse_vs_dense(scale: float) -> Iterator[Row]:
    """Rows sparse_vs_dense_<items>, and with _2_ranks, each on a core of its own."""
    for name, at_full_scale in TABLES.items():
        items = max(1_000, int(at_full_scale * scale))
        for ranks in (1, 2):
            task = {"measure": "gradients", "items": items, "batch_size": BATCH, "steps": 5, "repeats": 3}
            kinds = [partial(run_ours, task | {"rows": kind}, ranks=ranks, pinned=True) for kind in (True, False)]
            rows, dense = alternately(*kinds)
            ours, peer = (found["seconds"] / found["steps"] * 1000 for found in (rows, dense))
            note = f"{items:,} items x 64, batch {BATCH:,}, {ranks} rank{'s' * (ranks > 1)}, whole steps: training.gradients "
            note += "rows; peer: dense"
            yield smaller(f"sparse_vs_dense_{name}" + "_2_ranks" * (ranks > 1), ours, peer, "ms/step", note)
