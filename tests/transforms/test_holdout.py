"""Which clicks are held out, against sorting each user's clicks in Python."""

import random
from collections import defaultdict
from datetime import UTC, datetime

import pytest

from recall_lib.transforms.holdout import assign_splits

TYPES = "user_id string, item_id string, event_ts timestamp, position long, example_age double, city string, tags array<string>"


def frame(spark, clicks, partitions=3):
    """Clicks are (user, item, minute, position, city)."""
    rows = [
        (
            user,
            item,
            None if minute is None else datetime.fromtimestamp(1_700_000_000 + 60 * minute, UTC),
            position,
            None,
            city,
            [],
        )
        for user, item, minute, position, city in clicks
    ]
    return spark.createDataFrame(rows, TYPES).repartition(partitions)


def splits_of(spark, clicks, protocol="last_click", seed=1, partitions=3):
    """{user: [(item, city, split)]}, sorted."""
    found = defaultdict(list)
    for row in assign_splits(frame(spark, clicks, partitions), protocol, seed).collect():
        found[row["user_id"]].append((row["item_id"], row["city"], row["split"]))
    return {user: sorted(rows) for user, rows in found.items()}


def random_clicks(seed, users=60, by_time=True):
    rng = random.Random(seed)
    clicks = []
    for user in range(users):
        for n in range(rng.choice([1, 2, 3, 8])):
            moment = (rng.randrange(4), None) if by_time else (None, rng.randrange(4))
            # Ties of one time differ in their items, whose order is that of the UTF-8 bytes.
            clicks.append((f"u{user}", rng.choice(["Z", "a", "b", "é", "北", "ﬀ", "𐀀", "10", "9"]) + f"{n}", *moment, "c"))
    return clicks


@pytest.mark.parametrize("by_time", [True, False])
def test_last_click(spark, by_time):
    clicks = random_clicks(1, by_time=by_time)
    users = defaultdict(list)
    for user, item, minute, position, city in clicks:
        users[user].append((minute if by_time else position, item.encode(), item, city))
    expected = {}
    for user, own in users.items():
        names = ["train"] * len(own)
        if len(own) > 1:
            names[-1] = "test"
        if len(own) > 2:
            names[-2] = "validation"
        expected[user] = sorted((item, city, name) for (*_, item, city), name in zip(sorted(own), names, strict=True))
    assert splits_of(spark, clicks) == expected
    assert splits_of(spark, clicks[::-1], partitions=1) == expected, "neither order nor partitions matter"
    assert splits_of(spark, clicks, seed=2) == expected


def test_equal_times_and_items_are_told_apart_by_the_rest(spark):
    clicks = [("u", "a", 5, None, city) for city in ("x", "y", None, "z")]

    def splits(clicks, partitions):
        rows = assign_splits(frame(spark, clicks, partitions), "last_click", 1).collect()
        return {row["city"]: row["split"] for row in rows}

    found = splits(clicks, 3)
    assert sorted(found.values()) == ["test", "train", "train", "validation"]
    assert splits(clicks[::-1], 1) == found
    assert splits(clicks[2:] + clicks[:2], 2) == found


def test_day_validates_on_the_last_click_of_a_twentieth_of_the_users(spark):
    clicks = random_clicks(2, users=800)
    last = {}
    for user, item, minute, _, city in clicks:
        last[user] = max(last.get(user, (-1, b"", "", "")), (minute, item.encode(), item, city))
    found = splits_of(spark, clicks, "day")
    chosen = {user for user, rows in found.items() if any(split != "train" for *_, split in rows)}
    assert 0.02 * 800 < len(chosen) < 0.09 * 800
    for user in chosen:
        assert [row for row in found[user] if row[2] != "train"] == [(*last[user][2:], "validation")]
    assert sum(map(len, found.values())) == len(clicks)
    assert splits_of(spark, clicks[::-1], "day", partitions=1) == found
    other = {u for u, rows in splits_of(spark, clicks, "day", seed=2).items() if any(s == "validation" for *_, s in rows)}
    assert other != chosen, "the seed chooses"
    # More clicks of others, or of their own, do not move who is chosen.
    more = [*clicks, ("someone", "new", 9, None, "c"), *((user, "newest", 9, None, "c") for user in chosen)]
    again = splits_of(spark, more, "day")
    assert {u for u, rows in again.items() if ("newest", "c", "validation") in rows} == chosen
