"""The tables of the raw log that a day's config names, read and counted."""

from __future__ import annotations

from typing import Any

from pyspark.sql import DataFrame

from recall_lib.config import ItemFeature
from recall_lib.day.context import Context
from recall_lib.log.clicks import Clicks, Entries, Lines, Mapping
from recall_lib.log.tables import Table
from recall_lib.spark import source
from recall_lib.transforms import events as transform


def read_log(ctx: Context) -> tuple[DataFrame, DataFrame | None, dict[str, Any]]:
    """The rows (session lines) of the click log with their fate, the item table if it is used, and facts of that table."""
    settings, features = ctx.config.input, ctx.config.features
    if settings.format == "sessions":
        lines = source.open_source(ctx.spark, settings, settings.clicks, "the click log", form="sessions")
        return transform.lines_with_fate(source.read(ctx.spark, lines, Lines()), settings.nulls), None, {}
    log = source.open_source(ctx.spark, settings, settings.clicks, "the click log", header=settings.header)
    table = None
    if settings.items:
        header = settings.item_columns.header
        table = source.open_source(ctx.spark, settings, settings.items, "the item table", header=header)
    in_table = table.columns if table else set()
    of_table = tuple(f for f in features.item if f.source in in_table)
    users = tuple(f for f in features.user if f.name != "user_id")
    clicks = _read(ctx, log, Clicks(settings, users, tuple(f for f in features.item if f not in of_table)))
    if table is None or not of_table:
        return clicks, None, {}
    entries = _read(ctx, table, Entries(settings, settings.item_columns.item_id, "item_id", "no_item", of_table)).persist()
    items = transform.item_table(entries, list(of_table)).persist()
    facts = {"item_table": _counted(ctx, entries, "the item table")}
    return transform.with_item_table(clicks, items, features), items, facts


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
    title = ItemFeature(name="title", column=column)
    entries = _read(ctx, table, Entries(settings, settings.item_columns.item_id, "item_id", "no_item", (title,)))
    return transform.item_table(entries, [title])


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
