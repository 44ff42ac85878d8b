"""Publishes a frame as a table."""

from __future__ import annotations

from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql.types import StructType

from recall_lib.store.tables import Tables


def publish(tables: Tables, frame: DataFrame, schema: StructType, dataset: str, dt: str, **options: Any) -> dict[str, Any]:
    """The manifest of what has come of it."""
    with tables.publishing(dataset, dt, **options) as staged:
        staged.write(frame, schema)
    return dict(staged.publication.manifest)
