"""How a CSV file is written: what `input.options` says of it, and otherwise what its first lines show."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

_SEPARATORS = (b",", b"\t", b";", b"|", b"::")
_ROWS = 50  # that are looked at
_BOM = b"\xef\xbb\xbf"
# A quoted value with line breaks is at most this long; a longer one is a stray quote.
LONGEST_RECORD = 1 << 16


@dataclass(frozen=True)
class Dialect:
    """How the lines of a CSV file become fields.

    Attributes:
        sep: between fields, one byte or more.
        quote: around a field that holds separators or line breaks; empty: none.
        escape: before a quote inside quotes; the quote itself where quotes are doubled.
        comment: lines that begin with it hold no row; empty: none do.
        breaks: whether quoted values may hold line breaks.
        names: of the columns; a name may be empty or stand twice.
        skip: bytes of the file's text before its first row.
    """

    sep: bytes
    quote: bytes = b'"'
    escape: bytes = b'"'
    comment: bytes = b""
    breaks: bool = True
    names: tuple[str, ...] = ()
    skip: int = 0

    def is_no_row(self, line: bytes) -> bool:
        """Whether a line is blank or a comment."""
        return not line.strip() or bool(self.comment and line.startswith(self.comment))

    def fields(self, line: bytes) -> list[bytes] | None:
        """The fields of a record without its line end; None: it ends inside quotes."""
        if not self.quote or self.quote not in line:
            return line.split(self.sep)
        found: list[bytes] = []
        at = 0
        while True:
            value = b""
            if line.startswith(self.quote, at):
                match = self._quoted.match(line, at)
                if not match:
                    return None
                value, at = self._unescaped(match[1]), match.end()
            end = line.find(self.sep, at)
            if end < 0:
                return [*found, value + line[at:]]
            found.append(value + line[at:end])
            at = end + len(self.sep)

    @cached_property
    def _quoted(self) -> re.Pattern[bytes]:
        quote, escape = re.escape(self.quote), re.escape(self.escape)
        inside = rb"(?:[^%b]|%b%b)*" % (quote, quote, quote)
        if self.escape != self.quote:
            inside = rb"(?:[^%b%b]|%b.|%b%b)*" % (quote, escape, escape, quote, quote)
        return re.compile(rb"%b(%b)%b" % (quote, inside, quote), re.DOTALL)

    def _unescaped(self, text: bytes) -> bytes:
        if self.escape != self.quote:  # before other letters the escape is a letter: \N stays \N
            text = re.sub(rb"%b([%b%b])" % tuple(map(re.escape, (self.escape, self.quote, self.escape))), rb"\1", text)
        return text.replace(self.quote * 2, self.quote)


def detect(sample: bytes, options: Mapping[str, str], names: Sequence[str] | None) -> Dialect:
    """The dialect of a file.

    Args:
        sample: its first whole lines, as UTF-8.
        options: `input.options`.
        names: of the columns, where the file has no header.
    """
    bom = len(_BOM) if sample.startswith(_BOM) else 0
    lines = re.split(rb"\r\n|\n|\r", sample[bom:])
    sep = options.get("sep", options.get("delimiter"))
    told = Dialect(
        sep=_letters(sep) if sep else b",",
        quote=_letters(options.get("quote", '"')),
        escape=_letters(options.get("escape", options.get("quote", '"'))),
        comment=_letters(options.get("comment", "")),
        breaks=options.get("multiline", "true").lower() == "true",
    )
    rows = [line for line in lines if not told.is_no_row(line)][:_ROWS]
    if not rows:
        return replace(told, names=tuple(names or ()), skip=bom)
    ways = [told] if sep else [replace(told, sep=one) for one in _SEPARATORS]
    if "escape" not in options and told.quote and any(b"\\" + told.quote in line for line in rows):
        ways += [replace(way, escape=b"\\") for way in ways]
    chosen = max(ways, key=lambda way: _fit(way, rows, names))
    if names is not None:
        return replace(chosen, names=tuple(names), skip=bom)
    head = rows[0]
    found = [field.decode("utf-8", "replace") for field in chosen.fields(head) or [head]]
    widths = Counter(len(fields) for line in rows[1:] if (fields := chosen.fields(line)) and not fields[-1])
    if widths.get(len(found) + 1, 0) > len(rows[1:]) / 2:
        found.append("")  # every row ends with a separator, the header does not
    start = sample.index(head, bom)
    end = re.compile(rb"\r\n|\n|\r|\Z").search(sample, start + len(head))
    return replace(chosen, names=tuple(found), skip=end.end() if end else len(sample))


def has_breaks(sample: bytes, dialect: Dialect) -> bool:
    """Whether a quoted value of the first lines holds a line break."""
    if not (dialect.breaks and dialect.quote):
        return False
    lines = sample[dialect.skip :].split(b"\n")
    return any(line.count(dialect.quote) % 2 and dialect.fields(line) is None for line in lines)


def _fit(way: Dialect, rows: Sequence[bytes], names: Sequence[str] | None) -> tuple[int, int]:
    """How well a dialect fits: the columns of the header, then the rows that have as many fields."""
    widths = [len(way.fields(line) or ()) for line in rows]
    columns = len(names) if names is not None else widths[0]
    fitting = sum(width == columns for width in widths)
    return (fitting, columns) if names is not None else (columns, fitting)


def _letters(option: str) -> bytes:
    """An option's letters; a backslash and t stand for a tab, as in Spark."""
    return option.replace("\\t", "\t").encode()
