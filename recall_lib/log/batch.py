"""What readers give: some rows of a file, as Arrow columns, with the text of those that are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import pyarrow as pa

# Lines that are no row, and rows that cannot be told apart into columns.
BLANK, MALFORMED = "blank", "malformed"


@dataclass(frozen=True)
class Batch:
    """Rows of one file.

    Attributes:
        columns: the wanted columns, each with a value for each row; null where the file has no such column.
        rows: their number.
        texts: gives the text of the rows with these numbers, as the file has it.
        others: (BLANK or MALFORMED, the text) of lines that are not among the rows.
    """

    columns: dict[str, pa.Array]
    rows: int
    texts: Callable[[Iterable[int]], list[str]]
    others: list[tuple[str, str]]


def readable(text: bytes) -> str:
    """A line as text; bytes that are no UTF-8 as \\xff."""
    return text.decode("utf-8", "backslashreplace")
