"""Clicks and rejects from the mapped rows of the raw log (SPEC 1): each is kept, rejected with a reason, or dropped by name.

log/clicks.py maps single rows. Here is what needs several of them: the item table, duplicates, session lines, days, counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from recall_lib.config import Feature, Features, Input, Number
from recall_lib.log.batch import BLANK
from recall_lib.log.clicks import (
    ACTIVITY,
    DATE_ONLY,
    DAY,
    FATE,
    FLOAT_LIKE_ID,
    KEPT,
    LOOKS_LIKE,
    NOT_CLICKED,
    NOTES,
    PLACE,
    RAW,
    SOURCE,
)
from recall_lib.process.errors import DataRefused, NoInput
from recall_lib.store import schemas

DUPLICATE, NOT_IN_WINDOW = "duplicate", "not_in_window"
DROPS = (NOT_CLICKED, DUPLICATE, NOT_IN_WINDOW, BLANK)
# Above these shares of the clicks the log is probably not what it seems, and the run says so.
_DATES, _TIED = 0.5, 0.1
UNKNOWN_ITEMS = 0.5  # below this share of the items the ids of log and item table are probably written differently
# Clicks among which equal times are counted, about.
_COUNTED = 1_000_000


def entries_by_id(entries: DataFrame, key: str, features: Sequence[Feature | Number]) -> DataFrame:
    """One row per id, and for each feature the first value that is known, in the order of the table.

    Args:
        entries: rows of log.clicks.Entries; of a catalog table, which has no order, the least value is taken.
        key: the column of the ids.
        features: those that the table holds.
    """

    def first_known(feature: Feature | Number) -> Column:
        value = F.col(feature.name)
        return F.min_by(value, F.when(_is_known(feature), F.struct(PLACE, value))).alias(feature.name)

    return entries.where(F.col(FATE) == KEPT).groupBy(key).agg(*map(first_known, features))


def _is_known(feature: Feature | Number) -> Column:
    value = F.col(feature.name)
    return F.coalesce(F.size(value), F.lit(0)) > 0 if feature.multi else value.isNotNull()


def known_items(clicks: DataFrame, table: DataFrame) -> dict[str, int]:
    """The items of the log, and how many of them the item table holds."""
    items = clicks.select("item_id").distinct().join(table.select("item_id", F.lit(1).alias("n")), "item_id", "left")
    in_log, in_table = items.agg(F.count(F.lit(1)), F.count("n")).first() or (0, 0)
    return {"in_log": in_log, "in_table": in_table}


def lines_with_fate(lines: DataFrame, nulls: list[str]) -> DataFrame:
    """Session lines -> user_id, _clicks (array of `item:category:tags`), fields, _fate, _source, _raw; one row a line.

    A line fails as a whole. Identical lines count once (`duplicate`); different lines of one user are all rejected.

    Args:
        lines: rows of log.clicks.Lines.
        nulls: texts that stand for no value.
    """

    def known(text: Column) -> Column:
        return F.when(~text.isin(nulls) & (F.trim(text) != ""), text)

    fields = F.split(RAW, "\t", -1)
    user, clicks = known(fields[0]), F.get(fields, 3)  # `get` gives null where a line has fewer fields
    parts = F.transform(F.split(clicks, ";", -1), lambda click: F.split(click, ":", -1))
    click_is_bad = F.exists(parts, lambda p: (F.size(p) != 3) | known(F.element_at(p, 1)).isNull())
    judged = lines.groupBy(RAW, FATE).agg(F.min(SOURCE).alias(SOURCE), F.count(F.lit(1)).alias("_copies"))
    judged = judged.select(
        RAW,
        SOURCE,
        "_copies",
        user.alias("user_id"),
        *(known(F.get(fields, i)).alias(name) for i, name in ((1, "province"), (2, "city"), (4, "phone"))),
        parts.alias("_clicks"),
        F.when(F.col(FATE) != KEPT, F.col(FATE))
        .when(F.size(fields) != 5, "field_count")
        .when(user.isNull(), "no_user")
        .when(clicks == "", "no_clicks")
        .when(click_is_bad, "bad_click")
        .otherwise(KEPT)
        .alias(FATE),
    )
    lines_of_user = judged.where(F.col(FATE) == KEPT).groupBy("user_id").agg(F.count(F.lit(1)).alias("_lines"))
    judged = judged.join(lines_of_user, "user_id", "left")
    return judged.withColumn(
        FATE, F.when((F.col(FATE) == KEPT) & (F.col("_lines") > 1), "duplicate_user").otherwise(F.col(FATE))
    )


def _clicks_of_lines(judged: DataFrame, features: Features, nulls: list[str]) -> DataFrame:
    """The kept lines' clicks in the events columns; the position is the place in the line."""
    clicks = judged.where(F.col(FATE) == KEPT).select("*", F.posexplode("_clicks").alias("_place", "_click"))
    fields = {"category": F.col("_click")[1], "tags": F.col("_click")[2]}
    return clicks.select(
        "user_id",
        F.col("_click")[0].alias("item_id"),
        F.lit(None).cast("timestamp").alias("event_ts"),
        F.col("_place").cast("long").alias("position"),
        F.lit(None).cast("double").alias("example_age"),
        *(F.col(f.source).alias(f.name) for f in features.user if f.name != "user_id"),
        *(_split_values(fields[f.source], f, nulls).alias(f.name) for f in features.item),
        "dt",
    ).select(*schemas.events(features).names, "dt")


