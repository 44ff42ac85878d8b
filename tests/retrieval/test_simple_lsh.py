"""Both SIMPLE-LSH forms: cosine order is inner-product order."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from recall_lib.retrieval import simple_lsh

coordinate = st.floats(-8, 8, width=16)


def cosines(users, items):
    norm = np.linalg.norm(users, axis=1)[:, None] * np.linalg.norm(items, axis=1)
    return (users.astype(np.float64) @ items.T.astype(np.float64)) / np.where(norm > 0, norm, 1)


@pytest.mark.parametrize("form", [simple_lsh.unit_items, simple_lsh.precise_items])
@settings(max_examples=200, deadline=None)
@given(items=arrays(np.float32, (6, 3), elements=coordinate), users=arrays(np.float32, (4, 3), elements=coordinate))
def test_cosine_order_is_inner_product_order(form, items, users):
    inner = users.astype(np.float64) @ items.T.astype(np.float64)
    cosine = cosines(simple_lsh.users(users), form(items))
    m = np.linalg.norm(items.astype(np.float64), axis=1).max()
    gap = 1e-6 * np.linalg.norm(users, axis=1)[:, None, None] * m  # float32 keeps no finer order
    before = inner[:, :, None] > inner[:, None, :] + gap
    assert (cosine[:, :, None] > cosine[:, None, :])[before].all()


@pytest.mark.parametrize("form", [simple_lsh.unit_items, simple_lsh.precise_items])
def test_the_cosine_is_the_inner_product_over_the_norms(form):
    rng = np.random.default_rng(0)
    items, users = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(9, 8)).astype(np.float32)
    m = np.linalg.norm(items, axis=1).max()
    expected = users @ items.T / np.linalg.norm(users, axis=1, keepdims=True) / m
    np.testing.assert_allclose(cosines(simple_lsh.users(users), form(items)), expected, atol=1e-6)


def test_norms_and_kept_coordinates():
    items = np.array([[3, 4], [0, 1], [0, 0]], np.float32)
    unit, precise = simple_lsh.unit_items(items), simple_lsh.precise_items(items)
    np.testing.assert_allclose(np.linalg.norm(unit, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(precise, axis=1), 5, rtol=1e-6)
    np.testing.assert_array_equal(precise[:, :2], items)
    np.testing.assert_array_equal(simple_lsh.users(np.array([[0, 0], [0, 2]], np.float32)), [[0, 0, 0], [0, 1, 0]])
    assert np.isfinite(simple_lsh.unit_items(np.zeros((3, 2), np.float32))).all()
