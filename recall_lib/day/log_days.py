"""What a run may conclude from the days of the log, and what is known of the days that are stored.

`events/_log.json` holds two counts for each day: the clicks that the log had when the day was stored, and those that it had at
the last ingestion. Duplicates count, because telling them apart would take a shuffle of the whole log. With it `recall status`
notices that a stored day has grown without reading the log.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from statistics import median_low
from typing import Any

from recall_lib.config import Config
from recall_lib.process.errors import DataRefused
from recall_lib.store.datasets import other_settings
from recall_lib.store.tables import Tables

# The clicks that follow a complete day are at least this share of a usual day's.
_SHARE = 0.1
_USUAL_DAYS = 28  # days with clicks, the newest before the day, whose median is a usual day


def days_later(day: str, days: int) -> str:
    """The day so many days later."""
    return (date.fromisoformat(day) + timedelta(days=days)).isoformat()


def clicks_after(day: str, log: Mapping[str, int], slack_days: int) -> tuple[int, int]:
    """The clicks of the days after a day, up to `slack_days` later, and those of a usual day."""
    last = days_later(day, slack_days)
    before = [clicks for other, clicks in sorted(log.items()) if other < day][-_USUAL_DAYS:]
    return sum(n for other, n in log.items() if day < other <= last), median_low(before or [log.get(day, 0)])


def is_complete(day: str, log: Mapping[str, int], slack_days: int) -> bool:
    """Whether the log has gone on after a day, so that nothing more of it is to come.

    A few clicks whose clock is wrong show nothing: the clicks of the `slack_days` days after it must be at least a tenth of a
    usual day's.

    Args:
        day: the day.
        log: the clicks of each day in the log.
        slack_days: clicks later than this say nothing.
    """
    later, usual = clicks_after(day, log, slack_days)
    return later > 0 and later >= _SHARE * usual


def _file(tables: Tables) -> str:
    return f"{tables.root}/events/_log.json"


def _counts(tables: Tables) -> dict[str, dict[str, int]]:
    try:
        return {"stored": {}, "log": {}} | tables.read_json(_file(tables))
    except FileNotFoundError:
        return {"stored": {}, "log": {}}


def grown(tables: Tables, log: Mapping[str, int] | None = None) -> dict[str, tuple[int, int]]:
    """The stored days that have more clicks in the log than when they were stored: {day: (clicks then, clicks now)}.

    Args:
        tables: the dated tables.
        log: the clicks of each day in the log; None: as the last ingestion found it.
    """
    counts = _counts(tables)
    now = counts["log"] if log is None else log
    late = {day: (then, now[day]) for day, then in counts["stored"].items() if now.get(day, 0) > then}
    return {day: clicks for day, clicks in sorted(late.items()) if tables.find("events", day)}


def gone(tables: Tables, days: Iterable[str]) -> list[str]:
    """Those of the days that the log no longer had at the last ingestion."""
    log = _counts(tables)["log"]
    return [day for day in days if log and day not in log]


def remember(tables: Tables, log: Mapping[str, int], stored: Collection[str]) -> None:
    """Keep the clicks of each day in the log, for the days that have been stored from it just now."""
    then = _counts(tables)["stored"] | {day: log.get(day, 0) for day in stored}
    tables.write_json(_file(tables), {"stored": dict(sorted(then.items())), "log": dict(sorted(log.items()))})


def remarks(tables: Tables, log: Mapping[str, int], dt: str, days: Collection[str]) -> Iterator[str]:
    """What a person should know of the days of the log, after the `days` have been stored for dt: a line each."""
    if dt not in days:
        slack = tables.config.input.slack_days
        later, usual = clicks_after(dt, log, slack)
        yield (
            f"{dt} is not stored, as more of it may come: in the {slack} days after it (input.slack_days) the log has {later} "
            f"clicks, fewer than a tenth of a usual day's {usual}"
        )
    tomorrow = days_later(datetime.now(UTC).date().isoformat(), 1)
    if ahead := [day for day in log if day > tomorrow]:
        clicks = sum(log[day] for day in ahead)
        yield (
            f"{clicks} clicks ({clicks / sum(log.values()):.2%} of the log) are later than {tomorrow}, up to {ahead[-1]}: "
            "clocks are wrong, or input.time_unit is; they are not stored"
        )
    if late := grown(tables):
        listed = ", ".join(f"{day} ({now - then} more)" for day, (then, now) in list(late.items())[:5])
        more = f" and {len(late) - 5} more days" if len(late) > 5 else ""
        yield (
            f"the log has more clicks of stored days than when they were stored: {listed}{more}; `recall backfill --reprocess "
            "stale` reads them again, and so does a run with input.late_days"
        )


def with_other_settings(manifests: Mapping[str, Mapping[str, Any]], config: Config) -> dict[str, list[str]]:
    """{day: the settings that have changed since its events were stored}, of the days for which any has.

    Args:
        manifests: of the events, by day.
        config: the current config.
    """
    known: list[tuple[Any, list[str]]] = []  # few configs made all days
    found = {}
    for day, manifest in manifests.items():
        then = manifest.get("config", {})
        changed = next((names for config_of_days, names in known if config_of_days == then), None)
        if changed is None:
            changed = other_settings("events", then, config) if then else []
            known.append((then, changed))
        if changed:
            found[day] = changed
    return found


def require_same_settings(tables: Tables, manifests: Mapping[str, Mapping[str, Any]], dt: str) -> None:
    """Refuse days whose events were read with other settings than the config has now: their columns mean something else.

    Args:
        tables: the dated tables.
        manifests: of the events that are to be read together, by day.
        dt: the day that they are read for, for the message.

    Raises:
        DataRefused: with the days, the settings and the command that reads the days again.
    """
    changed = with_other_settings(manifests, tables.config)
    if not changed:
        return
    settings = ", ".join(sorted({name for names in changed.values() for name in names}))
    lost = gone(tables, changed)
    remove = f"; the log lacks {spans(lost)}: remove these with `recall gc --set retention.events_days=N`" if lost else ""
    again = f"`recall backfill --reprocess stale --start {dt} --end {days_later(dt, 1)}`"
    raise DataRefused(
        f"events of {spans(changed)} were read with other settings ({settings}) than the config has now: restore the old "
        f"values, or read the days again, in one pass, with {again}{remove}"
    )


def spans(days: Collection[str]) -> str:
    """Days for a message: `2024-03-01`, or `3 days (2024-03-01 to 2024-03-04)`."""
    return next(iter(days)) if len(days) == 1 else f"{len(days)} days ({min(days)} to {max(days)})"