def clicks_of_days(judged: DataFrame, ordering: str) -> dict[str, int]:
    """The clicks of each day that has any, duplicates included, days ascending; none with ordering `position`."""
    if ordering == "position":
        return {}
    counts = judged.where(F.col(FATE) == KEPT).groupBy(DAY).count().collect()
    return dict(sorted((day, clicks) for day, clicks in counts))


def assign_days(judged: DataFrame, ordering: str, dt: str, days: list[str]) -> DataFrame:
    """Adds column dt: the day under which a row is stored; rows of other days get the fate not_in_window.

    Rows without a readable day, and with ordering `position` all rows, belong to the day that was run.
    """
    if ordering == "position":
        return judged.withColumn("dt", F.lit(dt))
    outside = F.col(DAY).isNotNull() & ~F.col(DAY).isin(days)
    judged = judged.withColumn(FATE, F.when(outside, NOT_IN_WINDOW).otherwise(F.col(FATE)))
    return judged.withColumn("dt", F.coalesce(DAY, F.lit(dt)))


def kept_clicks(judged: DataFrame, tables: Mapping[str, DataFrame], settings: Input, features: Features) -> DataFrame:
    """The events columns and dt, each click once.

    Args:
        judged: the log's rows with their fate and dt.
        tables: by item_id or user_id, the features that are read from tables (`entries_by_id`). An id that a table lacks has
            an empty list, and null for a single value.
        settings: of the log.
        features: all of them.
    """
    if settings.format == "sessions":
        return _clicks_of_lines(judged, features, settings.nulls)
    clicks = judged.where(F.col(FATE) == KEPT)
    for key, table in tables.items():
        clicks = clicks.join(table, key, "left")
    several = [feature.name for feature in (*features.user, *features.item) if feature.multi]
    lists = {name: F.coalesce(name, F.array().cast("array<string>")) for name in several}
    return clicks.withColumns(lists).select(*schemas.events(features).names, "dt").distinct()


def activity(judged: DataFrame) -> DataFrame:
    """schemas.ACTIVITY and dt, each event once; none of rows that were rejected or belong to other days."""
    rows = judged.where(F.col(FATE).isin(KEPT, NOT_CLICKED)).withColumn("_event", F.explode(ACTIVITY))
    columns = [name for name in schemas.ACTIVITY.names if name not in ("sequence", "values")]
    return rows.select(*columns, "_event.sequence", "_event.values", "dt").distinct()


