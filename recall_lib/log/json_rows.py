"""Rows of a JSON file: one or an array of them on each line, or over many lines, in an array or one after another."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate
from typing import Any

import pyarrow as pa

from recall_lib.log.batch import BLANK, MALFORMED, Batch, readable
from recall_lib.log.values import JSON_VALUES, NESTED, NUMBER, TEXT
from recall_lib.process.errors import DataRefused

_ROWS = 1 << 16  # of a batch of a file whose rows take many lines
_LONGEST_ROW = 64 << 20


class Number(str):
    """A number as the file writes it, if it has a fraction or an exponent."""

    __slots__ = ()


_DECODER = json.JSONDecoder(parse_float=Number, parse_constant=Number)


def read(chunks: Iterable[bytes], many_lines: bool, wanted: Sequence[str]) -> Iterator[Batch]:
    """The rows of a stream of text.

    Args:
        chunks: UTF-8.
        many_lines: whether a row may take several lines.
        wanted: keys.

    Raises:
        DataRefused: with `many_lines`, the text is no JSON from some place on.
    """
    yield from _over_lines(chunks, wanted) if many_lines else _by_line(chunks, wanted)


def sniff(sample: bytes) -> tuple[tuple[str, ...], bool]:
    """The keys of a file's first rows, and whether its rows take several lines.

    Raises:
        DataRefused: there are lines, and none holds JSON.
    """
    lines = sample.removeprefix(codecs.BOM_UTF8).splitlines()
    found = [value for line in lines if (value := _value(line.decode("utf-8", "replace"))) is not None]
    starts = sample.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    first = next((line for line in lines if line.strip()), b"")
    many = (starts == b"[" and _value(first.decode("utf-8", "replace")) is None) or (starts == b"{" and not found)
    if many:
        found = [row for row, _ in _Scanner().scan(sample.decode("utf-8", "replace"))]
    if first and not found:
        raise DataRefused("its first lines hold no JSON object")
    return tuple(
        dict.fromkeys(
            key
            for value in found
            for row in (value if isinstance(value, list) else [value])
            if isinstance(row, dict)
            for key in row
        )
    ), many


def _value(line: str) -> Any:
    """The object or array of a line; None: it is neither."""
    line = line.strip()
    try:
        value, end = _DECODER.raw_decode(line)
    except (ValueError, RecursionError):
        return None
    return value if end == len(line) and isinstance(value, dict | list) else None


def _by_line(chunks: Iterable[bytes], wanted: Sequence[str]) -> Iterator[Batch]:
    rest = b""
    is_first = True
    for chunk in chunks:
        data = rest + (chunk.removeprefix(codecs.BOM_UTF8) if is_first else chunk)
        is_first = is_first and not chunk
        cut = data.rfind(b"\n") + 1
        rest = data[cut:]
        if cut:
            yield _of_lines(data[:cut], wanted)
    if rest:
        yield _of_lines(rest, wanted)


def _of_lines(block: bytes, wanted: Sequence[str]) -> Batch:
    lines: list[str] = []
    rows: list[dict[str, Any]] = []
    others: list[tuple[str, str]] = []
    for line in block.decode("utf-8", "surrogateescape").removesuffix("\n").split("\n"):
        value = _value(line)
        if isinstance(value, dict):
            rows.append(value)
            lines.append(line)
        elif value and all(isinstance(row, dict) for row in value):
            rows += value
            lines += [line] * len(value)
        elif value == [] or not line.strip():
            others.append((BLANK, ""))
        else:
            others.append((MALFORMED, _readable(line)))
    return _batch(rows, lines, wanted, others)


def _batch(rows: list[dict[str, Any]], lines: list[str], wanted: Sequence[str], others: list[tuple[str, str]]) -> Batch:
    columns = {name: _column([row.get(name) for row in rows]) for name in wanted}
    return Batch(columns, len(rows), lambda some: [_readable(lines[n]) for n in some], others)


def _readable(text: str) -> str:
    return readable(text.rstrip("\r").encode("utf-8", "surrogateescape"))


def _column(values: Sequence[Any]) -> pa.Array:
    """The values of a key: texts, booleans, integers, lists of them, or else JSON_VALUES."""
    kinds = set(map(type, values)) - {type(None)}
    if kinds <= {str}:
        try:
            return pa.array(values, pa.string())
        except UnicodeEncodeError:
            return pa.array([value if value is None else _bytes(value) for value in values], pa.binary())
    if kinds in ({bool}, {int}):
        try:
            return pa.array(values, pa.bool_() if bool in kinds else pa.int64())
        except OverflowError:
            pass
    if kinds == {list} and not any(isinstance(part, list | dict) for value in values if value for part in value):
        parts = _column([part for value in values if value is not None for part in value])
        offsets = accumulate((0 if value is None else len(value) for value in values), initial=0)
        absent = pa.array([value is None for value in values])
        return pa.ListArray.from_arrays(pa.array(list(offsets), pa.int32()), parts, mask=absent)
    texts = [None if value is None else _bytes(value) for value in values]
    forms = [NUMBER if type(value) in (Number, int) else NESTED if isinstance(value, list | dict) else TEXT for value in values]
    return pa.StructArray.from_arrays([pa.array(texts, pa.binary()), pa.array(forms, pa.int8())], fields=list(JSON_VALUES))


def _bytes(value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a surrogate pair, which JSON can write as \ud83d: it is no text
        return text.encode("utf-8", "surrogatepass")


class _Scanner:
    """Finds the values of a text that comes in parts: objects one after another, or inside arrays of the outermost level."""

    def __init__(self) -> None:
        self._rest = ""
        self.ended_inside = False

    def scan(self, text: str) -> Iterator[tuple[Any, str]]:
        """The values that end in the text so far, each with its own text."""
        text, at = self._rest + text, 0
        while True:
            while at < len(text) and text[at] in "\ufeff \t\r\n[],":
                at += 1
            try:
                value, end = _DECODER.raw_decode(text, at)
            except (ValueError, RecursionError):
                break
            yield value, text[at:end]
            at = end
        self._rest = text[at:]
        self.ended_inside = bool(self._rest)
        if len(self._rest) > _LONGEST_ROW or (self._rest and self._rest[0] != "{"):
            raise DataRefused(f"no JSON object begins at {self._rest[:40]!r}")


def _over_lines(chunks: Iterable[bytes], wanted: Sequence[str]) -> Iterator[Batch]:
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    scanner = _Scanner()
    rows: list[dict[str, Any]] = []
    texts: list[str] = []
    others: list[tuple[str, str]] = []
    for chunk in chunks:
        for value, text in scanner.scan(decoder.decode(chunk)):
            if isinstance(value, dict):
                rows.append(value)
                texts.append(text)
            else:
                others.append((MALFORMED, _readable(text)))
            if len(rows) == _ROWS:
                yield _batch(rows, texts, wanted, others)
                rows, texts, others = [], [], []
    if scanner.ended_inside:
        raise DataRefused("the JSON text ends inside an object, or is damaged there")
    yield _batch(rows, texts, wanted, others)
