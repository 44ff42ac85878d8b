"""What is known of items against loops over clicks."""

import math
import random
from datetime import UTC, datetime, timedelta

import pytest
from pyspark.sql import functions as F

from recall_lib.config import Feature, Features, Recency
from recall_lib.store import schemas
from recall_lib.transforms import items as transform

MIDNIGHT = datetime(2024, 3, 5, tzinfo=UTC)
FEATURES = Features(item=(Feature(name="category"), Feature(name="tags", multi=True)))
END = int(MIDNIGHT.timestamp()) * 1_000_000
ITEMS = 9  # indexes; 1 is unknown


def make_clicks(seed=0):
    """(user, item_index, time, category, tags, tie); some clicks agree in all but the features."""
    rng = random.Random(seed)
    clicks = []
    for n in range(200):
        moment = MIDNIGHT - timedelta(seconds=rng.choice([60, 3600, 86_400, 50 * 86_400]) * rng.randrange(1, 10))
        clicks.append((f"u{n % 7}", rng.randrange(1, ITEMS), moment, rng.randrange(1, 4), [rng.randrange(1, 5), 2], n))
    return clicks


@pytest.fixture
def frame(spark):
    columns = "user_id string, item_index int, event_ts timestamp, category_index int, tags_index array<int>, tie long"
    return spark.createDataFrame(make_clicks(), columns).withColumn("position", F.lit(None).cast("long")).repartition(5)


def newest():
    found = {}
    for user, item, moment, category, tags, tie in make_clicks():
        found[item] = max(found.get(item, ((), 0, [])), ((moment, user, tie), category, tags))
    return {item: (category, tags) for item, (_, category, tags) in found.items() if item > 1}


def test_features_are_those_of_the_newest_click(frame):
    rows = transform.newest_features(frame, FEATURES).collect()
    assert {row["item_index"]: (*row["category_index"], row["tags_index"]) for row in rows} == newest()
    plain = transform.newest_features(frame.select("item_index", "event_ts"), Features()).collect()
    assert sorted(row["item_index"] for row in plain) == sorted(newest())


@pytest.mark.parametrize("feature", [None, "category"])
@pytest.mark.parametrize("half_life", [0.5, 24.0])
def test_the_prior_is_its_formula(frame, feature, half_life):
    recency = Recency(half_life_hours=half_life, feature=feature)
    clicks = [(item, (MIDNIGHT - moment) / timedelta(hours=1)) for _, item, moment, *_ in make_clicks() if item > 1]
    late, of_late = {}, {}
    for item, hours in clicks:
        late[item] = late.get(item, 0) + 0.5 ** (hours / half_life)
        of_late[item] = of_late.get(item, 0) + 0.5 ** (hours / 96)
    table = transform.recency_prior(frame, transform.newest_features(frame, FEATURES), END, recency)
    rows = schemas.enforce(table, schemas.items(FEATURES), "items").collect()
    assert {row["item_index"] for row in rows} == set(late)
    for row in rows:
        item = row["item_index"]
        own = [hours for one, hours in clicks if one == item]
        expected = math.log(late[item] + 0.01) - 0.5 * math.log((len(own) + 1) / (min(max(own), 1000) + 1))
        if feature:
            same = sum(share for one, share in of_late.items() if newest()[one][0] == newest()[item][0])
            expected += 0.25 * math.log(same / sum(of_late.values()) + 1e-5)
        assert row["prior"] == pytest.approx(expected, abs=1e-3)


def test_the_prior_does_not_depend_on_partitions(frame):
    recency = Recency(feature="category")
    found = [
        sorted(transform.recency_prior(cut, transform.newest_features(cut, FEATURES), END, recency).collect())
        for cut in (frame, frame.repartition(1), frame.repartition(13, "tie"))
    ]
    assert found[0] == found[1] == found[2]
