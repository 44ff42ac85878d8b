"""Every stage for one day: from the raw log to the top-N table, its metrics and its report."""

import sys

from jobs import events, index, items, metrics, popular, related, report, samples, top_n, train, vectors, vocab
from recall_lib.job import Context, main

STAGES = (vocab, items, samples, train, vectors, index, popular, top_n, related, metrics, report)


def run(ctx: Context) -> None:
    """Ingest the days up to dt that the log has and events lacks, then run every stage for dt."""
    events.run(ctx, backfill=True)
    for stage in STAGES:
        stage.run(ctx)


if __name__ == "__main__":
    sys.exit(main(run))
