"""Pairs of items against loops over users, however they are spread."""

import random
from functools import partial

import numpy as np
import pytest

from recall_lib.config import Features
from recall_lib.inference.covisits import as_matrix, count_covisits
from recall_lib.store import schemas
from recall_lib.transforms import related as transform
from recall_lib.transforms.holdout import tie_breaker

ITEMS = 15


def make_clicks(seed=0):
    rng = random.Random(seed)
    return [(f"u{rng.randrange(20)}", f"i{rng.randrange(2, ITEMS)}", None, n, None) for n in range(200)]


@pytest.fixture
def encoded(spark):
    """Clicks with item_index: the number in the id."""
    frame = tie_breaker(spark.createDataFrame(make_clicks(), schemas.events(Features())))
    return frame.selectExpr("*", "cast(substring(item_id, 2) as int) as item_index").repartition(3)


def items_by_user():
    users = {}
    for user, item, _, position, _ in make_clicks():
        users.setdefault(user, []).append((position, int(item[1:])))
    return {user: [item for _, item in sorted(own)] for user, own in users.items()}


def test_items_of_users(encoded):
    rows = transform.items_of_users(encoded).collect()
    assert {row["user_id"]: row["items"] for row in rows} == {user: sorted(set(own)) for user, own in items_by_user().items()}


def test_of_a_user_with_too_many_items_the_last_count(encoded, monkeypatch):
    monkeypatch.setattr(transform, "MAX_ITEMS_PER_USER", 3)
    rows = transform.items_of_users(encoded).collect()
    for user, own in items_by_user().items():
        last = list(dict.fromkeys(reversed(own)))[:3]
        assert sorted(last) == next(row["items"] for row in rows if row["user_id"] == user)


@pytest.mark.parametrize("blocks", [1, 2, 5, 40])
def test_covisits_in_any_number_of_blocks(encoded, blocks):
    users = transform.items_of_users(encoded)
    count = partial(count_covisits, items=ITEMS, blocks=blocks)
    counts = as_matrix(
        transform.spread_by_item(users, blocks).mapInArrow(count, transform.COVISITS).toPandas(), ITEMS
    ).toarray()
    expected = np.zeros((ITEMS, ITEMS), int)
    for own in items_by_user().values():
        for i in set(own):
            for j in set(own):
                expected[i, j] += 1
    np.testing.assert_array_equal(counts, expected)
    found = {row["item_index"]: row["users"] for row in transform.users_of_items(users).collect()}
    assert found == {i: expected[i, i] for i in range(ITEMS) if expected[i, i]}
