"""Parquet and ORC: columns by name in each file, whatever their types; a type that nobody needs costs nothing."""

from datetime import UTC, date, datetime
from decimal import Decimal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.orc as orc
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lib.log import values
from recall_lib.process.errors import DataRefused
from tests.log.reading import NOON, fates, kept, read_log, rejected

WHEN = datetime(2024, 3, 1, 12, tzinfo=UTC)


def write(folder, name, **columns):
    """A log of two rows; a column can be replaced, added or (None) left out."""
    path = folder / "clicks" / name
    path.parent.mkdir(exist_ok=True)
    base = {"user_id": ["u", "v"], "article_id": ["a", "b"], "expo_time": [NOON, NOON + 1], "click": [1, 1]}
    table = pa.table({name: array for name, array in (base | columns).items() if array is not None})
    (orc if name.endswith("orc") else pq).write_table(table, path)


@pytest.mark.parametrize("name", ["x.parquet", "x.orc"])
@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([123.0, None]), ["123"]),
        (pa.array([1.2345678e7, 2.0000001e7]), ["12345678", "20000001"]),
        (pa.array([7.0, 8.0], pa.float32()), ["7", "8"]),
        (pa.array([Decimal("123"), Decimal("99999999999999999999")], pa.decimal128(38, 18)), ["123", "99999999999999999999"]),
        (pa.array([2**62, -1], pa.int64()), ["-1", str(2**62)]),
        (pa.array([1, 2], pa.int8()), ["1", "2"]),
        (pa.array(["007", "1.0"]), ["007", "1.0"]),
        (pa.array([b"x", b"\xff"]), ["x"]),
        (pa.array([1.5, 2.0]), ["2"]),
        (pa.array([Decimal("1.50"), Decimal("2.00")]), ["2"]),
        (pa.array([float("nan"), float("inf")]), []),
    ],
)
def test_ids(tmp_path, name, column, expected):
    write(tmp_path, name, user_id=column)
    rows = read_log(tmp_path)
    assert kept(rows, "user_id") == sorted(expected)
    assert sum(fates(rows).values()) == 2


def test_dictionaries_and_views(tmp_path):
    write(
        tmp_path,
        "a.parquet",
        user_id=pa.array(["u", "v"]).dictionary_encode(),
        article_id=pa.array(["a", "b"], pa.string_view()),
    )
    assert kept(read_log(tmp_path)) == [("u", "a"), ("v", "b")]


@pytest.mark.parametrize("name", ["x.parquet", "x.orc"])
@pytest.mark.parametrize(
    "column",
    [
        pd.Series([WHEN, WHEN]).astype("datetime64[ns, UTC]").array,
        pa.array([WHEN.replace(tzinfo=None)] * 2, pa.timestamp("ns")),
        pa.array([WHEN.replace(tzinfo=None)] * 2, pa.timestamp("ms")),
        pa.array([WHEN] * 2, pa.timestamp("us", "Asia/Tokyo")),
        pa.array([float(NOON)] * 2),
        pa.array([NOON] * 2, pa.int32()),
        pa.array([Decimal(NOON)] * 2),
        pa.array([str(NOON)] * 2),
    ],
)
def test_times(tmp_path, name, column):
    write(tmp_path, name, expo_time=column)
    assert kept(read_log(tmp_path), "event_ts") == [WHEN, WHEN]


def test_dates(tmp_path):
    write(tmp_path, "x.parquet", expo_time=pa.array([date(2024, 3, 1)] * 2))
    assert {time.hour for time in kept(read_log(tmp_path), "event_ts")} == {0}


def test_columns_that_nobody_uses_have_any_type(tmp_path):
    odd = {
        "nanoseconds": pa.array([1, 2], pa.timestamp("ns")),
        "time": pa.array([1, 2], pa.time64("us")),
        "nested": [{"a": [1]}, {"a": []}],
        "a.b": ["x", "y"],
        "_source": ["x", "y"],
        "a`b": [1, 2],
    }
    write(tmp_path, "x.parquet", **odd)
    assert kept(read_log(tmp_path)) == [("u", "a"), ("v", "b")]
    features = {"user": [{"name": "dotted", "column": "a.b"}, {"name": "tick", "column": "a`b"}]}
    assert kept(read_log(tmp_path, features), "dotted", "tick") == [("x", "1"), ("y", "2")]


