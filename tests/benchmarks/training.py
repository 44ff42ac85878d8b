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
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from recall_lib.config import Features, Model, Samples, Training
from recall_lib.model.batch import Batch
from recall_lib.samples.ids import FIRST_INDEX, ITEM_ID
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Windows
from recall_lib.training import loader
from recall_lib.training.launch import BACKENDS
from recall_lib.training.loop import Run
from recall_lib.training.ranks import Alone, Ranks
from recall_lib.training.spec import SampleFile, TrainSpec

HISTORY = 50  # clicks, of `gradients`


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
        with closing(run.stream):
            yield run
        run.close()


def windows(run: Run) -> Iterator[Windows]:
    """This rank's batches of an epoch."""
    settings = run.settings
    seed = (run.spec.seed, run.ranks.rank, 0)
    mixed = settings.shuffle_row_groups
    sizes = run.sizes[run.ranks.rank]
    return loader.read_epoch(
        run.urls, sizes, run.spec.features, run.spec.samples, unit=settings.unit, row_groups=mixed, seed=seed
    )


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
    """Steps of a model of item ids alone with the library's own settings: mean, tower, sampled softmax, Adam.

    Args:
        ranks: each has batches of its own.
        items: rows of the table.
        rows: training.gradients; else dense.
        batch_size: targets of a rank and step.
        steps: that are timed together.
        repeats: of them; the fastest counts.
    """
    settings = Training(batch_size=batch_size, gradients="rows" if rows else "dense", device="cpu")
    file = SampleFile(url="", targets=batch_size)  # never read
    spec = TrainSpec(
        features=Features(),
        samples=Samples(),
        model=Model(),
        training=settings,
        seed=0,
        sizes={ITEM_ID: items},
        counts=[1] * items,
        train=[file] * ranks.size,
        validation=[],
        vocab="",
        inputs="",
    )
    random = np.random.default_rng(ranks.rank)
    batches = [Batch.of(draw_windows(random, items, batch_size)) for _ in range(steps)]
    with new_run(ranks, spec.model_dump(), epochs=1) as run:

        def train() -> None:
            for batch in batches:
                run._step(batch, run.sizes[:, 0])

        train()
        return {"seconds": fastest(ranks, repeats, train), "steps": steps}


def draw_windows(random: np.random.Generator, items: int, targets: int) -> Windows:
    """Full histories and targets; the r-th item is drawn about in proportion to r^(-2/3)."""
    ids = FIRST_INDEX + (random.random((targets, HISTORY + 1)) ** 3 * (items - FIRST_INDEX)).astype(np.int64)
    return Windows(
        history=Ragged.of(ids[:, 1:].ravel(), np.full(targets, HISTORY)),
        item={},
        user={},
        example_age=np.zeros(targets, np.float32),
        target=ids[:, 0],
        negatives=np.zeros((targets, 0), np.int64),
    )


MEASURES: dict[str, Callable[..., dict[str, float]]] = {f.__name__: f for f in (epoch, loading, steps, gradients)}


def main() -> None:
    """Measure what the argument says."""
    task = json.loads(sys.argv[1])
    core, over = task.pop("core"), task.pop("over")
    if core is not None:
        os.sched_setaffinity(0, [core])
    measure = MEASURES[task.pop("measure")]
    ranks: Ranks = BACKENDS[over].join() if over else Alone()
    print(json.dumps(measure(ranks, **task)))


if __name__ == "__main__":
    main()
