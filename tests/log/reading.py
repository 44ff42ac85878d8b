"""Reads small logs without Spark, as its tasks do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa

from recall_lib.config import Config
from recall_lib.log import readers
from recall_lib.log.clicks import FATE, PLACE, RAW, SOURCE, Clicks, Entries, Lines, Mapping
from recall_lib.log.tables import Table, divide, open_table

HEADER = "user_id,article_id,expo_time,click"
NOON = 1709294400  # 2024-03-01 12:00:00


def mapped(table: Table, mapping: Mapping, tasks: int = 3) -> list[dict[str, Any]]:
    """The mapped rows of all pieces."""
    table.require(mapping.needs)
    wanted = list(dict.fromkeys(need.column for need in mapping.needs))
    found = [
        mapping.map(batch, piece.file.place.name, 0)
        for task in divide(table, tasks)
        for piece in task
        for batch in readers.read(piece, wanted)
    ]
    return pa.Table.from_batches(found, mapping.schema).to_pylist()


def read_log(folder: Path, features: dict[str, Any] | None = None, tasks: int = 3, **settings: Any) -> list[dict[str, Any]]:
    """The rows of the click log below a folder."""
    config = Config.model_validate({"input": {"path": str(folder), **settings}, "features": features or {}})
    source = config.input
    form = "sessions" if source.format == "sessions" else None
    table = open_table(source, source.clicks, "the click log", form, source.header)
    mapping = Lines() if form else Clicks(source, (*config.features.user, *config.features.item))
    return mapped(table, mapping, tasks)


def read_entries(folder: Path, path: str, features: dict[str, Any] | None = None, **settings: Any) -> list[dict[str, Any]]:
    """The rows of an item table below a folder."""
    config = Config.model_validate({"input": {"path": str(folder), **settings}, "features": features or {}})
    table = open_table(config.input, path, "the item table", header=config.input.item_columns.header)
    return mapped(table, Entries(config.input, config.input.item_columns.item_id, "item_id", "no_item", config.features.item))


def kept(rows: list[dict[str, Any]], *columns: str) -> list[Any]:
    """The columns (user_id and item_id if none are named) of the kept rows, in order."""
    names = columns or ("user_id", "item_id")
    found = [tuple(row[name] for name in names) for row in rows if row[FATE] == "kept"]
    return sorted(found if len(names) > 1 else [value for (value,) in found], key=str)


def fates(rows: list[dict[str, Any]]) -> dict[str, int]:
    """The number of rows of each fate."""
    names = [row[FATE] for row in rows]
    return {name: names.count(name) for name in sorted(set(names))}


def rejected(rows: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """(source, reason, text) of the rejected rows."""
    return sorted((row[SOURCE], row[FATE], row[RAW]) for row in rows if row[FATE] not in ("kept", "not_clicked", "blank"))


__all__ = ["HEADER", "NOON", "PLACE", "fates", "kept", "mapped", "read_entries", "read_log", "rejected"]