def rejects(judged: DataFrame) -> DataFrame:
    """schemas.REJECTS and dt."""
    rejected = judged.where(~F.col(FATE).isin(KEPT, *DROPS))
    return rejected.select(F.col(SOURCE).alias("source"), F.col(FATE).alias("reason"), F.col(RAW).alias("raw"), "dt")


# Clicks that one file holds at ease.
_FILE_CLICKS = 1 << 17
_BUCKETS = 64


def spread(clicks: DataFrame, partitions: int) -> DataFrame:
    """The clicks in so many partitions, from which a day is written in one file, or in several if it is large."""
    days = clicks.groupBy("dt").count().where(F.col("count") > _FILE_CLICKS)
    large = [row[0] for row in days.collect()]
    bucket = F.when(F.col("dt").isin(large), F.pmod(F.xxhash64("user_id"), F.lit(_BUCKETS))).otherwise(F.lit(0))
    return clicks.repartition(partitions, "dt", bucket)


def account(judged: DataFrame, clicks: DataFrame, settings: Input, features: Features) -> tuple[dict[str, int], list[str]]:
    """{in, kept, duplicate, not_clicked, not_in_window, blank, rejected_<reason>}, and what to warn of.

    `in` is the sum of the others, in rows or lines; blank stands there only if there are blank lines.

    Raises:
        NoInput: the log has no row.
        DataRefused: more than max_reject_share of the rows in the window were rejected.
    """
    of_lines = settings.format == "sessions"
    copies = F.col("_copies") if of_lines else F.lit(1)
    undated = (F.col(DAY).isNull() if DAY in judged.columns else F.lit(True)).alias("undated")
    notes, looks_like = (F.lit(0), F.lit(None)) if of_lines else (F.col(NOTES), F.col(LOOKS_LIKE))
    marks = {name: (notes.bitwiseAND(bit) > 0).cast("int") for name, bit in _BITS.items()}
    of_log = [] if of_lines else [f for f in (*features.user, *features.item) if f.name in judged.columns]
    marks |= {f"values of {f.name}": _is_known(f).cast("int") for f in of_log}
    sums = [F.coalesce(F.sum(mark), F.lit(0)).alias(name) for name, mark in marks.items()]
    counted = [F.count(F.lit(1)).alias("n"), F.sum(copies).alias("copies"), *sums]
    groups = judged.groupBy(FATE, undated, looks_like.alias("looks_like")).agg(*counted).collect()
    total = sum(group.copies for group in groups)
    if total == sum(group.copies for group in groups if group[FATE] == BLANK):
        raise NoInput(f"{settings.path}/{settings.clicks} has no row: nothing to read; check input.path and input.clicks")
    counts: dict[str, int] = {}
    for group in groups:
        counts[group[FATE]] = counts.get(group[FATE], 0) + (group.copies if group[FATE] == BLANK else group.n)
    duplicates = total - sum(counts.values())
    if not of_lines:
        kept = clicks.count()
        duplicates, counts[KEPT] = counts.get(KEPT, 0) - kept, kept
    reasons = {fate: n for fate, n in sorted(counts.items()) if fate not in (KEPT, *DROPS)}
    # Rows without a readable day are compared with the whole log, the others with the days that are read.
    of_log = sum(group.n for group in groups if group.undated and group[FATE] in reasons)
    of_days = sum(group.n for group in groups if not group.undated and group[FATE] in reasons)
    units = {group.looks_like for group in groups if group.looks_like} - {settings.time_unit}
    hint = f"; the times look like {', '.join(sorted(units))}: see input.time_unit" if units else ""
    check_share(of_log, total, reasons, settings, "the log", hint)
    in_days = sum(g.n for g in groups if not g.undated and g[FATE] != NOT_IN_WINDOW)
    check_share(of_days, in_days, reasons, settings, "the log", hint)
    drops = {DUPLICATE: duplicates, NOT_CLICKED: counts.get(NOT_CLICKED, 0), NOT_IN_WINDOW: counts.get(NOT_IN_WINDOW, 0)}
    drops |= {BLANK: counts[BLANK]} if BLANK in counts else {}
    found = {"in": total, KEPT: counts.get(KEPT, 0), **drops, **{f"rejected_{reason}": n for reason, n in reasons.items()}}
    return found, _warnings({name: sum(group[name] for group in groups) for name in marks}, total)


