"""Which clicks are held out, against sorting each user's clicks in Python."""

import random
from collections import defaultdict
from datetime import UTC, datetime

import pyarrow as pa
import pytest
from pyspark.sql import functions as F

from recall_lib.config import Features, Input
from recall_lib.samples import build
from recall_lib.samples.clicks import Users
from recall_lib.transforms import holdout, samples
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


def test_days_begin_where_the_config_says():
    berlin = Input(timezone="Europe/Berlin", day_starts_at="04:00")
    for source, moment in ((Input(), datetime(2024, 3, 30, tzinfo=UTC)), (berlin, datetime(2024, 3, 30, 3, tzinfo=UTC))):
        assert holdout.first_moment("2024-04-01", 2, source) == int(moment.timestamp()) * 1_000_000
    assert holdout.first_moment("2024-04-01", None, berlin) is None


def splits_of(spark, clicks, protocol="last_click", seed=1, partitions=3):
    """{user: [(item, city, split)]} of each user's newest clicks, sorted."""
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
        names = {1: ["train"], 2: ["train", "test"]}.get(len(own), ["train", "validation", "test"])
        newest = sorted(own)[-3:]
        expected[user] = sorted((item, city, name) for (*_, item, city), name in zip(newest, names, strict=True))
    assert splits_of(spark, clicks) == expected
    assert splits_of(spark, clicks[::-1], partitions=1) == expected, "neither order nor partitions matter"
    assert splits_of(spark, clicks, seed=2) == expected
    training = {(row["user_id"], row["item_id"]) for row in holdout.training_clicks(frame(spark, clicks)).collect()}
    held_out = {(user, item) for user, rows in expected.items() for item, _, split in rows if split != "train"}
    assert training == {(user, item) for user, item, *_ in clicks} - held_out


def test_equal_times_and_items_are_told_apart_by_the_rest(spark):
    clicks = [("u", "a", 5, None, city) for city in ("x", "y", None)]

    def splits(clicks, partitions):
        rows = assign_splits(frame(spark, clicks, partitions), "last_click", 1).collect()
        return {row["city"]: row["split"] for row in rows}

    found = splits(clicks, 3)
    assert sorted(found.values()) == ["test", "train", "validation"]
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
        assert len(found[user]) == min(2, sum(click[0] == user for click in clicks))
    assert found.keys() == chosen, "of the others nothing is needed"
    newest = assign_splits(frame(spark, clicks), "day", 1).persist()
    held_out = {(row["user_id"], row["item_id"]) for row in newest.where("split <> 'train'").collect()}
    minutes = [minute for user, item, minute, *_ in clicks if (user, item) not in held_out]
    found_newest = holdout.newest_training_click(frame(spark, clicks), newest, "day", 1)
    assert found_newest == (1_700_000_000 + 60 * max(minutes)) * 1_000_000
    assert splits_of(spark, clicks[::-1], "day", partitions=1) == found
    other = {u for u, rows in splits_of(spark, clicks, "day", seed=2).items() if any(s == "validation" for *_, s in rows)}
    assert other != chosen, "the seed chooses"
    # More clicks of others, or of their own, do not move who is chosen.
    more = [*clicks, ("someone", "new", 9, None, "c"), *((user, "newest", 9, None, "c") for user in chosen)]
    again = splits_of(spark, more, "day")
    assert {u for u, rows in again.items() if ("newest", "c", "validation") in rows} == chosen


CITIES = [None, "x", "y", "z"]


@pytest.mark.parametrize("protocol", ["last_click", "day"])
def test_the_samples_hold_out_the_same_clicks(spark, protocol):
    """Vocabularies are counted without the clicks that SQL holds out, samples are made without those that NumPy does."""
    rng = random.Random(4)
    clicks = {(f"u{rng.randrange(300)}", rng.choice("aBé"), rng.randrange(3), None, rng.choice(CITIES)) for _ in range(1500)}
    events = frame(spark, sorted(clicks, key=str))
    found = {(r["user_id"], r["item_id"], r["city"], r["split"]) for r in assign_splits(events, protocol, 1).collect()}
    city = F.expr("coalesce(cast(array_position(array('x', 'y', 'z'), city) as int), 0)")
    encoded = holdout.tie_breaker(events).withColumn("city_index", city)
    encoded = encoded.withColumn("item_index", F.ascii("item_id"))
    features = Features.model_validate({"user": [{"name": "city"}]})
    table = samples.columns(encoded.withColumn("validates", holdout.validates(1)), features, "validates")
    users = Users.of(pa.Table.from_pandas(table.toPandas()), features)
    for split, held in build._held_out(users, protocol).items():
        ours = {(users.ids[users.user[i]].as_py(), users.item[i], CITIES[users.features["city"][i]]) for i in held}
        assert ours == {(user, ord(item), city) for user, item, city, name in found if name == split}
        assert len(ours) > 5
