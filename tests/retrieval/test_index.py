"""Search and ranks against plain loops; the same result in any batching."""

from unittest.mock import patch

import faiss
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lib.process.errors import DataRefused, UsageError
from recall_lib.retrieval.index import ItemIndex, id_ranks
from recall_lib.samples.ragged import Ragged


def make(n=60, dim=4, seed=0, coarse=False, factory="Flat", nprobe=None):
    """n items (beside the two reserved rows) with ids whose byte order is not the index order; coarse: many exact ties."""
    rng = np.random.default_rng(seed)
    vectors = _draw(rng, n + 2, dim, coarse)
    ids = [None, None, *(f"{name}" for name in rng.permutation(n))]
    return ItemIndex.build(vectors, pa.array(ids, pa.string()), factory, nprobe)


def make_users(rows, dim=4, seed=1, coarse=False):
    return _draw(np.random.default_rng(seed), rows, dim, coarse)


def _draw(rng, rows, dim, coarse):
    """Numbers whose products and sums are exact in float32, whatever their order."""
    vectors = rng.integers(-1, 2, (rows, dim)) if coarse else np.round(rng.normal(size=(rows, dim)) * 256) / 256
    return vectors.astype(np.float32)


def seen_lists(lists):
    flat = [item for one in lists for item in sorted(one)]
    return Ragged.of(np.array(flat, np.int64), np.array([len(one) for one in lists], np.int64))


def oracle(index, user, seen):
    """Every unseen item, best first: (item, score)."""
    scored = []
    for item in range(2, len(index.vectors)):
        if item not in seen:
            score = np.float32(sum(float(a) * float(b) for a, b in zip(index.vectors[item], user, strict=True)))
            scored.append((-score, index.item_ids[item].as_py().encode(), item))
    return [(item, -score) for score, _, item in sorted(scored)]


@pytest.mark.parametrize("few_items", [0, 1 << 16], ids=["faiss", "product"])
@settings(max_examples=60, deadline=None)
@given(st.data(), st.booleans(), st.integers(0, 40), st.integers(1, 50), st.integers(0, 1000))
def test_search_is_the_full_sort(few_items, data, coarse, items, n, seed):
    index, users = make(items, seed=seed, coarse=coarse), make_users(3, seed=seed + 1, coarse=coarse)
    catalogue = st.sets(st.integers(2, items + 1), max_size=items) if items else st.just(set())
    seen = [data.draw(catalogue) for _ in users]
    with patch("recall_lib.retrieval.index._FEW_ITEMS", few_items):
        found, scores = index.search(users, n, seen_lists(seen))
    for row, user in enumerate(users):
        expected = oracle(index, user, seen[row])[:n]
        assert found[row].tolist() == [item for item, _ in expected] + [0] * (n - len(expected))
        np.testing.assert_allclose(scores[row, : len(expected)], [score for _, score in expected], rtol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans(), st.integers(1, 40), st.integers(0, 1000))
def test_rank_is_the_place_in_the_full_sort(data, coarse, items, seed):
    index, users = make(items, seed=seed, coarse=coarse), make_users(3, seed=seed + 1, coarse=coarse)
    targets = np.array([data.draw(st.integers(2, items + 1)) for _ in users])
    seen = [data.draw(st.sets(st.integers(2, items + 1))) - {target} for target in targets.tolist()]
    ranks = index.rank(users, targets, seen_lists(seen))
    for row, user in enumerate(users):
        order = [item for item, _ in oracle(index, user, seen[row])]
        assert ranks[row] == order.index(targets[row]) + 1


@pytest.mark.parametrize(("factory", "nprobe"), [("Flat", None), ("IVF32,PQ48x4fs,Refine(SQ8)", 6)])
def test_a_user_gets_the_same_list_in_any_batch(factory, nprobe):
    index, users = make(3000, dim=48, factory=factory, nprobe=nprobe), make_users(300, dim=48)
    rng = np.random.default_rng(2)
    lists = [set(rng.integers(2, 3002, rng.integers(0, 160)).tolist()) for _ in users]
    whole = index.search(users, 100, seen_lists(lists))
    ranks = index.rank(users, np.full(300, 7), seen_lists([one - {7} for one in lists]))
    for step in (1, 7, 128):
        for start in range(0, 21 if step == 1 else 300, step):
            part = slice(start, start + step)
            for one, all_ in zip(index.search(users[part], 100, seen_lists(lists[part])), whole, strict=True):
                np.testing.assert_array_equal(one, all_[part])
            own = seen_lists([one - {7} for one in lists[part]])
            np.testing.assert_array_equal(index.rank(users[part], np.full(len(users[part]), 7), own), ranks[part])


def test_all_items_alike_come_in_the_order_of_their_ids():
    index = make(500)
    found, scores = index.search(np.zeros((2, 4), np.float32), 30)
    assert [index.item_ids[i].as_py() for i in found[1].tolist()] == sorted(index.item_ids.to_pylist()[2:])[:30]
    assert not scores.any()


@pytest.mark.parametrize("factory", ["Flat", "IVF8,Flat", "HNSW8", "PQ2x4", "IVF8,PQ4x4fs,Refine(SQ8)"])
def test_heavy_users_still_get_n(factory):
    index, users = make(1500, factory=factory), make_users(3)
    lists = [set(range(2, 1302)), set(), set(range(2, 1497))]
    found, _ = index.search(users, 50, seen_lists(lists))
    assert (found > 0).sum(axis=1).tolist() == [50, 50, 5]
    assert all(not lists[row] & set(found[row].tolist()) for row in range(3))
    assert all(len(set(row[row > 0].tolist())) == (row > 0).sum() for row in found)


