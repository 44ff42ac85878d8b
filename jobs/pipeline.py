"""Every stage for one day: from the raw log to the top-N table, its metrics and its report."""

import sys
from collections.abc import Collection

from jobs import events, index, items, metrics, popular, related, report, samples, top_n, train, vectors, vocab
from recall_lib import log
from recall_lib.io.tables import Tables
from recall_lib.job import Context, main
from recall_lib.training.launch import backend
from recall_lib.training.spec import first_weights

STAGES = (events, vocab, items, samples, train, vectors, index, popular, top_n, related, metrics, report)


def run(ctx: Context, jobs: Collection[str] | None = None) -> None:
    """Ingest the days up to dt that the log has and events lacks, then run every stage for dt; `jobs`: only those named."""
    if jobs is None or {"samples", "train"} & set(jobs):
        first_weights(Tables(ctx.config), ctx.dt)  # a day that cannot be trained is refused before anything is done
    if jobs is None or "train" in jobs:
        backend(ctx.config.training)
    for stage in STAGES:
        name = stage.__name__.removeprefix("jobs.")
        if jobs is not None and name not in jobs:
            continue
        log.bind(stage=name)
        if stage is events:
            events.run(ctx, backfill=True)
        else:
            stage.run(ctx)


if __name__ == "__main__":
    sys.exit(main(run))
