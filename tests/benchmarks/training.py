"""What one process of the training benchmark measures, alone or as a Horovod rank: `python -m tests.benchmarks.training JSON`.

Argument: {"measure": one of MEASURES, its keywords, and "core": the one this process is pinned to, or null for all of the
parent's}. OMP_NUM_THREADS decides the threads. Prints the result as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recall_lib.model.batch import Batch
from recall_lib.runs import Windows
from recall_lib.training import loader
from recall_lib.training.loop import Run
from recall_lib.training.ranks import Alone, Horovod, Ranks
from recall_lib.training.spec import TrainSpec

WARM_UP = 2  # steps of `gradients` that are not timed
HISTORY, NEGATIVES, DIM = 50, 5, 64  # of `gradients`


def fastest(ranks: Ranks, repeats: int, action: Callable[[], object]) -> float:
    """Seconds of the fastest of some calls, each begun by all ranks at once."""
    seconds = []
    for _ in range(repeats):
        ranks.sum([0.0])
        started = time.perf_counter()
        action()
        ranks.sum([0.0])
        seconds.append(time.perf_counter() - started)
    return min(seconds)


@contextmanager
def new_run(ranks: Ranks, spec: dict[str, Any], epochs: int) -> Iterator[Run]:
    """A run of so many epochs that has not begun."""
    found = TrainSpec.model_validate(spec)
    found = found.model_copy(update={"training": found.training.model_copy(update={"epochs": epochs})})
    with tempfile.TemporaryDirectory() as folder:
        run = Run(found, ranks, Path(folder))
        yield run
        run.close()


def windows(run: Run) -> Iterator[Windows]:
    """This rank's batches of an epoch."""
    settings = run.settings
    seed = (run.spec.seed, run.ranks.rank, 0)
    mixed = settings.shuffle_row_groups
    sizes = run.sizes[run.ranks.rank]
    return loader.batches(run.urls, sizes, run.spec.features, run.spec.samples, unit=settings.unit, row_groups=mixed, seed=seed)


def epoch(ranks: Ranks, *, spec: dict[str, Any], repeats: int) -> dict[str, float]:
    """An epoch of training as it is: reading, cutting windows, steps; the first one, which warms up, does not count."""
    with new_run(ranks, spec, epochs=repeats + 1) as run:
        run.train_epoch()
        return {"seconds": fastest(ranks, repeats, run.train_epoch), "targets": int(run.sizes.sum())}


def loading(ranks: Ranks, *, spec: dict[str, Any], repeats: int) -> dict[str, float]:
    """The batches of an epoch, made and dropped."""
    with new_run(ranks, spec, epochs=1) as run:
        targets = sum(len(batch.target) for batch in windows(run))
        return {"seconds": fastest(ranks, repeats, lambda: [None for _ in windows(run)]), "targets": targets}


def steps(ranks: Ranks, *, spec: dict[str, Any], repeats: int) -> dict[str, float]:
    """The steps of an epoch on batches that are in memory; those of a first epoch do not count."""
    with new_run(ranks, spec, epochs=repeats + 1) as run:
        batches = [(Batch.of(found, run.device), sizes) for sizes, found in zip(run.sizes.T, windows(run), strict=True)]

        def train() -> None:
            for batch, sizes in batches:
                run._step(batch, sizes)

        train()
        return {"seconds": fastest(ranks, repeats, train), "targets": int(run.sizes.sum())}


def gradients(ranks: Ranks, *, items: int, rows: bool, batch_size: int, steps: int, repeats: int) -> dict[str, float]:
    """Steps of an item table of DIM: mean of HISTORY clicks, sampled softmax with NEGATIVES, Adam.

    Args:
        ranks: each has a batch of its own.
        items: rows of the table.
        rows: the gradient is a list of rows, and Adam is lazy; else it is as large as the table, and Adam fused.
        batch_size: targets of a rank and step.
        steps: that are timed together.
        repeats: of them; the fastest counts.
    """
    torch.manual_seed(0)
    table = nn.Parameter(torch.randn(items, DIM) * 0.05)
    optimizer = torch.optim.SparseAdam([table]) if rows else torch.optim.Adam([table], fused=True)
    clicks = draw_clicks(items, (WARM_UP + steps, batch_size, HISTORY + 1 + NEGATIVES), seed=ranks.rank)

    def step(ids: Tensor) -> None:
        optimizer.zero_grad()
        loss(table, ids, rows=rows).backward()
        assert table.grad is not None
        table.grad = average(ranks, table.grad)
        optimizer.step()

    def train() -> None:
        for ids in clicks[WARM_UP:]:
            step(ids)

    for ids in clicks[:WARM_UP]:
        step(ids)
    return {"seconds": fastest(ranks, repeats, train), "steps": steps}


def draw_clicks(items: int, shape: tuple[int, ...], seed: int) -> Tensor:
    """Item ids, int64 [shape]; item r is drawn about in proportion to r^(-2/3)."""
    random = torch.Generator().manual_seed(seed)
    return (torch.rand(shape, generator=random, dtype=torch.float64) ** 3 * items).long()


def loss(table: Tensor, ids: Tensor, *, rows: bool) -> Tensor:
    """Sampled softmax of ids [B, history + 1 + NEGATIVES], the target after the history; `rows`: the gradient is sparse."""
    history, candidates = ids[:, : -1 - NEGATIVES], ids[:, -1 - NEGATIVES :]
    user = F.embedding_bag(history, table, mode="mean", sparse=rows)  # [B, DIM]
    scores = (user[:, None] * F.embedding(candidates, table, sparse=rows)).sum(dim=2)  # [B, 1 + NEGATIVES]
    return F.cross_entropy(scores, torch.zeros(len(ids), dtype=torch.int64))


def average(ranks: Ranks, gradient: Tensor) -> Tensor:
    """The mean over the ranks, dense or as rows (each rank's rows to all others)."""
    if not gradient.is_sparse:
        ranks.average([gradient])
        return gradient
    gradient = gradient.coalesce()
    if ranks.size == 1:
        return gradient
    import horovod.torch as hvd

    return hvd.sparse_allreduce_async(gradient, name="rows", op=hvd.Average)().coalesce()


MEASURES: dict[str, Callable[..., dict[str, float]]] = {f.__name__: f for f in (epoch, loading, steps, gradients)}


def main() -> None:
    """Measure what the argument says."""
    task = json.loads(sys.argv[1])
    core = task.pop("core")
    if core is not None:
        os.sched_setaffinity(0, [core])
    measure = MEASURES[task.pop("measure")]
    ranks: Ranks = Horovod() if "HOROVOD_RANK" in os.environ else Alone()
    print(json.dumps(measure(ranks, **task)))


if __name__ == "__main__":
    main()
