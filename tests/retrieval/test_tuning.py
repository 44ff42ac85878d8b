"""The index that is chosen keeps its promise, and the recall that is told is the one a loop counts."""

import numpy as np
import pyarrow as pa
import pytest

from recall_lib.retrieval import tuning
from recall_lib.retrieval.index import ItemIndex
from recall_lib.retrieval.tuning import build_by_promise, measure, recalls
from recall_lib.samples.ids import FIRST_INDEX

N = 50


@pytest.fixture(scope="module")
def clustered():
    """Items around 100 centres, users near them: (vectors with the two reserved rows, ids, users, other users)."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 15))

    def near(count, spread):
        return (centres[rng.integers(100, size=count)] + spread * rng.normal(size=(count, 15))).astype(np.float32)

    vectors = np.concatenate([np.zeros((FIRST_INDEX, 15), np.float32), near(20_000, 0.3)])
    ids = pa.array([None, None, *map(str, range(20_000))], pa.string())
    return vectors, ids, near(1000, 0.3), near(1000, 0.3)


@pytest.fixture
def cheap(monkeypatch):
    """As if the exact search were dear, so that a small catalogue gets an approximate index."""
    monkeypatch.setattr(tuning, "_IVF_FIXED", 0)


@pytest.mark.usefixtures("cheap")
@pytest.mark.parametrize("target", [0.9, 0.99])
def test_a_promise_is_kept_on_other_users(clustered, target, tmp_path):
    vectors, ids, users, others = clustered
    index, facts = build_by_promise(vectors, ids, users, N, target)
    assert facts["factory"].startswith("IVF")
    assert facts["recall"] >= target == facts["recall_target"]
    assert measure(index, index.exact(), others, N)["recall"] >= target - 0.005
    again, same = build_by_promise(vectors, ids, users, N, target)
    assert (same["nprobe"], same["recall"]) == (facts["nprobe"], facts["recall"])
    again.save(tmp_path)
    for one, other in zip(index.search(others, N), ItemIndex.load(tmp_path).search(others, N), strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.usefixtures("cheap")
def test_a_higher_promise_visits_more_lists(clustered):
    vectors, ids, users, _ = clustered
    probes = [build_by_promise(vectors, ids, users, N, target)[1]["nprobe"] for target in (0.5, 0.9, 0.98)]
    assert probes[0] < probes[1] < probes[2]


@pytest.mark.usefixtures("cheap")
def test_where_nothing_holds_it_or_nothing_is_gained_the_index_is_exact(clustered, monkeypatch):
    vectors, ids, users, _ = clustered
    assert build_by_promise(vectors, ids, users, N, 1.0)[1]["factory"] == "Flat"
    assert build_by_promise(vectors, ids, users[:0], N, 0.9)[1]["factory"] == "Flat"
    assert build_by_promise(vectors, ids, users, 19_000, 0.5)[1]["factory"] == "Flat"  # few lists hold fewer than n
    monkeypatch.setattr(tuning, "_IVF_EACH", 1e9)
    index, facts = build_by_promise(vectors, ids, users, N, 0.9)
    assert (facts["factory"], facts["nprobe"], facts["recall"]) == ("Flat", None, 1.0)
    assert index.index.ntotal == 20_000


@pytest.mark.parametrize("items", [0, 1, 10, 19, 500, 20_000])
def test_a_small_catalogue_is_searched_exactly(clustered, items):
    vectors, ids, users, _ = clustered
    rows = items + FIRST_INDEX
    assert build_by_promise(vectors[:rows], ids[:rows], users[:200], N, 0.9)[1]["factory"] == "Flat"


@pytest.mark.usefixtures("cheap")
def test_few_users_promise_nothing(clustered):
    vectors, ids, users, _ = clustered
    assert build_by_promise(vectors, ids, users[:150], N, 0.5)[1]["factory"] == "Flat"


def test_recall_against_a_loop():
    rng = np.random.default_rng(1)
    found, wanted = (np.stack([rng.permutation(np.arange(2, 30))[:12] for _ in range(20)]) for _ in range(2))
    found[3, 5:], wanted[4, 7:], wanted[5] = 0, 0, 0
    counted = [len({*f} & {*w} - {0}) / max(1, len({*w} - {0})) for f, w in zip(found.tolist(), wanted.tolist(), strict=True)]
    counted[5] = 1.0
    np.testing.assert_allclose(recalls(found, wanted), counted)


def test_measure_of_an_index_that_misses(clustered):
    vectors, ids, users, _ = clustered
    exact = ItemIndex.build(vectors, ids)
    one_list = ItemIndex.build(vectors, ids, "IVF64,Flat", nprobe=1)
    facts = measure(one_list, exact, users, N)
    assert 0 < facts["recall"] < 0.99
    assert facts["recall"] == pytest.approx(recalls(one_list.search(users, N)[0], exact.search(users, N)[0]).mean())
    assert measure(exact, exact, users[:0], N)["recall"] == 1.0
