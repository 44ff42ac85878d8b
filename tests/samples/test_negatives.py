"""Negatives: whatever the draw, what must hold of it, and the shares it is drawn by."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lib.samples.negatives import draw, sampling_weights
from recall_lib.samples.ragged import Ragged


def keys_of(n, seed=0):
    return np.random.default_rng(seed).integers(0, 1 << 64, n, np.uint64)


def ragged(lists):
    return Ragged.of(np.array([v for own in lists for v in own], np.int64), np.array([len(own) for own in lists], np.int64))


@st.composite
def draws(make):
    items = make(st.integers(3, 14))
    weights = [0.0, 0.0, *make(st.lists(st.sampled_from([0, 0, 1, 2, 1e9]), min_size=items - 2, max_size=items - 2))]
    own = make(st.lists(st.sets(st.integers(2, items - 1)), min_size=1, max_size=6))
    return np.array(weights, np.float64), [sorted(o) for o in own], make(st.integers(1, 6)), make(st.integers(0, 1 << 32))


@given(draws())
@settings(max_examples=150, deadline=None)
def test_different_candidates_and_zeros_only_when_they_run_out(case):
    weights, own, k, seed = case
    drawn = draw(keys_of(len(own), seed), ragged(own), weights, k)
    assert drawn.shape == (len(own), k)
    assert drawn.dtype == np.int32
    for row, barred in zip(drawn.tolist(), own, strict=True):
        candidates = set(np.flatnonzero(weights).tolist()) - set(barred)
        count = min(k, len(candidates))
        assert len(set(row[:count])) == count
        assert set(row[:count]) <= candidates
        assert row[count:] == [0] * (k - count)


def test_a_row_is_a_function_of_its_key_alone():
    weights = np.array([0, 0, 5, 4, 3, 2, 1, 1, 1, 1], np.float64)
    own = [[2, 3], [], [4], [2, 9], [5], [2, 3, 4, 5, 6, 7]]
    keys = keys_of(6)
    drawn = draw(keys, ragged(own), weights, 3)
    order = [4, 0, 5, 3, 1, 2]
    turned = draw(keys[order], ragged([own[i] for i in order]), weights, 3)
    np.testing.assert_array_equal(turned, drawn[order])
    for i in range(6):
        np.testing.assert_array_equal(draw(keys[i : i + 1], ragged([own[i]]), weights, 3)[0], drawn[i])
    same = draw(np.repeat(keys[:1], 50), ragged([own[0]] * 50), weights, 3)
    assert (same == drawn[0]).all()
    assert len({tuple(row) for row in draw(keys_of(50), ragged([[]] * 50), weights, 3).tolist()}) > 20


@pytest.mark.parametrize("alpha", [0.0, 0.75, 1.0])
def test_the_first_negative_follows_count_to_the_alpha(alpha):
    counts = np.array([0, 0, 100, 40, 40, 12, 5, 1, 0], np.float64)
    weights = sampling_weights(counts.astype(np.int64), alpha)
    n, barred = 40_000, 3
    drawn = draw(keys_of(n, 7), ragged([[barred]] * n), weights, 1)[:, 0]
    found = np.bincount(drawn, minlength=len(counts))
    assert not found[counts == 0].any()
    assert not found[barred]
    weights[barred] = 0
    expected = n * weights / weights.sum()
    some = expected > 0
    chi_square = ((found - expected)[some] ** 2 / expected[some]).sum()
    assert chi_square < 18.5, "0.1% of draws by these shares (4 degrees of freedom) are farther off"


def test_later_negatives_are_drawn_from_what_is_left():
    weights = np.array([0, 0, 6, 3, 1], np.float64)
    n = 30_000
    drawn = draw(keys_of(n, 3), ragged([[]] * n), weights, 2)
    for first, second in ((2, 3), (2, 4), (3, 2), (3, 4), (4, 2), (4, 3)):
        share = weights[first] / 10 * weights[second] / (10 - weights[first])
        assert ((drawn[:, 0] == first) & (drawn[:, 1] == second)).mean() == pytest.approx(share, abs=0.01)


def test_who_owns_almost_all_weight_still_gets_the_rest_by_its_shares():
    weights = np.array([0, 0, 1e12, 1e12, 3, 1, 0], np.float64)  # rejections alone would never end
    n = 2_000
    drawn = draw(keys_of(n, 5), ragged([[2, 3]] * n), weights, 3)
    assert {tuple(sorted(row)) for row in drawn[:, :2].tolist()} == {(4, 5)}
    assert not drawn[:, 2].any()
    assert (drawn[:, 0] == 4).mean() == pytest.approx(0.75, abs=0.04)


@pytest.mark.parametrize(("weights", "k"), [([0, 0, 1, 1], 0), ([0, 0, 0, 0], 2), ([0, 0], 2)])
def test_nothing_to_draw(weights, k):
    assert draw(keys_of(3), ragged([[], [], []]), np.array(weights, np.float64), k).tolist() == [[0] * k] * 3
