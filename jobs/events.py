"""Raw log -> events and rejects: the clicks of one day (or, with ordering `position`, the whole log as that day)."""

import sys

from recall_lib import schemas
from recall_lib.io import raw
from recall_lib.job import Context, main
from recall_lib.transforms import events as transform


def run(ctx: Context, *, backfill: bool = False) -> None:
    """Ingest the day; with `backfill` also every earlier day that the log has and events lacks.

    With `backfill` the day itself waits until the log holds a later click: before that it is not complete.
    """
    settings, features = ctx.config.input, ctx.config.features
    if settings.format == "sessions":
        judged = transform.judge_lines(raw.read_lines(ctx.spark, settings))
    else:
        items = raw.read_rows(ctx.spark, settings, settings.items) if settings.items else None
        judged = transform.judge_rows(raw.read_rows(ctx.spark, settings, settings.clicks), items, settings, features)
    judged = judged.persist()
    try:
        days = _days(ctx, transform.days_of(judged, settings.ordering), backfill)
        judged = transform.assign_days(judged, settings.ordering, ctx.dt, days)
        clicks = transform.kept_clicks(judged, settings.format, features).persist()
        account = transform.account(judged, clicks, settings)
        ctx.say(f"read {account['in']}: " + ", ".join(f"{n} {fate}" for fate, n in account.items() if fate != "in"))
        shared = {"log": account}
        ctx.tables.publish_days(transform.rejects(judged), schemas.REJECTS, "rejects", sorted({*days, ctx.dt}), facts=shared)
        spread = clicks.repartition(ctx.config.spark.partitions, "dt", transform.user_bucket())
        ctx.tables.publish_days(spread, schemas.events(features), "events", days, facts=shared)
    finally:
        ctx.spark.catalog.clearCache()


def _days(ctx: Context, in_log: list[str], backfill: bool) -> list[str]:
    if not backfill or ctx.config.input.ordering == "position":
        return [ctx.dt]
    published = set(ctx.tables.days("events"))
    earlier = [day for day in in_log if day < ctx.dt and day not in published]
    return earlier + ([ctx.dt] if in_log and in_log[-1] > ctx.dt else [])


if __name__ == "__main__":
    sys.exit(main(run))
