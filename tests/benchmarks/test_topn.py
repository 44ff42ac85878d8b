"""The benchmark of top-N at a tiny size: every row, and checks of the lists that can fail."""

import json
import sys
from dataclasses import asdict, replace
from types import SimpleNamespace

import numpy as np
import pytest

from recall_lib.inference.shipping import ship_folder
from recall_lib.retrieval.index import ItemIndex
from tests.benchmarks import topn

pytestmark = pytest.mark.proof  # what protects a benchmark

ISSUE = ["vs_als_exact", "vs_als_recall99", "vs_faiss_direct", "vs_gemm", "million_vs_exact", "promise_gap"]


@pytest.fixture(scope="module")
def tiny(spark):
    """Sizes at which all rows take seconds, and an index that keeps no promise but is quickly built."""

    def build_by_promise(vectors, item_ids, users, n, target):
        index = ItemIndex.build(vectors, item_ids, "IVF4,Flat", 4)
        return index, {"factory": "IVF4,Flat", "nprobe": 4, "recall": 0.75}

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "LEAST_USERS": 64,
            "LEAST_ITEMS": 400,
            "N": 20,
            "FEWER": 10,
            "MORE": 40,
            "TUNING_USERS": 10,
            "OTHER_USERS": 10,
            "CHECKED": 8,
            "ROUNDS": 1,
            "IN_A_ROW": 1,
            "PARTITIONS": 2,
            "ALS_BLOCKS": (16, 64),
            "FAISS_BATCHES": (16, 64),
        }.items():
            patch.setattr(topn, name, value)
        patch.setitem(sys.modules, "recall_lib.retrieval.tuning", SimpleNamespace(build_by_promise=build_by_promise))
        yield spark


def test_all_rows(tiny, tmp_path):
    rows = topn.measure(0.0, tmp_path)
    assert [row.name for row in rows[: len(ISSUE)]] == ISSUE
    assert len({row.name for row in rows}) == len(rows) == len(ISSUE) + 6 + 4 + 3 + 3
    by_name = {row.name: row for row in rows}
    for row in rows:
        json.dumps(asdict(row), allow_nan=False)
        assert row.ratio is None or row.ratio > 0, row
    gap = by_name["promise_gap"]
    assert (gap.peer, gap.ratio) == (None, None)
    assert gap.ours == pytest.approx(0.75 - 1.0)  # the index visits all of its lists
    assert f"{64 // topn.ALS_SHARE} users in" in by_name["vs_als_exact"].note


def test_lists_of_other_items_are_refused(tiny, tmp_path):
    case = topn.make(tiny, tmp_path / "case", "case", 16, 400)
    topn.check_and_warm_up(case)
    (tmp_path / "other").mkdir()
    shuffled = case.items.copy()
    shuffled[2:] = shuffled[:1:-1]
    ItemIndex.build(shuffled, ItemIndex.load(tmp_path / "case" / "exact").item_ids).save(tmp_path / "other")
    other = ship_folder(tiny, tmp_path / "other", "other")
    with pytest.raises(SystemExit, match=r"16 users x 400 items: lists hold 0\.\d+ of the product's best, not 0\.9999"):
        topn.check_and_warm_up(replace(case, exact=other))


def test_missing_users_are_refused(tiny, tmp_path):
    case = topn.make(tiny, tmp_path / "case", "missing", 16, 400)
    with pytest.raises(SystemExit, match=r"8 of 16 users have a list of 20"):
        topn.check_and_warm_up(replace(case, table=case.table.limit(8)))


def test_als_ranks_by_our_vectors(tiny, tmp_path):
    case = topn.make(tiny, tmp_path / "case", "als", 60, 400)
    model, users = topn.als_of(case)
    rows = topn.lists_of_als(model, 16).collect()
    assert sorted(row["user_id"] for row in rows) == list(range(users))
    for row in rows:
        scores = case.items[2:] @ case.users[row["user_id"]]
        assert [item["item_id"] for item in row["recommendations"]] == (np.argsort(-scores)[: topn.N] + 2).tolist()


def test_vectors_are_a_function_of_the_seed_and_lie_near_shared_centres():
    items, users = topn.clustered(3_000, 1, mixed=1), topn.clustered(50, 2, mixed=3)
    assert (items.dtype, items.shape) == (np.float32, (3_000, topn.DIM))
    np.testing.assert_array_equal(items, topn.clustered(3_000, 1, mixed=1))
    strangers = np.random.default_rng(3).standard_normal((50, topn.DIM))

    def nearest(queries):
        products = (queries / np.linalg.norm(queries, axis=1, keepdims=True)) @ items.T
        return (products / np.linalg.norm(items, axis=1)).max(axis=1).mean()

    assert nearest(users) > nearest(strangers) + 0.1


def test_the_fastest_of_all_turns_counts(monkeypatch):
    clock = iter([0.0, 5.0, 10.0, 12.0, 20.0, 21.0, 30.0, 33.0])
    monkeypatch.setattr(topn.time, "perf_counter", lambda: next(clock))
    order = []
    found = topn.in_turn({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2, in_a_row=1)
    assert order == ["a", "b", "a", "b"]
    assert found == {"a": 1.0, "b": 2.0}