def test_types_that_differ_between_files(tmp_path):
    for nth, column in enumerate(
        (pa.array([1, 2], pa.int32()), pa.array([1, 2**40]), pa.array(["1", "x"]), pa.array([1.0, None]))
    ):
        write(tmp_path, f"{nth}.parquet", user_id=column, city=["c", "c"] if nth else None)
    rows = read_log(tmp_path, {"user": [{"name": "city"}]})
    assert kept(rows, "user_id") == ["1", "1", "1", "1", str(2**40), "2", "x"]
    assert kept(rows, "city") == sorted([None, None, *["c"] * 5], key=str)


def test_a_type_that_cannot_be_read_names_file_column_and_both_types(tmp_path):
    write(tmp_path, "1.parquet")
    write(tmp_path, "2.parquet", user_id=[["u"], ["v"]])
    with pytest.raises(
        DataRefused, match=r"'user_id' of .*2\.parquet is list<.*>, which cannot be read as an id; in .*1\.parquet it is string"
    ) as refused:
        read_log(tmp_path)
    assert "cannot be read" in str(refused.value)


def test_a_missing_column_names_the_file(tmp_path):
    write(tmp_path, "1.parquet")
    write(tmp_path, "2.parquet", user_id=None)
    with pytest.raises(DataRefused, match=r"2\.parquet has no column 'user_id', which other files of the click log have"):
        read_log(tmp_path)


def test_lists_and_flags(tmp_path):
    write(tmp_path, "x.parquet", tags=[["x", None, "NULL"], None], click=[True, True], kinds=pa.array([[2.0], []]))
    features = {"item": [{"name": "tags", "multi": True}, {"name": "kind", "column": "kinds"}]}
    assert kept(read_log(tmp_path, features), "tags", "kind") == [(["x", None, None], "2"), ([], None)]


def test_rejected_rows_are_json(tmp_path):
    write(tmp_path, "x.parquet", user_id=[None, "v"], expo_time=[NOON, -1], more=pa.array([1, 2], pa.time64("us")))
    assert [(reason, text) for _, reason, text in rejected(read_log(tmp_path))] == [
        ("bad_time", '{"user_id": "v", "article_id": "b", "expo_time": -1, "click": 1}'),
        ("no_user", '{"user_id": null, "article_id": "a", "expo_time": ' + str(NOON) + ', "click": 1}'),
    ]


@pytest.mark.parametrize("name", ["x.parquet", "x.orc"])
def test_a_damaged_file_is_named(tmp_path, name):
    write(tmp_path, name)
    path = tmp_path / "clicks" / name
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataRefused, match=f"{name} cannot be read"):
        read_log(tmp_path)


def test_row_groups_are_read_once(tmp_path, monkeypatch):
    from recall_lib.log import tables

    monkeypatch.setattr(tables, "_LEAST_PIECE", 1)
    (tmp_path / "clicks").mkdir()
    users = [f"u{n:04}" for n in range(1000)]
    table = pa.table({"user_id": users, "article_id": users, "expo_time": [NOON] * 1000, "click": [1] * 1000})
    pq.write_table(table, tmp_path / "clicks" / "x.parquet", row_group_size=70)
    for tasks in (1, 3, 10_000):
        assert kept(read_log(tmp_path, tasks=tasks), "user_id") == users


NUMBERS = st.one_of(st.integers(-(2**63), 2**63 - 1), st.floats(), st.floats(width=32), st.integers(-(10**6), 10**6).map(float))


@settings(max_examples=200, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=5), st.sampled_from([pa.float64(), pa.float32(), pa.int64()]))
def test_a_number_keeps_its_value(numbers, kind):
    if kind == pa.int64():
        column = pa.array([number if isinstance(number, int) else 0 for number in numbers])
    else:
        column = pa.array(np.array(numbers, kind.to_pandas_dtype()))
    read = values.texts(column)
    for nth, number in enumerate(column.to_pylist()):
        text = read.text[nth].as_py()
        if number != number:
            assert text is None
        elif abs(number) == float("inf"):
            assert read.fractional is not None
            assert read.fractional[nth]
        else:
            assert (np.float32 if kind == pa.float32() else type(number))(text) == number
            is_whole = number == int(number)
            assert (text.lstrip("-").isdigit()) == is_whole or abs(number) > 1e38
