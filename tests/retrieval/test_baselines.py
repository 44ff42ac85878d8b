"""The baselines against plain loops over users and items."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from recall_lib.retrieval.baselines import ItemKnn, MostClicked, save_cosines
from recall_lib.retrieval.index import id_ranks
from recall_lib.runs import Ragged

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


@settings(max_examples=60, deadline=None)
@given(
    st.lists(some_items, min_size=1, max_size=8),
    st.lists(
        st.tuples(st.lists(st.integers(1, ITEMS + 1), max_size=5), some_items, st.integers(1, ITEMS + 1)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, ITEMS + 3),
)
def test_item_knn(folder, users, rows, n):
    clicked = np.zeros((len(users), ITEMS + 2), np.int64)
    for user, own in enumerate(users):
        clicked[user, list(own)] = 1
    save_cosines(sparse.csr_matrix(clicked.T @ clicked), ID_RANK, folder)
    histories, seen = ragged([history for history, _, _ in rows]), ragged([sorted(own) for _, own, _ in rows])
    targets = np.array([target for _, _, target in rows])
    found, ranks = ItemKnn(folder, ID_RANK).search_and_rank(histories, n, targets, seen)

    def cosine(i, j):
        both, one, other = (sum(needed <= own for own in users) for needed in ({i, j}, {i}, {j}))
        return both / math.sqrt(one * other) if both else 0

    for row, (history, own, target) in enumerate(rows):
        ranking = full_ranking(lambda i, history=history: np.float32(sum(cosine(i, j) for j in history if j >= 2)), own)
        check(found[row], ranks[row], target, ranking, n)
