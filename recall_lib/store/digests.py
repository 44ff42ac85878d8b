"""Digests of table contents; they do not depend on the order of rows or on partitions."""

from __future__ import annotations

import hashlib
import json

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.types import ArrayType


def content_digests(frame: DataFrame, by: str | None = None) -> dict[str, tuple[int, str]]:
    """(rows, digest) per value of column `by`: equal for equal rows in any order and any number of partitions or files.

    Without `by` the whole frame is one group named "".
    """
    key = F.col(by) if by else F.lit("")
    # xxhash64 skips nulls and ignores where a list ends, so null flags and list lengths are hashed too.
    columns: list[Column] = []
    for field in frame.schema:
        if field.name != by:
            column = F.col(f"`{field.name}`")
            columns += [column, F.size(column) if isinstance(field.dataType, ArrayType) else column.isNull()]
    sums = [F.sum(F.xxhash64(F.lit(salt), *columns).cast("decimal(38,0)")).cast("string") for salt in (1, 2)]
    rows = frame.groupBy(key.alias("key")).agg(F.count(F.lit(1)), *sums).collect()
    return {key: (count, _digest(count, *totals)) for key, count, *totals in rows}


def _digest(rows: int, *sums: str | None) -> str:
    return hashlib.sha256(json.dumps([rows, *sums]).encode()).hexdigest()


EMPTY_DIGEST = _digest(0, None, None)