_BITS = {"float_like": FLOAT_LIKE_ID, "dates": DATE_ONLY}


def _warnings(marks: dict[str, int], rows: int) -> list[str]:
    said = []
    if marks["float_like"]:
        said.append(f"{marks['float_like']} of {rows} rows have an id such as 123.0, which is a text here and not the id 123")
    if marks["dates"] > _DATES * rows:
        said.append(f"{marks['dates']} of {rows} times have no time of day: a user's clicks of a day have no order")
    empty = [name.removeprefix("values of ") for name, n in marks.items() if name.startswith("values of ") and not n]
    return said + [f"no row has a value of feature {name}: check its column in the config" for name in empty]


def tied_times(clicks: DataFrame, rows: int) -> list[str]:
    """A warning if many clicks have the time of another click of their user; of a long log some of the users are looked at.

    Args:
        clicks: the kept ones.
        rows: their number.
    """
    some = clicks.where(F.pmod(F.xxhash64("user_id"), F.lit(1 + rows // _COUNTED)) == 0)
    moments = some.groupBy("user_id", "event_ts", "position").agg(F.count(F.lit(1)).alias("n"))
    counted = moments.agg(F.sum("n").alias("clicks"), F.count(F.lit(1)).alias("moments")).first()
    if not counted or not counted.clicks or counted.clicks - counted.moments <= _TIED * counted.clicks:
        return []
    share = 1 - counted.moments / counted.clicks
    return [f"{share:.0%} of the clicks have the time of another click of their user: input.columns.order can order them"]


def account_of_entries(entries: DataFrame, settings: Input, label: str) -> dict[str, int]:
    """{in, kept, blank, rejected_<reason>} of a table of ids.

    Raises:
        DataRefused: more than max_reject_share of its rows were rejected.
    """
    counts: dict[str, int] = dict(entries.groupBy(FATE).agg(F.count(F.lit(1))).collect())
    reasons = {fate: n for fate, n in sorted(counts.items()) if fate not in (KEPT, BLANK)}
    rows = sum(counts.values())
    check_share(sum(reasons.values()), rows, reasons, settings, label)
    blank = {BLANK: counts[BLANK]} if BLANK in counts else {}
    return {"in": rows, KEPT: counts.get(KEPT, 0), **blank, **{f"rejected_{reason}": n for reason, n in reasons.items()}}


def check_share(rejected: int, rows: int, reasons: dict[str, int], settings: Input, label: str, hint: str = "") -> None:
    """Raises DataRefused if more than input.max_reject_share of the rows of a table were rejected."""
    if rejected > settings.max_reject_share * rows:
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons.items())
        unit = "lines" if settings.format == "sessions" and label == "the log" else "rows"
        raise DataRefused(
            f"{rejected} of {rows} {unit} are unreadable ({listed}), above input.max_reject_share "
            f"{settings.max_reject_share}{hint}: mend {label} or the column mapping, or raise the share"
        )


def _split_values(text: Column, feature: Feature, nulls: list[str]) -> Column:
    """The feature's value, or its list of values (empty when there is none); an empty value inside a list is null."""

    def known(value: Column) -> Column:
        return F.when(~value.isin(nulls) & (F.trim(value) != ""), value)

    if not feature.multi:
        return known(text)
    values = F.transform(F.split(text, r"\Q" + feature.separator + r"\E", -1), known)
    return F.coalesce(F.when(known(text).isNotNull(), values), F.array().cast("array<string>"))
