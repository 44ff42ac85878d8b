"""Raw log -> canonical clicks and rejects (SPEC 1): every row is kept, rejected with a reason, or dropped by name."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType, BooleanType, NumericType, StringType

from recall_lib.config import Feature, Features, Input
from recall_lib.process.errors import DataRefused, NoInput
from recall_lib.spark.source import MALFORMED, RAW, SOURCE
from recall_lib.store import schemas

KEPT, NOT_CLICKED, DUPLICATE, NOT_IN_WINDOW = "kept", "not_clicked", "duplicate", "not_in_window"
DROPS = (NOT_CLICKED, DUPLICATE, NOT_IN_WINDOW)
FATE, DAY = "_fate", "_day"
# A time outside these years is a wrong unit or a broken clock, not a click.
_FIRST_SECOND, _LAST_SECOND = 0, 4102444800  # 1970-01-01, 2100-01-01
_FAR = {"s": 1_000_000, "ms": 1_000, "us": 1}  # microseconds in a unit


def rows_with_fate(rows: DataFrame, items: DataFrame | None, settings: Input, features: Features) -> DataFrame:
    """Click rows -> the events columns, _fate (kept, not_clicked or a reject's reason), _day, _source and _raw.

    Args:
        rows: what spark.source.read_rows gives for the log.
        items: the same for the item table, or None.

    Raises:
        DataRefused: a column that the config names is in neither table.
    """
    in_items = set(items.columns) if items is not None else set()
    of_log = [f for f in features.item if f.source not in in_items]
    of_table = [f for f in features.item if f.source in in_items]
    # The columns of a malformed row may have slid, so it has no readable day.
    day = F.when(~F.col(MALFORMED), F.date_format("event_ts", "yyyy-MM-dd"))
    mapped = map_columns(rows, settings, features, of_log)
    clicks = mapped.withColumn(FATE, fate(settings.ordering)).withColumn(DAY, day)
    if items is not None and of_table:
        clicks = clicks.join(_item_table(items, settings, of_table), "item_id", "left")
    # An item that the table lacks has an empty list, not null.
    lists = {f.name: F.coalesce(F.col(f.name), F.array().cast("array<string>")) for f in features.item if f.multi}
    return clicks.withColumns(lists).select(*schemas.events(features).names, FATE, DAY, SOURCE, RAW)


def map_columns(rows: DataFrame, settings: Input, features: Features, of_log: list[Feature]) -> DataFrame:
    """The log's columns under the names of events, null where a value cannot be read, and what `fate` looks at.

    Args:
        rows: as in `rows_with_fate`.
        settings: name the log's columns.
        features: those of users are all in the log.
        of_log: the items' features that the log holds.

    Raises:
        DataRefused: a column that the config names is not in the log.
    """
    columns = settings.columns
    of_users = [f for f in features.user if f.name != "user_id"]
    wanted = [columns.user_id, columns.item_id, columns.event_ts, columns.click, columns.example_age]
    wanted += [f.source for f in (*of_users, *of_log)]
    require_columns(rows, [name for name in wanted if name], "the click log")
    if settings.ordering == "time":
        time, position = _timestamp(rows, columns.event_ts, settings.time_unit), F.lit(None).cast("long")
    else:
        time, position = F.lit(None).cast("timestamp"), _integer(_column(rows, columns.event_ts))
    age = _text(rows, columns.example_age) if columns.example_age else F.lit(None).cast("string")
    return rows.select(
        _known(_text(rows, columns.user_id)).alias("user_id"),
        _known(_text(rows, columns.item_id)).alias("item_id"),
        time.alias("event_ts"),
        position.alias("position"),
        _try_cast(age, "double").alias("example_age"),
        *(_known(_text(rows, f.source)).alias(f.name) for f in of_users),
        *(_item_values(rows, f).alias(f.name) for f in of_log),
        (_number_text(rows, columns.click) if columns.click else F.lit("1")).alias("_click"),
        (age.isNotNull() & _try_cast(age, "double").isNull()).alias("_bad_age"),
        SOURCE,
        RAW,
        MALFORMED,
    )


def fate(ordering: str) -> Column:
    """What becomes of a row of `map_columns`: the first reason to reject it, else not_clicked or kept."""
    by_time = ordering == "time"
    clock = F.col("event_ts" if by_time else "position")
    click = _try_cast(F.col("_click"), "double")
    return (
        F.when(F.col(MALFORMED), "malformed")
        .when(F.col(RAW).contains("\ufffd"), "bad_utf8")  # what the CSV parser makes of undecodable bytes
        .when(clock.isNull(), "bad_time" if by_time else "bad_position")
        .when(F.col("user_id").isNull(), "no_user")
        .when(F.col("item_id").isNull(), "no_item")
        .when(click.isNull() | ~click.isin(0.0, 1.0), "bad_click")
        .when(F.col("_bad_age"), "bad_example_age")
        .when(click == 0.0, NOT_CLICKED)
        .otherwise(KEPT)
    )


def lines_with_fate(lines: DataFrame) -> DataFrame:
    """Session lines -> user_id, _clicks (array of `item:category:tags`), fields, _fate, _source, _raw; one row a line.

    A line fails as a whole. Identical lines count once (`duplicate`); different lines of one user are all rejected.
    """
    fields = F.split(RAW, "\t", -1)
    user, clicks = _known(fields[0]), F.get(fields, 3)  # `get` gives null where a line has fewer fields
    parts = F.transform(F.split(clicks, ";", -1), lambda click: F.split(click, ":", -1))
    click_is_bad = F.exists(parts, lambda p: (F.size(p) != 3) | (F.element_at(p, 1).isin("", "NULL")))
    judged = lines.groupBy(RAW).agg(F.min(SOURCE).alias(SOURCE), F.count(F.lit(1)).alias("_copies"))
    judged = judged.select(
        "*",
        user.alias("user_id"),
        *(_known(F.get(fields, i)).alias(name) for i, name in ((1, "province"), (2, "city"), (4, "phone"))),
        parts.alias("_clicks"),
        F.when(F.decode(F.col(RAW).cast("binary"), "UTF-8") != F.col(RAW), "bad_utf8")  # undecodable bytes come back changed
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


def _clicks_of_lines(judged: DataFrame, features: Features) -> DataFrame:
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
        *(_split_values(fields[f.source], f).alias(f.name) for f in features.item),
        "dt",
    ).select(*schemas.events(features).names, "dt")


def days_of(judged: DataFrame, ordering: str) -> list[str]:
    """The days that have clicks, ascending; none with ordering `position`."""
    if ordering == "position":
        return []
    return sorted(row[0] for row in judged.where(F.col(FATE) == KEPT).select(DAY).distinct().collect())


def assign_days(judged: DataFrame, ordering: str, dt: str, days: list[str]) -> DataFrame:
    """Adds column dt: the day under which a row is stored; rows of other days get the fate not_in_window.

    Rows without a readable day, and with ordering `position` all rows, belong to the day that was run.
    """
    if ordering == "position":
        return judged.withColumn("dt", F.lit(dt))
    outside = F.col(DAY).isNotNull() & ~F.col(DAY).isin(days)
    judged = judged.withColumn(FATE, F.when(outside, NOT_IN_WINDOW).otherwise(F.col(FATE)))
    return judged.withColumn("dt", F.coalesce(DAY, F.lit(dt)))


def kept_clicks(judged: DataFrame, form: str, features: Features) -> DataFrame:
    """The events columns and dt, each click once."""
    if form == "sessions":
        return _clicks_of_lines(judged, features)
    return judged.where(F.col(FATE) == KEPT).select(*schemas.events(features).names, "dt").distinct()


def rejects(judged: DataFrame) -> DataFrame:
    """schemas.REJECTS and dt."""
    rejected = judged.where(~F.col(FATE).isin(KEPT, *DROPS))
    return rejected.select(F.col(SOURCE).alias("source"), F.col(FATE).alias("reason"), F.col(RAW).alias("raw"), "dt")


def user_bucket(buckets: int = 64) -> Column:
    """Spreads a day's users over files."""
    return F.pmod(F.xxhash64("user_id"), F.lit(buckets))


def account(judged: DataFrame, clicks: DataFrame, settings: Input) -> dict[str, int]:
    """{in, kept, duplicate, not_clicked, not_in_window, rejected_<reason>}: in is the sum of the others, in rows or lines.

    Raises:
        NoInput: the log has no row.
        DataRefused: more than max_reject_share of the rows in the window were rejected.
    """
    copies = F.col("_copies") if "_copies" in judged.columns else F.lit(1)
    undated = (F.col(DAY).isNull() if DAY in judged.columns else F.lit(True)).alias("undated")
    groups = judged.groupBy(FATE, undated).agg(F.count(F.lit(1)).alias("n"), F.sum(copies).alias("copies")).collect()
    total = sum(group.copies for group in groups)
    if not total:
        raise NoInput(f"{settings.path}/{settings.clicks} has no row: nothing to read; check input.path and input.clicks")
    counts: dict[str, int] = {}
    for group in groups:
        counts[group[FATE]] = counts.get(group[FATE], 0) + group.n
    duplicates = total - sum(counts.values())
    if settings.format == "rows":
        kept = clicks.count()
        duplicates, counts[KEPT] = counts.get(KEPT, 0) - kept, kept
    reasons = {fate: n for fate, n in sorted(counts.items()) if fate not in (KEPT, *DROPS)}
    # Rows without a readable day are told apart from the whole log's, the others from those of the days that are read.
    of_log = sum(group.n for group in groups if group.undated and group[FATE] in reasons)
    of_days = sum(group.n for group in groups if not group.undated and group[FATE] in reasons)
    _check_share(of_log, total, reasons, settings)
    _check_share(of_days, sum(g.n for g in groups if not g.undated and g[FATE] != NOT_IN_WINDOW), reasons, settings)
    drops = {DUPLICATE: duplicates, NOT_CLICKED: counts.get(NOT_CLICKED, 0), NOT_IN_WINDOW: counts.get(NOT_IN_WINDOW, 0)}
    return {"in": total, KEPT: counts.get(KEPT, 0), **drops, **{f"rejected_{reason}": n for reason, n in reasons.items()}}


def _check_share(rejected: int, rows: int, reasons: dict[str, int], settings: Input) -> None:
    if rejected > settings.max_reject_share * rows:
        listed = ", ".join(f"{reason} {n}" for reason, n in reasons.items())
        unit = "lines" if settings.format == "sessions" else "rows"
        raise DataRefused(
            f"{rejected} of {rows} {unit} are unreadable ({listed}), above "
            f"input.max_reject_share {settings.max_reject_share}: mend the log or the column mapping, or raise the share"
        )


def require_columns(frame: DataFrame, names: list[str], what: str) -> None:
    """Raises DataRefused, with what there is, if a raw table lacks a column."""
    missing = sorted({name for name in names if name not in frame.columns})
    if missing:
        have = [name for name in frame.columns if name not in (SOURCE, RAW, MALFORMED)]
        raise DataRefused(f"{what} has no column {missing}; it has {have}: map them in input.columns or features.*.column")


def _column(frame: DataFrame, name: str) -> Column:
    return frame[f"`{name}`"]


def _text(frame: DataFrame, name: str) -> Column:
    return _column(frame, name).cast("string")


def _number_text(frame: DataFrame, name: str) -> Column:
    """As text, with true and false as 1 and 0."""
    boolean = isinstance(frame.schema[name].dataType, BooleanType)
    return _column(frame, name).cast("int" if boolean else "string").cast("string")


def _try_cast(value: Column, kind: str) -> Column:
    """The value as `kind`, or null where it cannot be one."""
    # Spark 3.5 has no Column.try_cast: there `cast` gives null, unless somebody turns its ANSI mode on.
    return value.try_cast(kind) if hasattr(Column, "try_cast") else value.cast(kind)


def _known(text: Column) -> Column:
    """NULL and empty are unknown (SPEC 2.2)."""
    return F.when(~text.isin("", "NULL"), text)


def _integer(value: Column) -> Column:
    text = F.trim(value.cast("string"))
    return F.when(text.rlike(r"^-?\d{1,18}$"), text.cast("long"))


def _timestamp(frame: DataFrame, name: str, unit: str) -> Column:
    """The time in UTC, or null where it cannot be read as the unit says."""
    value, kind = _column(frame, name), frame.schema[name].dataType
    if unit == "iso" or not isinstance(kind, (NumericType, StringType)):
        text = F.trim(value.cast("string"))
        moment = F.to_timestamp(value) if not isinstance(kind, StringType) else F.try_to_timestamp(text)
        moment = F.when(text.rlike(r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}.*)?$"), moment)
        micros = F.unix_micros(moment)
    else:
        if isinstance(kind, StringType):
            value = F.when(F.trim(value).rlike(r"^\d{1,20}(\.\d+)?$"), F.trim(value))
        micros = (_try_cast(value, "decimal(30,6)") * _FAR[unit]).cast("decimal(38,0)")
    in_range = micros.between(_FIRST_SECOND * 1_000_000, _LAST_SECOND * 1_000_000 - 1)
    return F.when(in_range, F.timestamp_micros(micros.cast("long")))


def _split_values(text: Column, feature: Feature) -> Column:
    """The feature's value, or its list of values (empty when there is none); an empty value inside a list is null."""
    if not feature.multi:
        return _known(text)
    values = F.transform(F.split(text, r"\Q" + feature.separator + r"\E", -1), _known)
    return F.coalesce(F.when(_known(text).isNotNull(), values), F.array().cast("array<string>"))


def _item_values(frame: DataFrame, feature: Feature) -> Column:
    if isinstance(frame.schema[feature.source].dataType, ArrayType):
        values = F.transform(_column(frame, feature.source).cast("array<string>"), _known)
        return F.coalesce(values, F.array().cast("array<string>")) if feature.multi else F.try_element_at(values, F.lit(1))
    return _split_values(_text(frame, feature.source), feature)


def _item_table(items: DataFrame, settings: Input, features: list[Feature]) -> DataFrame:
    """item_id and its features; of several rows for one item the least is taken, so that reruns agree."""
    names = settings.item_columns
    require_columns(items, [names.item_id], "the item table")
    table = items.where(~F.col(MALFORMED)).select(
        _known(_text(items, names.item_id)).alias("item_id"),
        F.struct(*(_item_values(items, f).alias(f.name) for f in features)).alias("_features"),
    )
    table = table.where("item_id IS NOT NULL").groupBy("item_id").agg(F.min("_features").alias("_features"))
    return table.select("item_id", "_features.*")
