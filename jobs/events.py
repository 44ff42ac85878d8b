"""Read a day's clicks from the raw log, and publish events and rejects.

A row that cannot be used goes to rejects, with the reason.

With `input.ordering: position` the log has no dates. All its clicks are stored under --dt.
"""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from recall_lib.day import log_days
from recall_lib.day.context import Context
from recall_lib.day.inputs import changed_days
from recall_lib.day.job import main
from recall_lib.day.log_days import days_later, is_complete, require_same_settings
from recall_lib.day.raw import read_log, warn_of_unknown_items
from recall_lib.samples.ids import ITEM_ID
from recall_lib.store import locks, schemas
from recall_lib.transforms import events as transform

# How long one ingestion waits for another: as long as a large log may take.
_WAIT_S = 7200.0


def run(ctx: Context, *, backfill: bool = False, also: Sequence[str] = ()) -> None:
    """Ingest the day; with `backfill` also every earlier day that the log has and events lacks, and the days `also`.

    Of the earlier days those alone that `recall gc` would leave if dt were the newest (retention.events_days).

    With `backfill` a day that is asked for waits until the log shows that it is complete. If it is stored already, it is read
    again if the log still has it. So are the last `input.late_days` days if they have grown.
    The days share the events, so that ingestions wait for each other: what the last one has published is missing no more.
    """
    root, shared = ctx.config.paths.root, ctx.config.input.ordering == "time"
    with locks.held(root, "events", ctx.run_id, _WAIT_S, ctx.say) if shared else nullcontext():
        _ingest(ctx, backfill and shared, also)


def _ingest(ctx: Context, backfill: bool, also: Sequence[str]) -> None:
    settings, features = ctx.config.input, ctx.config.features
    judged, tables, facts = read_log(ctx)
    judged = judged.persist()
    try:
        log = transform.clicks_of_days(judged, settings.ordering)
        days = _days(ctx, log, also) if backfill else [ctx.dt]
        judged = transform.assign_days(judged, settings.ordering, ctx.dt, days)
        clicks = transform.kept_clicks(judged, tables, settings, features).persist()
        account, warnings = transform.account(judged, clicks, settings, features)
        ctx.say(f"read {account['in']}: " + ", ".join(f"{n} {fate}" for fate, n in account.items() if fate != "in"))
        if settings.ordering == "time":
            warnings += transform.tied_times(clicks, account["kept"])
        for warning in warnings:
            ctx.say(f"warning: {warning}")
        facts["log"] = account
        if ITEM_ID in tables:
            facts["items"] = warn_of_unknown_items(ctx, clicks, tables[ITEM_ID])
        _publish(ctx, judged, clicks, days, facts)
        if settings.ordering == "time":
            log_days.remember(ctx.tables, log, days)
            for line in log_days.remarks(ctx.tables, log, ctx.dt, days):
                ctx.say(line)
    finally:
        ctx.spark.catalog.clearCache()


def _publish(ctx: Context, judged: DataFrame, clicks: DataFrame, days: list[str], facts: dict[str, Any]) -> None:
    rejects = transform.rejects(judged)
    with_rejects = {row[0] for row in rejects.select("dt").distinct().collect()}
    with_rejects |= {ctx.dt, *(day for day in days if ctx.tables.find("rejects", day))}  # an old version is replaced
    with ctx.tables.publishing("rejects", sorted(with_rejects), facts=facts) as staged:
        staged.write(rejects, schemas.REJECTS)
    if ctx.config.asks_for_activity:
        _publish_changed(ctx, "activity", schemas.ACTIVITY, transform.activity(judged).persist(), days, {})
    _publish_changed(ctx, "events", schemas.events(ctx.config.features), clicks, days, facts)


def _publish_changed(
    ctx: Context, dataset: str, schema: StructType, rows: DataFrame, days: list[str], facts: dict[str, Any]
) -> None:
    days = changed_days(ctx, dataset, schema, rows, days)
    rows = rows.where(F.col("dt").isin(days))
    with ctx.tables.publishing(dataset, days, facts=facts) as staged:
        staged.write(transform.spread(rows, ctx.config.spark.partitions), schema)


def _days(ctx: Context, log: Mapping[str, int], also: Sequence[str]) -> list[str]:
    """The days to store, ascending; `log` has the clicks of each day that has any."""
    settings, stored = ctx.config.input, set(ctx.tables.days("events"))
    asked = {day for day in (ctx.dt, *also) if (day in log if day in stored else is_complete(day, log, settings.slack_days))}
    kept = [day for day in log if day <= ctx.dt][-(ctx.config.retention.events_days or 0) :]
    missing = {day for day in kept if day < ctx.dt} - stored
    late = log_days.grown(ctx.tables, log).keys() if settings.late_days else ()
    since = days_later(ctx.dt, -settings.late_days)
    days = asked | missing | {day for day in late if since <= day < ctx.dt}
    others = [ctx.tables.get("events", day) for day in sorted(stored - days) if day < ctx.dt]
    require_same_settings(ctx.tables, {day.dt: day.manifest for day in others}, ctx.dt)
    return sorted(days)


if __name__ == "__main__":
    sys.exit(main(run))
