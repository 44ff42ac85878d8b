"""JSON logs: numbers keep their text, rows stand on lines or over many, and what is no row is counted."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lib.log import json_rows
from recall_lib.process.errors import DataRefused
from tests.log.reading import NOON, fates, kept, read_log, rejected


def log(tmp_path, text, features=None, **settings):
    (tmp_path / "clicks.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_log(tmp_path, features, clicks="clicks.json", **settings)


def row(**values):
    return {"user_id": "u", "article_id": "a", "expo_time": NOON, "click": 1} | values


def test_numbers(tmp_path):
    lines = [
        f'{{"user_id": 12345678.0, "article_id": 1.2345678E7, "expo_time": {NOON}.25, "click": 1}}',
        f'{{"user_id": 9007199254740993, "article_id": 12345678901234567890.0, "expo_time": {NOON}e0, "click": true}}',
        '{"user_id": "007", "article_id": "1.50", "expo_time": 1.70929440025E9, "click": 1.0}',
        f'{{"user_id": 1.5, "article_id": 1, "expo_time": {NOON}, "click": 1}}',
        f'{{"user_id": ["u"], "article_id": 1, "expo_time": {NOON}, "click": 1}}',
        f'{{"user_id": NaN, "article_id": 1, "expo_time": {NOON}, "click": 1}}',
    ]
    rows = log(tmp_path, "\n".join(lines))
    assert kept(rows) == [("007", "1.50"), ("12345678", "12345678"), ("9007199254740993", "12345678901234567890")]
    assert [reason for _, reason, _ in rejected(rows)] == ["fractional_id", "nested_value", "no_user"]
    assert [text for _, _, text in rejected(rows)] == lines[3:]
    assert {str(time.timestamp() % 1) for time in kept(rows, "event_ts")} == {"0.25", "0.0"}


def test_booleans_and_lists(tmp_path):
    lines = [row(click=True, tags=["x", 2, 3.0]), row(user_id="v", click=False, tags=None), row(user_id="w", click=1, tags=[])]
    features = {"item": [{"name": "tags", "multi": True}]}
    rows = log(tmp_path, "\n".join(map(json.dumps, lines)), features)
    assert kept(rows, "user_id", "tags") == [("u", ["x", "2", "3"]), ("w", [])]
    assert fates(rows) == {"kept": 2, "not_clicked": 1}


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", ["lines", "array", "objects", "array a line", "arrays"])
def test_rows_over_lines(tmp_path, form, indent):
    rows = [row(user_id=f"u{n}", city="a\nb [{") for n in range(20)]
    objects = [json.dumps(one, indent=indent) for one in rows]
    text = {
        "lines": "\n".join(objects),
        "array": json.dumps(rows, indent=indent),
        "objects": "\n\n".join(objects) + "\n",
        "array a line": "[\n" + ",\n".join(objects) + "\n]\n",
        "arrays": json.dumps(rows[:7], indent=indent) + "\n" + json.dumps(rows[7:], indent=indent),
    }[form]
    assert kept(log(tmp_path, text), "user_id") == sorted(one["user_id"] for one in rows)
    assert kept(log(tmp_path, text, options={"multiLine": "true"}), "user_id") == sorted(one["user_id"] for one in rows)


def test_lines_that_are_no_row(tmp_path):
    lines = [json.dumps(row()), "", "[]", "  ", "{broken", "17", '"text"', "null", "[1]", json.dumps([row(), row()])]
    rows = log(tmp_path, "\n".join(lines) + "\n")
    assert fates(rows) == {"kept": 3, "blank": 3, "malformed": 5}
    assert {text for _, _, text in rejected(rows)} == {"{broken", "17", '"text"', "null", "[1]"}


def test_encodings(tmp_path):
    text = json.dumps(row(user_id="用户"), ensure_ascii=False)
    assert kept(log(tmp_path, text.encode("gbk"), options={"encoding": "GBK"}), "user_id") == ["用户"]
    assert kept(log(tmp_path, b"\xef\xbb\xbf" + text.encode()), "user_id") == ["用户"]
    rows = log(tmp_path, text.encode("gbk") + b"\n" + json.dumps(row(user_id="\ud83d", x="\ud83d")).encode())
    assert fates(rows) == {"bad_utf8": 2}
    assert kept(log(tmp_path, json.dumps(row(agent="\ud83d")).encode() + b'\n{"x": "\xff"}\n'), "user_id") == ["u"]


def test_keys(tmp_path):
    rows = [row(), row(user_id="v", city="x")]
    features = {"user": [{"name": "city"}]}
    assert kept(log(tmp_path, "\n".join(map(json.dumps, rows)), features), "user_id", "city") == [("u", None), ("v", "x")]
    with pytest.raises(DataRefused, match=r"no column \['account'\]"):
        log(tmp_path, json.dumps(row()), columns={"user_id": "account"})


@pytest.mark.parametrize(
    "text", [json.dumps([row(), row()], indent=1)[:-30], "{\n 'a': 1\n}\n", "<html>\n</html>\n{\n}", "[\n{]"]
)
def test_a_file_that_is_damaged_over_lines_is_named(tmp_path, text):
    with pytest.raises(DataRefused, match=r"clicks\.json cannot be read"):
        log(tmp_path, text)


@settings(max_examples=200, deadline=None)
@given(st.one_of(st.integers(-(10**25), 10**25), st.floats(), st.decimals(allow_nan=False, allow_infinity=False, places=6)))
def test_a_number_is_the_integer_that_it_stands_for_or_keeps_its_text(number):
    from decimal import Decimal

    from recall_lib.log import values

    text = json.dumps(number) if not isinstance(number, Decimal) else str(number)
    (batch,) = json_rows.read([f'{{"x": {text}}}\n'.encode()], False, ["x"])
    read = values.texts(batch.columns["x"])
    found = read.text[0].as_py()
    if text == "NaN":
        assert found is None
    elif text.lstrip("-") == "Infinity":
        assert read.fractional is not None
    else:
        exact = Decimal(text)
        assert Decimal(found) == exact
        is_whole = exact == exact.to_integral_value()
        assert found == (str(int(exact)) if is_whole and abs(exact) < 10**39 else found)
        assert (read.fractional is not None and bool(read.fractional[0])) == (not is_whole or abs(exact) >= 10**40)
