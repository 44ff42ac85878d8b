"""The hottest items against Counter."""

import random
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from recall_lib.config import Features, Input
from recall_lib.store import schemas
from recall_lib.transforms import popular as transform
from recall_lib.transforms.holdout import tie_breaker

DT = "2024-03-05"
MIDNIGHT = datetime(2024, 3, 5, tzinfo=UTC)
KNOWN = [f"i{item}" for item in range(12)] + ["ä", "Z"]


def make_clicks(ordering, seed=0):
    """(user, item, time or position); the last item is outside the vocabulary."""
    rng = random.Random(seed)
    moments = [MIDNIGHT - timedelta(seconds=rng.randrange(1, 9_000)) for _ in range(300)]
    moments += [MIDNIGHT - timedelta(hours=1), MIDNIGHT - timedelta(hours=1, microseconds=1)]  # the first is the window's edge
    clicks = []
    for n, moment in enumerate(moments):
        clicks.append((f"u{rng.randrange(12)}", rng.choice([*KNOWN, "unknown"]), moment if ordering == "time" else n // 2))
    return clicks


@pytest.mark.parametrize("ordering", ["time", "position"])
def test_hottest_overall_and_of_late(spark, ordering):
    clicks = make_clicks(ordering)
    by_time = ordering == "time"
    rows = [(user, item, clock if by_time else None, None if by_time else clock, None) for user, item, clock in clicks]
    frame = tie_breaker(spark.createDataFrame(rows, schemas.events(Features())).repartition(3))
    items = spark.createDataFrame(list(enumerate(KNOWN, 2)), "item_index int, item_id string")
    if by_time:
        late = [item for _, item, clock in clicks if clock >= MIDNIGHT - timedelta(hours=1)]
    else:
        own = {user: sorted((clock, item.encode(), item) for u, item, clock in clicks if u == user) for user, *_ in clicks}
        late = [item for clicked in own.values() for *_, item in clicked[-10:]]
    recent = transform.recent_clicks(frame, DT, Input(ordering=ordering), 1.0)
    for window, log, expected in (
        (transform.ALL, frame, [item for _, item, _ in clicks]),
        (transform.RECENT, recent, late),
    ):
        counts = Counter(item for item in expected if item in KNOWN)
        best = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0].encode()))
        table = transform.hottest(transform.count_items(log, items), window)
        found = schemas.enforce(table, schemas.POPULAR, "popular").orderBy("rank").collect()
        assert [(row["item_id"], row["count"]) for row in found] == best
        assert [(row["window"], row["rank"]) for row in found] == [(window, rank) for rank in range(1, len(found) + 1)]
    assert any(item == "unknown" for item in late)


def test_the_last_hours_end_where_dt_begins(spark):
    settings = Input(timezone="Asia/Tokyo", day_starts_at="06:00")
    begins = datetime(2024, 3, 4, 21, tzinfo=UTC)  # 06:00 of 5 March in Tokyo
    frame = spark.createDataFrame(
        [("u", begins - timedelta(minutes=m)) for m in (1, 59, 61)], "user_id string, event_ts timestamp"
    )
    assert transform.recent_clicks(frame, DT, settings, 1.0).count() == 2
