"""Values of a raw log: ids and features as text, times as microseconds, clicks and ages as numbers.

A column is an Arrow array as its file has it: bytes (CSV), any type of Parquet, ORC or a catalog table, or JSON_VALUES.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import ROUND_FLOOR, ROUND_HALF_UP, Decimal
from typing import Any
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from recall_lib.config import Input

Mask = npt.NDArray[np.bool_]

# A column of JSON in which not every value is a text: the text, and what it was.
JSON_VALUES = pa.struct([("text", pa.binary()), ("kind", pa.int8())])
TEXT, NUMBER, NESTED = 0, 1, 2

# A time outside these years is a wrong unit or a broken clock, not a click: seconds that are taken for milliseconds end in
# January 1970, the other way round in the year 50000.
_FIRST, _LAST = 31_536_000 * 1_000_000, 4_102_444_800 * 1_000_000  # 1971-01-01, 2100-01-01
_MICROSECONDS = {"s": Decimal(1_000_000), "ms": Decimal(1_000), "us": Decimal(1), "ns": Decimal("0.001")}
_DAY = 86_400 * 1_000_000
_NUMBER = r"^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?$"
_ISO = r"^\d{4}-\d{2}-\d{2}([ T]\d{2}:\d{2}.*)?$"
_TRUE, _FALSE = {"true", "t", "yes", "y"}, {"false", "f", "no", "n"}


def fits(kind: pa.DataType, role: str) -> bool:
    """Whether a column of an Arrow type can have a role: id, feature, list, number, time or flag."""
    if pa.types.is_dictionary(kind):
        return fits(kind.value_type, role)
    if role == "list" and _is_list(kind):
        return fits(kind.value_type, "feature")
    if role == "time" and (pa.types.is_timestamp(kind) or pa.types.is_date(kind)):
        return True
    if pa.types.is_boolean(kind):
        return role in ("feature", "list", "flag")
    if pa.types.is_temporal(kind):
        return role == "feature"
    tests = (pa.types.is_null, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal, _is_text)
    return any(test(kind) for test in tests)


@dataclass(frozen=True)
class Texts:
    """A column as text.

    Attributes:
        text: pa.string; null where there is no value or none that can be read.
        undecodable: bytes that are no UTF-8; None: there are none.
        fractional: numbers that stand for no integer; None: there are none.
        nested: lists and objects of JSON where one value is expected; None: there are none.
    """

    text: pa.Array
    undecodable: Mask | None = None
    fractional: Mask | None = None
    nested: Mask | None = None


def texts(values: pa.Array) -> Texts:
    """The values as text: what was text stays as it is; a number without a fraction becomes the integer it stands for."""
    kind = values.type
    if pa.types.is_dictionary(kind):
        return texts(values.dictionary_decode())
    if kind == JSON_VALUES:
        return _json_texts(values)
    if pa.types.is_nested(kind):
        return Texts(pa.nulls(len(values), pa.string()), nested=values.is_valid().to_numpy(zero_copy_only=False))
    if _is_text(kind):
        text, undecodable = _decoded(values)
        return Texts(text, undecodable)
    if pa.types.is_floating(kind):
        return _float_texts(values)
    if pa.types.is_decimal(kind):
        text = pc.replace_substring_regex(values.cast(pa.string()), r"^([^.E]*)\.0+$", r"\1")
        return Texts(text, fractional=_any(pc.match_substring_regex(text, "[.E]")))
    return Texts(values.cast(pa.string()))


def known(text: pa.Array, nulls: pa.Array) -> pa.Array:
    """The texts, null where they are one of `nulls` or blank."""
    blank = pc.or_(pc.equal(pc.binary_length(text), 0), pc.utf8_is_space(text))
    unknown = pc.or_(pc.is_in(text, value_set=nulls), blank.fill_null(True))
    return pc.if_else(unknown, pa.scalar(None, pa.string()), text) if pc.any(unknown).as_py() else text


def is_float_like(text: pa.Array) -> Mask:
    """Whether a text is a whole number written as a float, such as 123.0."""
    ends = pc.ends_with(text, ".0").fill_null(False)
    if pc.any(ends).as_py():
        ends = pc.and_(ends, pc.match_substring_regex(text, r"^-?\d+\.0$").fill_null(False))
    return ends.to_numpy(zero_copy_only=False)


def lists(values: pa.Array, separator: str | None, nulls: pa.Array) -> tuple[pa.Array, Texts]:
    """The values of a multi-valued column: list<string>, empty where there are none; and how their texts were read.

    Without a separator a text is one value.
    """
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if _is_list(values.type):
        parts = texts(values.flatten())
        lengths = pc.list_value_length(values)
        rows = np.repeat(np.arange(len(values)), lengths.fill_null(0).to_numpy(zero_copy_only=False))
        whole = Texts(parts.text, *(_of_rows(mask, rows, len(values)) for mask in (parts.undecodable, None, parts.nested)))
        flat = parts.text
    else:
        whole = texts(values)
        text = known(whole.text, nulls)
        if separator is None:
            lengths, flat = text.is_valid().cast(pa.int32()), text.drop_null()
        else:
            split = pc.split_pattern(text, separator)
            lengths, flat = pc.list_value_length(split), split.flatten()
    offsets = np.concatenate([[0], np.cumsum(lengths.fill_null(0).to_numpy(zero_copy_only=False))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), known(flat, nulls)), whole


def firsts(values: pa.Array, nulls: pa.Array) -> tuple[pa.Array, Texts]:
    """The values of a single-valued column; of a list the first one."""
    if _is_list(values.type):
        found, whole = lists(values, None, nulls)
        starts, ends = (found.offsets.to_numpy()[a : a + len(found)] for a in (0, 1))
        first = pa.array(np.where(starts < ends, starts, 0), mask=starts >= ends)
        return found.values.take(first) if len(found.values) else pa.nulls(len(found), pa.string()), whole
    whole = texts(values)
    return known(whole.text, nulls), whole


def integers(values: pa.Array) -> pa.Array:
    """int64; null where a value is no integer of at most 18 digits."""
    text = pc.utf8_trim_whitespace(texts(values).text)
    return pc.if_else(pc.match_substring_regex(text, r"^-?\d{1,18}$"), text, pa.scalar(None, pa.string())).cast(pa.int64())


def flags(values: pa.Array) -> npt.NDArray[np.int8]:
    """1: true; 0: false; -1: neither, or nothing."""
    if pa.types.is_boolean(values.type):
        return values.cast(pa.int8()).fill_null(-1).to_numpy(zero_copy_only=False)
    found = texts(values).text.dictionary_encode()
    meaning = np.array([*map(_flag, found.dictionary.to_pylist()), -1], np.int8)
    return meaning[found.indices.fill_null(len(found.dictionary)).to_numpy(zero_copy_only=False)]


def _flag(text: str) -> int:
    text = text.strip().lower()
    if text in _TRUE or text in _FALSE:
        return int(text in _TRUE)
    number = float(text) if re.match(_NUMBER, text) else None
    return int(number) if number in (0.0, 1.0) else -1


def numbers(values: pa.Array) -> tuple[pa.Array, Mask]:
    """float64, and where a value is no finite number; empty and NULL are no value."""
    whole = texts(values)
    text = known(pc.utf8_trim_whitespace(whole.text), pa.array(["", "NULL"]))
    good = pc.match_substring_regex(text, _NUMBER)
    number = pc.if_else(good, text, pa.scalar(None, pa.string())).cast(pa.float64())
    number = pc.if_else(pc.is_finite(number), number, pa.scalar(None, pa.float64()))
    bad = pc.and_(pc.is_valid(text), pc.is_null(number)).to_numpy(zero_copy_only=False)
    if pa.types.is_floating(values.type):
        bad = bad | pc.is_nan(values).fill_null(False).to_numpy(zero_copy_only=False)
    return number, bad


@dataclass(frozen=True)
class Times:
    """Times of clicks.

    Attributes:
        micros: µs since 1970 UTC, int64; null where a time cannot be read or is out of range.
        date_only: times without a time of day.
        looks_like: what `input.time_unit` should be, for times that cannot be read; string, mostly null.
    """

    micros: pa.Array
    date_only: Mask
    looks_like: pa.Array


def times(values: pa.Array, settings: Input) -> Times:
    """The times of a column, as the settings say; times without a zone are of `input.timezone`."""
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    kind = values.type
    dates = np.zeros(len(values), bool)
    plain: pa.Array | None = None
    if pa.types.is_timestamp(kind) or pa.types.is_date(kind):
        micros = _micros_of_timestamps(values, settings)
        dates = np.full(len(values), pa.types.is_date(kind))
    else:
        plain = pc.utf8_trim_whitespace(texts(values).text)
        if settings.time_format:
            micros = _micros_by_format(plain, settings)
        elif settings.time_unit == "iso":
            micros, dates = _micros_of_iso(plain, settings), pc.equal(pc.utf8_length(plain), 10).fill_null(False)
            dates = dates.to_numpy(zero_copy_only=False)
        else:
            micros = _micros_of_numbers(plain, _MICROSECONDS[settings.time_unit])
    good = pc.and_(pc.greater_equal(micros, _FIRST), pc.less(micros, _LAST))
    micros = pc.if_else(good, micros, pa.scalar(None, pa.int64()))
    midnight = pc.equal(pc.subtract(micros, pc.multiply(pc.divide(micros, _DAY), _DAY)), 0).fill_null(False)
    dates = (dates | midnight.to_numpy(zero_copy_only=False)) & micros.is_valid().to_numpy(zero_copy_only=False)
    return Times(micros, dates, _looks_like(plain, micros))


def days_of(micros: pa.Array, settings: Input) -> pa.Array:
    """The business day of each time, as text YYYY-MM-DD."""
    if not len(micros) or micros.null_count == len(micros):
        return pa.nulls(len(micros), pa.string())
    if settings.day_is_utc:
        return pc.floor_temporal(micros.cast(pa.timestamp("us")), unit="day").cast(pa.date32()).cast(pa.string())
    bounds = pc.min_max(micros).as_py()
    days = np.arange(bounds["min"] // _DAY - 2, bounds["max"] // _DAY + 3).astype("datetime64[D]")
    starts = np.array([settings.day_begins(str(day)) for day in days])
    nth = np.searchsorted(starts, micros.fill_null(bounds["min"]).to_numpy(), side="right") - 1
    return pc.if_else(micros.is_valid(), pa.array(days[nth]).cast(pa.string()), pa.scalar(None, pa.string()))


def _is_text(kind: pa.DataType) -> bool:
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    views = (pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, *views))


def _is_list(kind: pa.DataType) -> bool:
    return pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)


def _any(mask: pa.Array) -> Mask | None:
    return mask.fill_null(False).to_numpy(zero_copy_only=False) if pc.any(mask).as_py() else None


def _of_rows(mask: Mask | None, rows: npt.NDArray[np.int64], count: int) -> Mask | None:
    return None if mask is None else np.bincount(rows[mask], minlength=count) > 0


def _decoded(values: pa.Array) -> tuple[pa.Array, Mask | None]:
    """As text, and which bytes are no UTF-8; readers of Parquet do not look."""
    values = values.cast(pa.binary())
    try:
        return values.cast(pa.string()), None
    except pa.ArrowInvalid:
        found = [None if value is None else _try(value.decode) for value in values.to_pylist()]
        text = pa.array(found, pa.string())
        return text, (text.is_null().to_numpy(zero_copy_only=False) & values.is_valid().to_numpy(zero_copy_only=False))


def _try(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except (ValueError, KeyError, ArithmeticError):
        return None


def _float_texts(values: pa.Array) -> Texts:
    found = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)  # pandas' missing number
    whole = pc.and_(pc.equal(pc.floor(found), found), pc.less(pc.abs(found), 2.0**63))
    text = pc.if_else(whole, found, pa.scalar(None, found.type)).cast(pa.int64()).cast(pa.string())
    odd = pc.invert(whole)
    if not pc.any(odd).as_py():
        return Texts(text)
    is_odd = odd.fill_null(False).to_numpy(zero_copy_only=False)
    # NumPy writes a number of its own width with as few digits as it needs.
    which = zip(found.to_numpy(zero_copy_only=False), is_odd, strict=True)
    written = [_number_text(str(value)) if one else None for value, one in which]
    fractional = np.array([text is not None and not text.lstrip("-").isdigit() for text in written])
    return Texts(pc.if_else(odd, pa.array(written, pa.string()), text), fractional=fractional)


def _json_texts(values: pa.Array) -> Texts:
    text, undecodable = _decoded(values.field("text"))
    kinds = values.field("kind").fill_null(TEXT).to_numpy(zero_copy_only=False)
    number, nested = kinds == NUMBER, kinds == NESTED
    if not number.any():
        return Texts(text, undecodable, None, nested if nested.any() else None)

    def matches(pattern: str) -> Mask:
        return pc.match_substring_regex(text, pattern).fill_null(True).to_numpy(zero_copy_only=False)

    odd = number & ~matches(r"^(0|-?[1-9]\d*)(\.\d*[1-9])?$")
    if odd.any():
        written = text.to_pylist()
        for nth in np.flatnonzero(odd):
            written[nth] = _number_text(written[nth])
        text = pa.array(written, pa.string())
    fractional = number & ~matches(r"^-?\d+$")
    return Texts(text, undecodable, fractional if fractional.any() else None, nested if nested.any() else None)


def _number_text(text: str) -> str | None:
    """A number as it is written, or the integer that it stands for; None: it is NaN, which is no value."""
    number = Decimal(text)
    if number.is_nan():
        return None
    if number.is_finite() and abs(number.adjusted()) < 40 and number == number.to_integral_value():
        return str(int(number))
    return text


def _micros_of_numbers(text: pa.Array, factor: Decimal) -> pa.Array:
    whole = pc.match_substring_regex(text, r"^(\d{1,18}|[1-8]\d{18})$")
    units = pc.if_else(whole, text, pa.scalar(None, pa.string())).cast(pa.int64())
    if factor < 1:
        micros = pc.divide(units, int(1 / factor))
    else:
        units = pc.if_else(pc.less(units, _LAST), units, pa.scalar(None, pa.int64()))  # so that no product overflows
        micros = _with_fractions(text, pc.multiply(units, int(factor)), int(factor))
        whole = pc.or_(whole, micros.is_valid())
    odd = pc.invert(whole)
    if not pc.any(odd).as_py():
        return micros
    read = [_micros(value, factor) if is_odd else None for value, is_odd in zip(text.to_pylist(), odd.to_pylist(), strict=True)]
    return pc.if_else(odd, pa.array(read, pa.int64()), micros)


def _with_fractions(text: pa.Array, micros: pa.Array, factor: int) -> pa.Array:
    """The µs of whole numbers of units, and of those with at most six digits after the point."""
    decimals = pc.match_substring_regex(text, r"^\d{1,12}\.\d{1,6}$")
    if not pc.any(decimals).as_py():
        return micros
    parts = pc.extract_regex(pc.if_else(decimals, text, "0.0"), r"^(?P<units>\d+)\.(?P<part>\d+)$")
    part = pc.utf8_rpad(parts.field("part"), 6, "0").cast(pa.int64())
    rounded = pc.divide(pc.add(pc.multiply(part, factor), 500_000), 1_000_000)
    return pc.if_else(decimals, pc.add(pc.multiply(parts.field("units").cast(pa.int64()), factor), rounded), micros)


def _micros(text: str, factor: Decimal) -> int | None:
    if not re.match(_NUMBER, text):
        return None
    micros = Decimal(text) * factor
    return int(micros.to_integral_value(ROUND_HALF_UP if factor >= 1 else ROUND_FLOOR)) if micros.adjusted() < 18 else None


def _micros_of_timestamps(values: pa.Array, settings: Input) -> pa.Array:
    zoned = pa.types.is_timestamp(values.type) and values.type.tz is not None
    micros = values.cast(pa.timestamp("us", values.type.tz if zoned else None), safe=False)
    return micros.cast(pa.int64()) if zoned else _localised(micros.cast(pa.int64()), settings)


def _localised(wall: pa.Array, settings: Input) -> pa.Array:
    """µs since 1970 UTC from what clocks in `input.timezone` showed; an hour that they showed twice is the first one."""
    if settings.timezone == "UTC":
        return wall
    clocks = pd.DatetimeIndex(wall.fill_null(0).to_numpy().astype("datetime64[us]"))
    utc = clocks.tz_localize(ZoneInfo(settings.timezone), ambiguous=np.ones(len(clocks), bool), nonexistent="shift_forward")
    micros = np.asarray(utc.tz_convert("UTC").tz_localize(None)).astype("datetime64[us]").astype(np.int64)
    return pa.array(micros, mask=wall.is_null().to_numpy(zero_copy_only=False))


def _parsed(text: pa.Array, form: str) -> pa.Array:
    """µs of texts; those without a zone as if they were in UTC."""
    found = pd.to_datetime(pd.Series(text.to_pylist(), dtype=object), format=form, utc=True, errors="coerce")
    moments = found.to_numpy(dtype="datetime64[us]")
    return pa.array(moments.astype(np.int64), mask=np.isnat(moments))


def _micros_by_format(text: pa.Array, settings: Input) -> pa.Array:
    form = settings.time_format or ""
    zoned = "%z" in form or "%Z" in form
    found = _parsed(text, form)
    return found if zoned else _localised(found, settings)


def _micros_of_iso(text: pa.Array, settings: Input) -> pa.Array:
    text = pc.if_else(pc.match_substring_regex(text, _ISO), text, pa.scalar(None, pa.string()))
    text = pc.replace_substring_regex(text, r" ?(UTC|GMT|Z)$", "Z")
    has_zone = pc.match_substring_regex(text, r":.*(Z|[+-]\d{2}(:?\d{2})?)$")
    found = _parsed(text, "ISO8601")
    region = pc.match_substring_regex(text, r":.* ?[A-Za-z]+/[A-Za-z_/]+$")
    if pc.any(region).as_py():
        which = zip(text.to_pylist(), region.to_pylist(), strict=True)
        of_region = [_of_region(one) if is_one else None for one, is_one in which]
        found, has_zone = pc.coalesce(found, pa.array(of_region, pa.int64())), pc.or_(has_zone, region)
    return pc.if_else(has_zone, found, _localised(found, settings))


def _of_region(text: str) -> int | None:
    """µs of a time with the name of a zone behind it."""
    match = re.match(r"^(.*?) ?([A-Za-z]+/[A-Za-z_/]+)$", text)
    moment = match and _try(lambda: datetime.fromisoformat(match[1]).replace(tzinfo=ZoneInfo(match[2])))
    return moment and int(moment.replace(microsecond=0).timestamp()) * 1_000_000 + moment.microsecond


def _looks_like(text: pa.Array | None, micros: pa.Array) -> pa.Array:
    """The unit under which a time that could not be read would be one of the years 1990 to 2100."""
    nothing = pa.nulls(len(micros), pa.string())
    bad = micros.is_null()
    if text is None or not pc.any(pc.and_(bad, text.is_valid())).as_py():
        return nothing
    found = pc.if_else(pc.match_substring_regex(text, r"^\d{4}-\d{2}-\d{2}"), "iso", nothing)
    for digits, unit in ((r"\d{9,10}", "s"), (r"\d{12,13}", "ms"), (r"\d{15,16}", "us"), (r"\d{18,19}", "ns")):
        found = pc.if_else(pc.match_substring_regex(text, rf"^{digits}(\.\d*)?$"), unit, found)
    return pc.if_else(bad, found, nothing)
