"""Every table's columns, declared once, and the check that a DataFrame has them.

Encoded columns: ids are int32, 0 = padding, 1 = unknown, from 2 by falling count (SPEC 2.2).
"""

from __future__ import annotations

from pyspark.sql import DataFrame
from pyspark.sql.types import (
    ArrayType,
    BooleanType,
    DataType,
    DoubleType,
    FloatType,
    IntegerType,
    LongType,
    StringType,
    StructField,
    StructType,
    TimestampType,
)

from recall_lib.config import Features
from recall_lib.process.errors import DataRefused

_INTS = ArrayType(IntegerType())

SCORED_ITEMS = ArrayType(StructType([StructField("item_id", StringType()), StructField("score", FloatType())]))


def _struct(**columns: DataType) -> StructType:
    return StructType([StructField(name, kind) for name, kind in columns.items()])


# source: file or folder; reason: one word; raw: the line, or the row as CSV or JSON
REJECTS = _struct(source=StringType(), reason=StringType(), raw=StringType())
# key (feature, index); index 1 has a null value and the count of everything filtered. Of a number index and value are a
# percentile, 0 to 100, and the number there, and count is that of all clicks with a known number.
VOCAB = _struct(feature=StringType(), index=IntegerType(), value=StringType(), count=LongType())
ITEM_VECTORS = _struct(item_index=IntegerType(), item_id=StringType(), vector=ArrayType(FloatType()))
USER_VECTORS = _struct(user_id=StringType(), vector=ArrayType(FloatType()))
# Both kinds are one table. The files of one kind lack the id columns of the other; Spark reads them as null.
VECTORS = StructType([*(field for field in USER_VECTORS if field.name != "vector"), *ITEM_VECTORS])
# key user_id; items best first; source model | popular
TOP_N = _struct(user_id=StringType(), items=SCORED_ITEMS, source=StringType(), model_version=StringType())
# key (window, rank); window all | recent; rank from 1
POPULAR = _struct(window=StringType(), rank=IntegerType(), item_id=StringType(), count=LongType())
# key (source, item_id); source vectors | covisitation; items best first, never the item itself
RELATED = _struct(source=StringType(), item_id=StringType(), items=SCORED_ITEMS)


def events(features: Features) -> StructType:
    """Clicks: one row per click. event_ts is null with ordering `position`, position is null with ordering `time`, or
    the column `input.columns.order`."""
    columns: dict[str, DataType] = {
        "user_id": StringType(),
        "item_id": StringType(),
        "event_ts": TimestampType(),
        "position": LongType(),
        "example_age": DoubleType(),  # days; null unless the log brings its own
    }
    columns |= {f.name: ArrayType(StringType()) if f.multi else StringType() for f in (*features.user, *features.item)}
    columns |= {number.name: DoubleType() for number in features.numbers}  # null where unknown
    columns |= {"weight": DoubleType()} if features.weighted else {}  # of the click as a target
    return _struct(**columns)


# What users did besides clicking: one row per event of a further sequence, or per item that a user was shown (sequence
# `impressions`). `values`: the event's tokens, or the item's id.
ACTIVITY = _struct(
    user_id=StringType(),
    event_ts=TimestampType(),
    position=LongType(),
    sequence=StringType(),
    values=ArrayType(StringType()),
)


def segments(features: Features) -> StructType:
    """Samples: one row per segment of a user's clicks, oldest first; windows are cut from it (samples/windows.py).

    A target's history is the tokens before it. Rows that are not for training have one target, the last token; at inference
    this token is 0. `seen`: every item in the user's history, ascending; empty in training rows.
    """
    columns: dict[str, DataType] = {
        "user_id": StringType(),
        "item_index": _INTS,  # one per token
        "is_target": ArrayType(BooleanType()),  # one per token
        "example_age": ArrayType(FloatType()),  # days, one per target
        "negatives": _INTS,  # negatives_per_positive for each target, padded with 0
    }
    columns |= {"weight": ArrayType(FloatType())} if features.weighted else {}  # one per target
    columns |= {f"{f.name}_index": _INTS for f in features.target_ids}  # the targets' values, concatenated
    columns |= {f"{f.name}_index": _INTS for f in features.token_ids}  # the tokens' values, concatenated
    # Number of values of each target or token, at least 1.
    columns |= {f"{f.name}_length": _INTS for f in (*features.target_ids, *features.token_ids) if f.multi}
    # One per target or token; NaN where unknown.
    columns |= {f"{n.name}_value": ArrayType(FloatType()) for n in (*features.target_numbers, *features.token_numbers)}
    for sequence in features.sequences:
        columns |= {
            f"{sequence.name}_index": _INTS,  # the tokens of the segment's events, oldest first, concatenated
            f"{sequence.name}_length": _INTS,  # number of tokens of each event
            f"{sequence.name}_seen": _INTS,  # one per target: how many of these events were before it
        }
    columns["seen"] = _INTS
    return _struct(**columns)


def items(features: Features) -> StructType:
    """What is known about each item before dt, key item_index: for each item feature, the values at the item's newest click.

    `prior` is the prior of model.recency, the logarithm of a rate; 0 without model.recency.
    """
    columns: dict[str, DataType] = {"item_index": IntegerType(), "prior": DoubleType()}
    columns |= {f"{feature.name}_index": _INTS for feature in features.token_ids}
    columns |= {f"{number.name}_value": FloatType() for number in features.token_numbers}  # NaN where unknown
    return _struct(**columns)


def named(name: str, features: Features) -> StructType:
    """The schema of this name in this module; datasets.py refers to schemas by name."""
    schema = globals()[name]
    return schema if isinstance(schema, StructType) else schema(features)


def enforce(frame: DataFrame, schema: StructType, name: str) -> DataFrame:
    """The frame's columns in the schema's order.

    Raises:
        DataRefused: columns are missing, unexpected or of another type; the message lists every difference.
    """
    have = {field.name: field.dataType for field in frame.schema}
    want = {field.name: field.dataType for field in schema}
    problems = [f"{n} is missing" for n in want if n not in have] + [f"{n} is unexpected" for n in have if n not in want]
    problems += [
        f"{n} is {have[n].simpleString()}, not {want[n].simpleString()}"
        for n in want
        if n in have and have[n].simpleString() != want[n].simpleString()
    ]
    if problems:
        raise DataRefused(
            f"{name} does not fit its schema: {', '.join(problems)}. If the config has changed since it was made, make it again"
        )
    return frame.select(*want)
