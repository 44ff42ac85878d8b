"""Times, days, clicks, ages and what stands for nothing."""

from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from recall_lib.config import Input
from recall_lib.log import values
from tests.log.reading import HEADER, NOON, fates, kept, read_log


def time_of(value, **settings) -> str | None:
    """The time that a text is read as, in UTC."""
    found = values.times(pa.array([value]), Input(**settings)).micros[0].as_py()
    return None if found is None else str(datetime.fromtimestamp(0, UTC) + timedelta(microseconds=found))[:-6]


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", "1700006400.25", "2023-11-15 00:00:00.250000"),
        ("s", " 1700006400 ", "2023-11-15 00:00:00"),
        ("s", "1.70000640025E9", "2023-11-15 00:00:00.250000"),
        ("s", "1700006400.0000005", "2023-11-15 00:00:00.000001"),
        ("ms", "1700006400001", "2023-11-15 00:00:00.001000"),
        ("ms", "1700006400001.5", "2023-11-15 00:00:00.001500"),
        ("us", "1700006400000001", "2023-11-15 00:00:00.000001"),
        ("ns", "1700006400000001999", "2023-11-15 00:00:00.000001"),
        ("iso", "2023-11-15T02:00:00+02:00", "2023-11-15 00:00:00"),
        ("iso", "2023-11-15T02:00:00.5Z", "2023-11-15 02:00:00.500000"),
        ("iso", "2023-11-15 02:00:00 UTC", "2023-11-15 02:00:00"),
        ("iso", "2023-11-15 02:00:00 Europe/Berlin", "2023-11-15 01:00:00"),
        ("iso", "2023-11-15 01:02:03", "2023-11-15 01:02:03"),
        ("iso", "2023-11-15 01:02", "2023-11-15 01:02:00"),
        ("iso", "2023-11-15", "2023-11-15 00:00:00"),
        ("iso", "2023-11", None),
        ("iso", "2023-02-30", None),
        ("ms", "2023-11-15", None),
        ("s", "1700006400000", None),  # milliseconds: the year 55840
        ("ms", "1700006400", None),  # seconds: January 1970
        ("s", "-5", None),
        ("s", "0", None),
        ("s", "nan", None),
        ("s", "1e400", None),
        ("s", "9" * 30, None),
        ("s", None, None),
    ],
)
def test_times(unit, value, expected):
    assert time_of(value, time_unit=unit) == expected


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("%d/%b/%Y:%H:%M:%S %z", "22/Jan/2019:03:56:14 +0330", "2019-01-22 00:26:14"),
        ("%m/%d/%Y %I:%M:%S %p", "11/12/2019 2:14:46 PM", "2019-11-12 14:14:46"),
        ("%Y%m%d%H%M%S.%f", "20191112141446.25", "2019-11-12 14:14:46.250000"),
        ("%d.%m.%Y", "31.12.2019", "2019-12-31 00:00:00"),
        ("%d.%m.%Y", "31.13.2019", None),
        ("%d.%m.%Y", "31.12.2019 and more", None),
    ],
)
def test_patterns(pattern, value, expected):
    assert time_of(value, time_format=pattern) == expected


def test_times_without_a_zone_are_of_the_configured_one():
    assert time_of("2024-07-01 00:30:00", time_unit="iso", timezone="Europe/Berlin") == "2024-06-30 22:30:00"
    assert time_of("2024-07-01 00:30:00Z", time_unit="iso", timezone="Europe/Berlin") == "2024-07-01 00:30:00"
    assert time_of("01.07.2024 00", time_format="%d.%m.%Y %H", timezone="Europe/Berlin") == "2024-06-30 22:00:00"
    naive = pa.array([datetime(2024, 7, 1, 0, 30)], pa.timestamp("ns"))
    micros = values.times(naive, Input(timezone="Europe/Berlin")).micros
    assert micros[0].as_py() == int(datetime(2024, 6, 30, 22, 30, tzinfo=UTC).timestamp()) * 1_000_000
    # An hour that is shown twice is the first one; one that no clock shows is moved to its end.
    assert time_of("2024-10-27 02:30:00", time_unit="iso", timezone="Europe/Berlin") == "2024-10-27 00:30:00"
    assert time_of("2024-03-31 02:30:00", time_unit="iso", timezone="Europe/Berlin") == "2024-03-31 01:00:00"


