"""The baselines against plain loops over users and items."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recall_lib.retrieval.baselines import EASE_LAMBDA, Ease, ItemKnn, MostClicked, save_cosines, save_ease
from recall_lib.retrieval.index import id_ranks
from recall_lib.samples.ragged import Ragged

ITEMS = 12
INDEXES = range(2, ITEMS + 2)
NAMES = [None, None, *(str(name) for name in np.random.default_rng(5).permutation(ITEMS))]
ID_RANK = id_ranks(pa.array(NAMES, pa.string()))

some_items = st.sets(st.sampled_from(INDEXES), max_size=ITEMS)


def ragged(lists):
    return Ragged.of(np.array([i for one in lists for i in one], np.int64), np.array([len(one) for one in lists], np.int64))


def full_ranking(score, seen):
    return sorted((i for i in INDEXES if i not in seen), key=lambda i: (-score(i), NAMES[i].encode()))


def check(found, ranks, target, ranking, n):
    assert found.tolist() == ranking[:n] + [0] * (n - len(ranking[:n]))
    assert ranks == (ranking.index(target) + 1 if target in ranking else 0)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 3), min_size=ITEMS, max_size=ITEMS),
    st.lists(st.tuples(some_items, st.integers(1, ITEMS + 1)), min_size=1, max_size=4),
    st.integers(1, ITEMS + 3),
)
def test_most_clicked(counts, rows, n):
    counts = np.array([0, 0, *counts])
    recommender = MostClicked(counts, ID_RANK)
    seen, targets = ragged([sorted(one) for one, _ in rows]), np.array([target for _, target in rows])
    found, ranks = recommender.search(n, seen), recommender.rank(targets, seen)
    for row, (own, target) in enumerate(rows):
        check(found[row], ranks[row], target, full_ranking(lambda i: counts[i], own), n)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("cosines")


def clicks_of(users):
    clicked = np.zeros((len(users), ITEMS + 2), np.int32)
    for user, own in enumerate(users):
        clicked[user, list(own)] = 1
    return clicked


def search(recommender, rows, n):
    histories, seen = ragged([history for history, _, _ in rows]), ragged([sorted(own) for _, own, _ in rows])
    return recommender.search_and_rank(histories, n, np.array([target for _, _, target in rows]), seen)


some_users = st.lists(some_items, min_size=1, max_size=8)
some_rows = st.lists(
    st.tuples(st.lists(st.integers(1, ITEMS + 1), max_size=5), some_items, st.integers(1, ITEMS + 1)), min_size=1, max_size=4
)


@settings(max_examples=60, deadline=None)
@given(some_users, some_rows, st.integers(1, ITEMS + 3))
def test_item_knn(folder, users, rows, n):
    clicked = clicks_of(users)
    save_cosines(sparse.csr_matrix(clicked.T @ clicked), ID_RANK, folder)
    found, ranks = search(ItemKnn(folder, ID_RANK), rows, n)

    def cosine(i, j):
        both, one, other = (sum(needed <= own for own in users) for needed in ({i, j}, {i}, {j}))
        return both / math.sqrt(one * other) if both else 0

    for row, (history, own, target) in enumerate(rows):
        ranking = full_ranking(lambda i, history=history: np.float32(sum(cosine(i, j) for j in history if j >= 2)), own)
        check(found[row], ranks[row], target, ranking, n)


@settings(max_examples=60, deadline=None)
@given(some_users, some_rows, st.integers(1, ITEMS + 3))
def test_ease(folder, users, rows, n):
    clicked = clicks_of(users)
    save_ease(sparse.csr_matrix(clicked.T @ clicked), ID_RANK, folder)
    found, ranks = search(Ease(folder, ID_RANK), rows, n)
    weights = ridge_regressions(clicked)
    for row, (history, own, target) in enumerate(rows):
        scores = sum((weights[j] for j in history if j >= 2), np.zeros(ITEMS + 2))
        place, best = found[row][found[row] > 0], np.array(full_ranking(lambda i, scores=scores: scores[i], own), np.int64)
        assert len(place) == min(n, len(best)) == len(set(place) - own)
        np.testing.assert_allclose(scores[place], scores[best[:n]], atol=1e-6)  # equals may change places
        if target in best:
            ahead, equal = (scores[best] > scores[target] + 1e-6).sum(), (abs(scores[best] - scores[target]) <= 1e-6).sum()
            assert ahead < ranks[row] <= ahead + equal
        else:
            assert ranks[row] == 0


def ridge_regressions(clicked):
    """[i, j]: the weight of item i where item j is told from all the others, a regression an item."""
    weights = np.zeros((clicked.shape[1],) * 2)
    for j in INDEXES:
        others = [i for i in INDEXES if i != j]
        x = clicked[:, others].astype(np.float64)
        weights[others, j] = np.linalg.solve(x.T @ x + EASE_LAMBDA * np.eye(len(others)), x.T @ clicked[:, j])
    return weights


def test_ease_ranks_equals_by_id(folder):
    clicked = clicks_of([{2, 3, 4, 5}, {2, 3, 4, 5}, {2, 6}])  # 3, 4 and 5 are alike, 7 and the rest were never clicked
    save_ease(sparse.csr_matrix(clicked.T @ clicked), ID_RANK, folder)
    found, ranks = search(Ease(folder, ID_RANK), [([2], {2}, 7)], ITEMS)
    by_name = sorted(INDEXES, key=lambda i: NAMES[i].encode())
    alike, unknown = [i for i in by_name if i in (3, 4, 5)], [i for i in by_name if i >= 7]
    assert found[0].tolist() == [*alike, 6, *unknown, 0]
    assert ranks[0] == 5 + unknown.index(7)
