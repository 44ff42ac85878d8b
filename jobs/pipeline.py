"""Run every job for one day, from the raw log to the top-N lists and the report.

Earlier days whose events are missing are read from the log first.
"""

import importlib
import sys
from collections.abc import Collection

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.process import messages
from recall_lib.store import datasets
from recall_lib.training.launch import backend
from recall_lib.training.spec import first_weights

STAGES = tuple(importlib.import_module(f"jobs.{job}") for job in datasets.jobs())


def run(ctx: Context, jobs: Collection[str] | None = None) -> None:
    """Ingest the days up to dt that the log has and events lacks, then run every stage for dt; `jobs`: only those named."""
    if jobs is None or {"samples", "train"} & set(jobs):
        first_weights(ctx.tables, ctx.dt)  # a day that cannot be trained is refused before anything is done
    if jobs is None or "train" in jobs:
        backend(ctx.config.training)
    for stage in STAGES:
        name = stage.__name__.removeprefix("jobs.")
        if jobs is not None and name not in jobs:
            continue
        messages.bind(stage=name)
        if name == "events":
            stage.run(ctx, backfill=True)
        else:
            stage.run(ctx)


if __name__ == "__main__":
    sys.exit(main(run))