ZONES = ["UTC", "Europe/Berlin", "America/St_Johns", "Pacific/Apia", "Asia/Kolkata", "Australia/Lord_Howe", "America/Sao_Paulo"]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(31_536_000, 4_102_444_799), min_size=1, max_size=5),
    st.sampled_from(ZONES),
    st.times().map(lambda time: time.strftime("%H:%M")),
)
def test_a_time_is_in_the_day_that_has_begun_and_not_ended(seconds, zone, starts):
    source = Input(timezone=zone, day_starts_at=starts)
    micros = pa.array([second * 1_000_000 for second in seconds] + [None])
    *days, nothing = values.days_of(micros, source).to_pylist()
    assert nothing is None
    for day, second in zip(days, seconds, strict=True):
        following = (date.fromisoformat(day) + timedelta(days=1)).isoformat()
        assert source.day_begins(day) <= second * 1_000_000 < source.day_begins(following)
        hour, minute = map(int, starts.split(":"))
        local = datetime.fromtimestamp(second, ZoneInfo(zone)).replace(tzinfo=None) - timedelta(hours=hour, minutes=minute)
        assert abs((date.fromisoformat(day) - local.date()).days) <= 1


def test_a_business_day(tmp_path):
    times = ["2024-03-30 03:59:59", "2024-03-30 04:00:00", "2024-03-31 04:00:00"]
    lines = "".join(f"u{n},a,{time},1\n" for n, time in enumerate(times))
    (tmp_path / "clicks.csv").write_text(f"{HEADER}\n{lines}")
    settings = {"time_unit": "iso", "timezone": "Europe/Berlin", "day_starts_at": "04:00"}
    rows = read_log(tmp_path, clicks="clicks.csv", **settings)
    assert kept(rows, "user_id", "_day") == [("u0", "2024-03-29"), ("u1", "2024-03-30"), ("u2", "2024-03-31")]
    begins = datetime.fromtimestamp(Input(**settings).day_begins("2024-03-31") / 1e6, UTC)
    assert begins == datetime(2024, 3, 31, 2, tzinfo=UTC), "summer time begins that night"


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("timezone", "CET", "Europe/Paris"),
        ("timezone", "EST", "America/New_York"),
        ("timezone", "Europe/Nowhere", "Europe/Berlin"),
        ("timezone", "+02:00", "Europe/Berlin"),
        ("time_format", "yyyy-MM-dd HH:mm:ss", "%Y-%m-%d"),
        ("day_starts_at", "4 am", "pattern"),
        ("options", {"mode": "DROPMALFORMED"}, "are not read; these are"),
        ("options", {"header": "false"}, "input.header"),
        ("columns", {"order": "n"}, "order"),
    ],
)
def test_settings_that_mean_something_else_are_refused(setting, value, words):
    more = {"ordering": "position"} if setting == "columns" else {}
    with pytest.raises(ValidationError, match=words):
        Input.model_validate({setting: value} | more)


def test_a_pattern_and_a_unit_exclude_each_other():
    with pytest.raises(ValidationError, match="time_format replaces time_unit"):
        Input(time_format="%Y", time_unit="ms")


@pytest.mark.parametrize(
    ("unit", "value", "looks_like"),
    [
        ("ms", NOON, "s"), ("s", NOON * 1000, "ms"), ("us", NOON * 1000, "ms"), ("s", NOON * 10**6, "us"),
        ("s", NOON * 10**9, "ns"), ("s", "2024-03-01 12:00", "iso"), ("iso", NOON, "s"), ("s", "yesterday", None),
        ("s", 12, None), ("s", NOON, None),
    ],
)  # fmt: skip
def test_a_wrong_unit_is_recognised(unit, value, looks_like):
    found = values.times(pa.array([str(value)]), Input(time_unit=unit))
    assert found.looks_like.to_pylist() == [looks_like]


def test_times_without_a_time_of_day_are_noted():
    found = values.times(pa.array(["2024-03-01", "2024-03-01 00:00:01", "?"]), Input(time_unit="iso"))
    assert found.date_only.tolist() == [True, False, False]
    assert values.times(pa.array([NOON, NOON - 12 * 3600]), Input()).date_only.tolist() == [False, True]


@pytest.mark.parametrize(
    ("texts", "flag"),
    [
        (["1", "1.0", " 1 ", "true", "True", "TRUE", "t", "yes", "Y", "1e0", "+1"], 1),
        (["0", "0.0", "-0", "false", "False", "F", "no", "n"], 0),
        (["2", "", "maybe", None, "NaN", "1.5", "tru"], -1),
    ],
)
def test_flags(texts, flag):
    assert values.flags(pa.array(texts)).tolist() == [flag] * len(texts)


