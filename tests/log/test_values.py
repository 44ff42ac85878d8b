"""Values of raw logs: ids, times, clicks and ages, from any type of column."""

import pyarrow as pa
import pytest

from recall_lib.config import Input
from recall_lib.log import values


def time_of(value, **settings) -> str | None:
    """The time that a text is read as, in UTC."""
    found = values.times(pa.array([value]), Input(**settings)).micros[0].as_py()
    return None if found is None else str(pa.scalar(found, pa.timestamp("us")))


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", "1700006400.25", "2023-11-15 00:00:00.250000"),
        ("ms", "1700006400001", "2023-11-15 00:00:00.001000"),
        ("us", "1700006400000001", "2023-11-15 00:00:00.000001"),
        ("iso", "2023-11-15T02:00:00+02:00", "2023-11-15 00:00:00"),
        ("iso", "2023-11-15 01:02:03", "2023-11-15 01:02:03"),
        ("iso", "2023-11-15", "2023-11-15 00:00:00"),
        ("iso", "2023-11", None),
        ("iso", "2023-02-30", None),
        ("ms", "2023-11-15", None),
    ],
)
def test_times(unit, value, expected):
    assert time_of(value, time_unit=unit) == expected
