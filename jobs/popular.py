"""Publish the items ranked by clicks before dt, in the whole log and in the last hours.

`evaluation.recent_hours` says how many hours.
"""

import sys

from recall_lib.day.context import Context
from recall_lib.day.job import main
from recall_lib.store import schemas
from recall_lib.transforms import popular as transform
from recall_lib.transforms.holdout import tie_breaker
from recall_lib.transforms.vocab import known_items


def run(ctx: Context) -> None:
    """Publish popular/dt: every item of the vocabulary that was clicked, hottest first."""
    config = ctx.config
    events, inputs = ctx.history()
    vocab = ctx.tables.get("vocab", ctx.dt)
    items = known_items(vocab.read(schemas.VOCAB))
    recent = transform.recent_clicks(tie_breaker(events), ctx.dt, config.input, config.evaluation.recent_hours)
    hottest = transform.hottest(transform.count_items(events, items), transform.ALL)
    lately = transform.hottest(transform.count_items(recent, items), transform.RECENT)
    table = hottest.unionByName(lately).coalesce(1).sortWithinPartitions("window", "rank")
    with ctx.tables.publishing("popular", ctx.dt, inputs=inputs | {"vocab": vocab.digest}) as staged:
        staged.write(table, schemas.POPULAR)
    ctx.say(f"{staged.publication.manifest['rows']} rows in two windows")


if __name__ == "__main__":
    sys.exit(main(run))