def test_flags_of_other_types():
    assert values.flags(pa.array([True, False, None])).tolist() == [1, 0, -1]
    assert values.flags(pa.array([1.0, 0.0, 0.5, None])).tolist() == [1, 0, -1, -1]


def test_ages_are_finite():
    texts = ["0.5", "", "NULL", "1e-3", "inf", "Infinity", "nan", "1e400", "x", None]
    number, bad = values.numbers(pa.array(texts))
    assert number.to_pylist() == [0.5, None, None, 0.001, *[None] * 6]
    assert [text for text, is_bad in zip(texts, bad, strict=True) if is_bad] == ["inf", "Infinity", "nan", "1e400", "x"]
    assert values.numbers(pa.array([0.5, float("nan"), float("inf"), None]))[1].tolist() == [False, True, True, False]


def test_what_stands_for_nothing(tmp_path):
    names = ["nan", "None", "\\N", "null", "NULL", " ", "\t ", "", "NaN", "<NA>", "u1", " u2", "Nan"]
    lines = "".join(f"{name};a;{NOON};1;{name}|x\n" for name in names)
    (tmp_path / "clicks.csv").write_text(f"{HEADER};tags\n".replace(",", ";") + lines)
    features = {"item": [{"name": "tags", "multi": True, "separator": "|"}]}
    rows = read_log(tmp_path, features, clicks="clicks.csv")
    assert kept(rows, "user_id", "tags") == [(" u2", [" u2", "x"]), ("Nan", ["Nan", "x"]), ("u1", ["u1", "x"])]
    assert fates(rows) == {"kept": 3, "no_user": 10}
    rows = read_log(tmp_path, clicks="clicks.csv", null_values=["u1"])
    assert fates(rows) == {"kept": 9, "no_user": 4}


def test_ids_that_look_like_floats_stay_text_and_are_noted(tmp_path):
    (tmp_path / "clicks.csv").write_text(f"{HEADER}\n123.0,007,{NOON},1\n12.50,a,{NOON},1\n")
    rows = read_log(tmp_path, clicks="clicks.csv")
    assert kept(rows, "user_id", "item_id", "_notes") == [("12.50", "a", 0), ("123.0", "007", 1)]


def test_a_column_can_order_clicks_of_one_time(tmp_path):
    (tmp_path / "clicks.csv").write_text(f"{HEADER},nth\nu,a,{NOON},1,2\nu,b,{NOON},1,1.0\nu,c,{NOON},1,first\n")
    rows = read_log(tmp_path, clicks="clicks.csv", columns={"order": "nth"})
    assert kept(rows, "item_id", "position") == [("a", 2)]
    assert fates(rows) == {"kept": 1, "bad_position": 2}


@pytest.mark.parametrize(("encoding", "name"), [("utf-8", "上海"), ("gbk", "上海"), ("latin-1", "Zürich")])
def test_session_lines(tmp_path, encoding, name):
    line = f"u1\t{name}\t{name}\tv1:c1:t1\tx"
    (tmp_path / "s.txt").write_bytes(f"{line}\r\n\n  \n{line}".encode(encoding) + b"\n\xff\xff\n" * (encoding == "utf-8"))
    options = {} if encoding == "utf-8" else {"encoding": encoding}
    source = {"format": "sessions", "ordering": "position", "clicks": "s.txt", "options": options}
    rows = read_log(tmp_path, **source)
    assert kept(rows, "_raw") == [line, line]
    assert fates(rows) == {"kept": 2, "blank": 2} | ({"bad_utf8": 1} if encoding == "utf-8" else {})
    assert [row["_raw"] for row in rows if row["_fate"] == "bad_utf8"] == ["\\xff\\xff"] * (encoding == "utf-8")


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.one_of(st.text(max_size=6), st.sampled_from(["", "NULL", "a_b"]), st.none()), max_size=6),
    st.sampled_from("_|é"),
)
def test_multi_valued_texts_are_split_as_python_does(texts, separator):
    nulls = pa.array(["", "NULL"])
    found, _ = values.lists(pa.array(texts, pa.string()), separator, nulls)

    def known(text):
        return None if text in ("", "NULL") or not text.strip() or text.isspace() else text

    expected = [
        [] if text is None or known(text) is None else [known(part) for part in text.split(separator)] for text in texts
    ]
    assert found.to_pylist() == expected
    assert isinstance(values.texts(pa.array(np.array([1.0]))).text, pa.StringArray)
