"""Read a day's clicks from the raw log, and publish events and rejects.

A row that cannot be used goes to rejects, with the reason.

With `input.ordering: position` the log has no dates. All its clicks are stored under --dt.
"""

import sys
from collections.abc import Sequence
from contextlib import nullcontext

from pyspark.sql import functions as F

from recall_lib.day.context import Context
from recall_lib.day.inputs import changed_days
from recall_lib.day.job import main
from recall_lib.day.raw import read_log, warn_of_unknown_items
from recall_lib.store import locks, schemas
from recall_lib.transforms import events as transform

# How long one ingestion waits for another: as long as a large log may take.
_WAIT_S = 7200.0


def run(ctx: Context, *, backfill: bool = False, also: Sequence[str] = ()) -> None:
    """Ingest the day; with `backfill` also every earlier day that the log has and events lacks, and the days `also`.

    Of the earlier days those alone that `recall gc` would leave if dt were the newest (retention.events_days).

    With `backfill` a day that is asked for waits until the log holds a later click: before that it is not complete.
    The days share the events, so that ingestions wait for each other: what the last one has published is missing no more.
    """
    root, shared = ctx.config.paths.root, ctx.config.input.ordering == "time"
    with locks.held(root, "events", ctx.run_id, _WAIT_S, ctx.say) if shared else nullcontext():
        _ingest(ctx, backfill, also)


def _ingest(ctx: Context, backfill: bool, also: Sequence[str]) -> None:
    settings, features = ctx.config.input, ctx.config.features
    judged, items, facts = read_log(ctx)
    judged = judged.persist()
    try:
        days = _days(ctx, transform.days_of(judged, settings.ordering), backfill, also)
        judged = transform.assign_days(judged, settings.ordering, ctx.dt, days)
        clicks = transform.kept_clicks(judged, settings, features).persist()
        account, warnings = transform.account(judged, clicks, settings, features)
        ctx.say(f"read {account['in']}: " + ", ".join(f"{n} {fate}" for fate, n in account.items() if fate != "in"))
        if settings.ordering == "time":
            warnings += transform.tied_times(clicks, account["kept"])
        for warning in warnings:
            ctx.say(f"warning: {warning}")
        facts["log"] = account
        if items is not None:
            facts["items"] = warn_of_unknown_items(ctx, clicks, items)
        with ctx.tables.publishing("rejects", sorted({*days, ctx.dt}), facts=facts) as staged:
            staged.write(transform.rejects(judged), schemas.REJECTS)
        if ctx.config.asks_for_activity:
            with ctx.tables.publishing("activity", days) as staged:
                staged.write(transform.activity(judged), schemas.ACTIVITY)
        days = changed_days(ctx, clicks, days)
        clicks = clicks.where(F.col("dt").isin(days))
        with ctx.tables.publishing("events", days, facts=facts) as staged:
            spread = clicks.repartition(ctx.config.spark.partitions, "dt", transform.user_bucket())
            staged.write(spread, schemas.events(features))
    finally:
        ctx.spark.catalog.clearCache()


def _days(ctx: Context, in_log: list[str], backfill: bool, also: Sequence[str]) -> list[str]:
    if not backfill or ctx.config.input.ordering == "position":
        return [ctx.dt]
    complete = {day for day in (ctx.dt, *also) if in_log and in_log[-1] > day}
    kept = [day for day in in_log if day <= ctx.dt][-(ctx.config.retention.events_days or 0) :]
    return sorted(complete | {day for day in kept if day < ctx.dt} - set(ctx.tables.days("events")))


if __name__ == "__main__":
    sys.exit(main(run))
