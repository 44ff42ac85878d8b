"""The related table against its definition."""

import math
from pathlib import Path

import numpy as np
import pyarrow as pa

from recall_lib.inference.related import related_by_vectors
from recall_lib.inference.shipping import Shipped
from recall_lib.retrieval.index import ItemIndex
from recall_lib.store import schemas
from tests.inference.conftest import DT, make_log, run_job


def test_related_table(prepared):
    ctx = prepared()
    run_job(ctx, "related")
    rows = ctx.tables.get("related", DT).read(schemas.RELATED).collect()
    index = ItemIndex.load(Path(ctx.tables.get("index", DT).folder))
    vectors = {index.item_ids[i].as_py(): index.vectors[i].astype(np.float64) for i in range(2, len(index.vectors))}
    columns = {item: set() for item in vectors}
    for line in make_log()[1:]:
        user, item, *_ = line.split(",")
        if item in columns:
            columns[item].add(user)

    def nearness(source, i, j):
        if source == "vectors":
            return np.float32(vectors[i] @ vectors[j] / np.linalg.norm(vectors[i]) / np.linalg.norm(vectors[j]))
        return np.float32(len(columns[i] & columns[j]) / math.sqrt(len(columns[i]) * len(columns[j])))

    assert {(row["source"], row["item_id"]) for row in rows} == {(s, i) for s in ("vectors", "covisitation") for i in vectors}
    assert len(rows) == 2 * len(vectors)
    for row in rows:
        scores = {j: nearness(row["source"], row["item_id"], j) for j in vectors if j != row["item_id"]}
        scores = {j: score for j, score in scores.items() if row["source"] == "vectors" or score}
        best = sorted(scores, key=lambda j: (-scores[j], j.encode()))[:7]
        assert [item["item_id"] for item in row["items"]] == best
        np.testing.assert_allclose([item["score"] for item in row["items"]], [scores[j] for j in best], rtol=1e-5)


def test_a_bias_is_no_likeness(tmp_path):
    random = np.random.default_rng(0)
    vectors = random.normal(size=(12, 4)).astype(np.float32)
    biased = np.concatenate([100 * random.normal(size=(12, 1)).astype(np.float32), vectors], axis=1)
    names = pa.array([None, None, *(f"i{n:02}" for n in range(2, 12))])
    found = []
    for name, items, has_bias in (("plain", vectors, False), ("biased", biased, True)):
        (tmp_path / name).mkdir()
        ItemIndex.build(items, names).save(tmp_path / name)
        batch = pa.RecordBatch.from_pydict({"item_index": pa.array(range(2, 12), pa.int32())})
        shipped = Shipped(str(tmp_path / name), name)
        found.append(pa.Table.from_batches(related_by_vectors([batch], index=shipped, n=5, has_bias=has_bias)).to_pylist())
    assert found[0] == found[1]
