"""Candidates by matrix product: nothing better is left out, in either precision, however large, small or alike the numbers."""

from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lib.retrieval.exact import ExactSearch


@pytest.fixture(scope="module", params=[False, True], ids=["float32", "bfloat16"])
def multiply(request):
    with patch("recall_lib.retrieval.exact._multiplies_bfloat16", lambda: request.param):
        yield


def draw(rng, rows, dim, spread, offset):
    """Rows of very different (spread) or of nearly the same (offset) lengths and directions."""
    lengths = rng.lognormal(sigma=spread, size=(rows, 1))
    return ((rng.normal(size=(rows, dim)) + offset * np.linspace(1, -2, dim)) * lengths).astype(np.float32)


@settings(max_examples=100, deadline=None)
@given(
    items=st.integers(1, 400),
    k=st.integers(1, 60),
    rows=st.integers(1, 6),
    dim=st.sampled_from([1, 4, 64]),
    spread=st.sampled_from([0, 0.3, 3]),
    offset=st.sampled_from([0, 1, 1000]),
    scale=st.sampled_from([1e-6, 1, 1e12]),
    seed=st.integers(0, 1000),
)
def test_nothing_better_is_left_out(multiply, items, k, rows, dim, spread, offset, scale, seed):
    rng = np.random.default_rng(seed)
    vectors, users = draw(rng, items, dim, spread, offset), draw(rng, rows, dim, spread, offset) * np.float32(scale)
    k = min(k, items)
    with patch("recall_lib.retrieval.exact._BLOCK", 3 * items):
        places, bound = ExactSearch(vectors).best(users, k)
    scores = users.astype(np.float64) @ vectors.astype(np.float64).T
    for found, score, most in zip(places, scores, bound, strict=True):
        found = found[found >= 0]
        assert len(found) == len(set(found.tolist())) >= k
        assert set(np.flatnonzero(score >= np.sort(score)[-k])) <= set(found.tolist())
        assert (np.delete(score, found) <= most).all()


@pytest.mark.parametrize("offset", [0, 1000])
def test_little_else_is_kept(multiply, offset):
    rng = np.random.default_rng(0)
    vectors, users = draw(rng, 5000, 64, 0.3, offset), draw(rng, 20, 64, 0.3, 0)
    places, _ = ExactSearch(vectors).best(users, 100)
    assert ((places >= 0).sum(axis=1) < 250).all()


def test_items_too_much_alike_to_be_rounded_are_told_apart(multiply):
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(size=(1, 8)) * 1e3, rng.normal(size=(5000, 8))]).astype(np.float32)
    places, _ = ExactSearch(vectors).best(rng.normal(size=(10, 8)).astype(np.float32), 100)
    assert ((places >= 0).sum(axis=1) < 200).all()


def test_one_item_and_items_all_alike(multiply):
    user = np.ones((2, 3), np.float32)
    assert ExactSearch(np.ones((1, 3), np.float32)).best(user, 1)[0].tolist() == [[0], [0]]
    assert np.sort(ExactSearch(np.ones((50, 3), np.float32)).best(user, 5)[0]).tolist() == [list(range(50))] * 2
