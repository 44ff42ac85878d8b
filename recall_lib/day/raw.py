"""The tables of the raw log that a day's config names, read and counted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyspark.sql import DataFrame

from recall_lib.config import Feature, Number
from recall_lib.day.context import Context
from recall_lib.log.clicks import Clicks, Entries, Lines, Mapping
from recall_lib.log.tables import Table
from recall_lib.spark import source
from recall_lib.transforms import events as transform


def read_log(ctx: Context) -> tuple[DataFrame, dict[str, DataFrame], dict[str, Any]]:
    """The rows (session lines) of the click log with their fate, and the tables that their features come from.

    Returns:
        The rows; by item_id or user_id the features that are read from the item table or the user table; facts of these tables.
    """
    settings, features = ctx.config.input, ctx.config.features
    if settings.format == "sessions":
        lines = source.open_source(ctx.spark, settings, settings.clicks, "the click log", form="sessions")
        return transform.lines_with_fate(source.read(ctx.spark, lines, Lines()), settings.nulls), {}, {}
    log = source.open_source(ctx.spark, settings, settings.clicks, "the click log", header=settings.header)
    of_items: tuple[Feature | Number, ...] = (*features.item, *(number for number in features.numbers if number.of == "item"))
    of_users: tuple[Feature | Number, ...] = (
        *(feature for feature in features.user if feature.name != "user_id"),
        *(number for number in features.numbers if number.of == "user"),
    )
    item_header = settings.item_columns.header
    items = _Joined.of(ctx, settings.items, "item_id", settings.item_columns.item_id, of_items, item_header)
    users = _Joined.of(ctx, settings.user_table, "user_id", settings.columns.user_id, of_users)
    in_tables = {feature.name for table in (items, users) if table for feature in table.features}
    of_log: tuple[Feature | Number, ...] = tuple(feature for feature in (*of_users, *of_items) if feature.name not in in_tables)
    shown = ctx.config.samples.negatives == "impressions"
    clicks = _read(ctx, log, Clicks(settings, of_log, features.sequences, shown))
    tables = [table for table in (items, users) if table]
    facts = {table.label.removeprefix("the ").replace(" ", "_"): table.counts for table in tables}
    return clicks, {table.key: table.rows for table in tables}, facts


@dataclass(frozen=True)
class _Joined:
    """A table of items or users whose features are joined to the clicks.

    Attributes:
        label: for messages.
        key: item_id or user_id.
        features: those that it holds.
        rows: one per id, persisted.
        counts: of its rows, by what became of them.
    """

    label: str
    key: str
    features: tuple[Feature | Number, ...]
    rows: DataFrame
    counts: dict[str, int]

    @classmethod
    def of(
        cls,
        ctx: Context,
        path: str | None,
        key: str,
        column: str,
        features: tuple[Feature | Number, ...],
        header: tuple[str, ...] | None = None,
    ) -> _Joined | None:
        """The table, if it is set and holds one of the features."""
        if not path:
            return None
        label, reason = f"the {key.removesuffix('_id')} table", f"no_{key.removesuffix('_id')}"
        table = source.open_source(ctx.spark, ctx.config.input, path, label, header=header)
        held = tuple(feature for feature in features if feature.source in table.columns)
        if not held:
            return None
        entries = _read(ctx, table, Entries(ctx.config.input, column, key, reason, held)).persist()
        counts = _counted(ctx, entries, label)
        return cls(label, key, held, transform.entries_by_id(entries, key, held).persist(), counts)


def read_ids(ctx: Context, path: str, column: str, name: str, setting: str) -> tuple[DataFrame, dict[str, int]]:
    """The distinct ids in a column of a table, and how many rows were read and rejected.

    Args:
        ctx: the day's context.
        path: of the table.
        column: of the ids.
        name: of the result's column.
        setting: that names the table, for messages.
    """
    table = source.open_source(ctx.spark, ctx.config.input, path, setting)
    entries = _read(ctx, table, Entries(ctx.config.input, column, name, "no_id"))
    counts = _counted(ctx, entries, setting)
    return entries.where(f"{transform.FATE} = '{transform.KEPT}'").select(name).distinct(), counts


def read_titles(ctx: Context, path: str, column: str) -> DataFrame:
    """item_id and title, a column of the item table."""
    settings = ctx.config.input
    table = source.open_source(ctx.spark, settings, path, "the item table", header=settings.item_columns.header)
    title = Feature(name="title", column=column)
    entries = _read(ctx, table, Entries(settings, settings.item_columns.item_id, "item_id", "no_item", (title,)))
    return transform.entries_by_id(entries, "item_id", [title])


def warn_of_unknown_items(ctx: Context, clicks: DataFrame, items: DataFrame) -> dict[str, int]:
    """How many of the log's items the item table holds; few of them are warned of."""
    found = transform.known_items(clicks, items)
    few = found["in_table"] < transform.UNKNOWN_ITEMS * found["in_log"]
    ctx.say(f"{'warning: only ' * few}{found['in_table']} of {found['in_log']} items of the log are in the item table")
    return found


def _read(ctx: Context, table: Table, mapping: Mapping) -> DataFrame:
    for warning in table.require(mapping.needs):
        ctx.say(f"warning: {warning}")
    return source.read(ctx.spark, table, mapping)


def _counted(ctx: Context, entries: DataFrame, label: str) -> dict[str, int]:
    counts = transform.account_of_entries(entries, ctx.config.input, label)
    ctx.say(f"{label}: read {counts['in']}: " + ", ".join(f"{n} {fate}" for fate, n in counts.items() if fate != "in"))
    return counts
