"""Which days of events are published again, by their clicks and by the settings that they were read with."""

from typing import Any

import pytest
from pyspark.sql.types import StringType, StructField, StructType

from recall_lib.day.context import Context
from recall_lib.day.inputs import changed_days
from recall_lib.store import schemas

DAYS = ["2024-01-01", "2024-01-02", "2024-01-03"]
CLICKS = {DAYS[0]: ["a", "b"], DAYS[1]: ["a"], DAYS[2]: []}


@pytest.mark.parametrize(
    ("now", "sections", "changed"),
    [
        (CLICKS, {}, []),
        (CLICKS | {DAYS[1]: ["b"]}, {}, [DAYS[1]]),
        (CLICKS | {DAYS[0]: ["a", "b", "b"]}, {}, [DAYS[0]]),
        (CLICKS | {DAYS[1]: []}, {}, [DAYS[1]]),
        (CLICKS | {DAYS[2]: ["a"]}, {}, [DAYS[2]]),
        (CLICKS | {"2024-01-04": ["a"]}, {}, ["2024-01-04"]),
        (CLICKS, {"input": {"time_unit": "ms"}}, DAYS),
        (CLICKS, {"input": {"clicks": "moved"}}, []),
    ],
    ids=["same", "another item", "one more", "none left", "the first", "a new day", "other settings", "another place"],
)
def test_days_that_differ_from_what_is_published(
    spark: Any, make_config: Any, now: dict[str, list[str]], sections: dict[str, Any], changed: list[str]
) -> None:
    before = Context(make_config(), DAYS[0], "test")
    schema = schemas.events(before.config.features)

    def frame(clicks: dict[str, list[str]]) -> Any:
        rows = [{"user_id": "u", "item_id": item, "position": 1, "dt": day} for day, items in clicks.items() for item in items]
        return spark.createDataFrame(rows, StructType([*schema.fields, StructField("dt", StringType())]))

    with before.tables.publishing("events", DAYS) as staged:
        staged.write(frame(CLICKS), schema)
    after = Context(make_config(**sections), DAYS[0], "test")
    assert changed_days(after, "events", schema, frame(now), sorted(now)) == changed