def test_an_approximate_index_with_all_lists_visited_is_exact():
    users = make_users(20)
    flat, ivf = make(800), make(800, factory="IVF8,Flat", nprobe=8)
    for one, other in zip(flat.search(users, 40), ivf.search(users, 40), strict=True):
        np.testing.assert_array_equal(one, other)


@settings(max_examples=40, deadline=None)
@given(st.data(), st.booleans(), st.integers(0, 40), st.integers(0, 1000))
def test_only_the_allowed_items(data, coarse, items, seed):
    index, users = make(items, seed=seed, coarse=coarse), make_users(2, seed=seed + 1, coarse=coarse)
    allowed = np.array([False, False, *data.draw(st.lists(st.booleans(), min_size=items, max_size=items))])
    part = index.only(allowed)
    assert part.item_ids.to_pylist() == [None, None, *(index.item_ids[i].as_py() for i in np.flatnonzero(allowed))]
    found, scores = part.search(users, 10)
    ranked = part.rank(users, found[:, min(2, allowed.sum() - 1)]) if allowed.any() else []
    for row, user in enumerate(users):
        expected = oracle(index, user, set(np.flatnonzero(~allowed)))[:10]
        names = [index.item_ids[item].as_py() for item, _ in expected]
        assert [part.item_ids[item].as_py() for item in found[row].tolist()] == names + [None] * (10 - len(names))
        np.testing.assert_allclose(scores[row, : len(names)], [score for _, score in expected], rtol=1e-6)
        if allowed.any():
            assert ranked[row] == min(3, allowed.sum())


def test_a_small_part_of_an_approximate_index_is_exact():
    index, users = make(2000, factory="IVF16,Flat", nprobe=1), make_users(4)
    allowed = np.arange(2002) % 3 > 1
    found, scores = index.only(allowed).search(users, 20)
    for one, other in zip((found, scores), index.exact().only(allowed).search(users, 20), strict=True):
        np.testing.assert_array_equal(one, other)


def test_who_has_seen_more_than_is_wanted_is_searched_exactly():
    index, users = make(3000, factory="IVF32,Flat", nprobe=1), make_users(3)
    lists = [{item for item, _ in oracle(index, user, set())[:seen]} for user, seen in zip(users, (0, 50, 900), strict=True)]
    found, exact = (one.search(users, 20, seen_lists(lists))[0] for one in (index, index.exact()))
    assert set(found[0]) != set(exact[0])
    np.testing.assert_array_equal(found[1:], exact[1:])


@pytest.mark.parametrize("factory", ["IVF16,Flat", "IVF16,PQ4x4fs,Refine(SQ8)", "PCA3,IVF8,Flat", "HNSW8"])
def test_a_part_of_an_approximate_index_is_searched_as_the_whole_is(factory):
    nprobe = 3 if "IVF" in factory else None
    index, users = make(2000, factory=factory, nprobe=nprobe), make_users(4)
    allowed = np.arange(2002) % 20 > 1
    part = index.only(allowed)
    assert part.index.ntotal == allowed[2:].sum()
    if nprobe:
        whole, ivf = (faiss.extract_index_ivf(one.index) for one in (index, part))
        assert ivf.nprobe == nprobe
        centroids = [one.quantizer.reconstruct_n(0, one.nlist) for one in (whole, ivf)]
        np.testing.assert_array_equal(*centroids)  # the lists that training found
    lists = [set(), set(range(2, 1300)), set(), set()]
    found, scores = part.search(users, 20, seen_lists(lists))
    names = index.item_ids.to_pylist()
    for row, user in enumerate(users):
        own = [names.index(part.item_ids[item].as_py()) for item in found[row].tolist()]
        assert len(set(own)) == 20
        assert allowed[own].all()
        assert not lists[row] & set(found[row].tolist())
        np.testing.assert_allclose(scores[row], index.vectors[own].astype(float) @ user, rtol=1e-5)
    assert index.index.ntotal == 2000


def test_save_and_load(tmp_path):
    index, users = make(200), make_users(5)
    index.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["item_ids.parquet", "item_vectors.npy", "items.faiss"]
    loaded = ItemIndex.load(tmp_path)
    assert loaded.item_ids.equals(index.item_ids)
    for one, other in zip(loaded.search(users, 20), index.search(users, 20), strict=True):
        np.testing.assert_array_equal(one, other)


def test_ids_rank_by_their_bytes():
    # Unicode code points and UTF-16 units order the last two differently.
    assert id_ranks(pa.array([None, None, "b", "B", "\U0001f600", "\uffee", ""])).tolist() == [0, 0, 2, 1, 4, 3, 0]


@pytest.mark.parametrize(
    ("factory", "nprobe", "error"), [("Flatt", None, UsageError), ("Flat", 4, UsageError), ("IVF999,Flat", None, DataRefused)]
)
def test_a_factory_that_cannot_be_is_named(factory, nprobe, error):
    with pytest.raises(error, match=f"index.factory '{factory}'"):
        make(factory=factory, nprobe=nprobe)


def test_vectors_that_are_not_finite_are_refused():
    index = make()
    with pytest.raises(DataRefused, match="user vectors are not finite"):
        index.search(np.full((1, 4), np.nan, np.float32), 5)
    with pytest.raises(DataRefused, match="item vectors are not finite"):
        ItemIndex.build(np.full((3, 4), np.inf, np.float32), pa.array([None, None, "a"]))
