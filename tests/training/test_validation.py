"""Validation against a full sort by hand, and against what metrics.json gives for the same rows and model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from recall_lib.config import Feature, Features, ItemId
from recall_lib.inference import evaluate as inference
from recall_lib.inference.shipping import Shipped
from recall_lib.inference.vectors import item_vectors, user_vectors
from recall_lib.model.batch import Batch
from recall_lib.model.towers import YouTubeDNN
from recall_lib.retrieval.baselines import MostClicked
from recall_lib.retrieval.index import ItemIndex
from recall_lib.samples.ragged import Float32s
from recall_lib.training.loader import read_segments
from recall_lib.training.loop import Run, train
from recall_lib.training.ranks import Alone
from recall_lib.training.spec import TrainSpec
from recall_lib.training.validation import Catalogue, validate
from recall_lib.transforms.metrics import RANKS, summarise
from tests.training.synthetic import FEATURES, SAMPLES, SIZES, VALUES, make_spec, sequences, write_runs

IDS = ["", "", *VALUES["item_id"]]  # i10 is before i2 by its bytes, and after it by its index
ITEM_IDS = pa.array([None, None, *VALUES["item_id"]])
By = Callable[[int], Any]


def by_sorting(
    rows: Iterable[tuple[list[int], Float32s]],
    vectors: Float32s,
    *,
    filter_seen: bool = True,
    ties: By = lambda i: IDS[i].encode(),
) -> dict[str, float]:
    """HR@10 and NDCG@10 of users (clicks, the target last) and their vectors, each user's items sorted."""
    hits, gains, scored = 0, 0.0, 0
    for (*history, target), user in rows:
        if not history or (filter_seen and target in history):
            continue
        scored += 1
        # Exact, so that equal vectors have equal scores.
        scores = [math.fsum(float(a) * float(b) for a, b in zip(user, item, strict=True)) for item in vectors]
        candidates = [i for i in range(2, len(vectors)) if not (filter_seen and i in history)]
        ranking = sorted(candidates, key=lambda i, s=scores: (-s[i], ties(i)))[:10]
        if target in ranking:
            hits += 1
            gains += 1 / math.log2(ranking.index(target) + 2)
    return {"hr@10": hits / scored, "ndcg@10": gains / scored, "users": scored}


def batches_of_one(folder: Path, users: list[list[int]], features: Features) -> list[Batch]:
    """Each user alone, so that what else is in a batch cannot matter."""
    urls = [write_runs(folder / f"of one {n}.parquet", [own], held_out=True).url for n, own in enumerate(users)]
    runs = [next(read_segments([url], features, SAMPLES))[0] for url in urls]
    return [Batch.of(own.windows(np.arange(1))) for own in runs]


def exported(folder: Path, path: Path, priors: Float32s) -> tuple[Shipped, Float32s, Float32s]:
    """The model of a folder, the users' vectors for a file of samples, and the items', by the code that exports them."""
    model = Shipped(str(folder), "of this test")
    users = pa.Table.from_batches(user_vectors(pq.read_table(path).to_batches(), model=model))
    columns = {"item_index": range(2, len(IDS)), "item_id": IDS[2:], "prior": priors[2:]}
    items = pa.Table.from_batches(item_vectors(pa.table(columns).to_batches(), model=model))
    vectors = [np.array(table.column("vector").to_pylist(), np.float32) for table in (users, items)]
    return model, vectors[0], np.concatenate([np.zeros((2, vectors[1].shape[1]), np.float32), vectors[1]])


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("model", [{}, {"item_bias": True}, {"similarity": "cosine"}])
def test_hit_rate_and_gain_over_files_of_several_row_groups(tmp_path: Path, model: dict[str, Any], filter_seen: bool) -> None:
    torch.manual_seed(0)
    towers = YouTubeDNN(FEATURES, make_spec([], [], model={"embedding_std": 1.0, **model}).model, SIZES, SAMPLES.window_size)
    with torch.no_grad():
        towers.get_parameter("item_table.weight")[12:] = towers.get_parameter("item_table.weight")[2:12]  # ten ties
    users = sequences(40, 6, ordered=False)
    users[3][-1] = 1  # outside the vocabulary: a miss
    users[4][-1] = users[4][0]  # seen: not scored, if it is filtered
    users[5] = users[5][-1:]  # no history: not scored
    urls = [write_runs(tmp_path / f"{i}.parquet", users[i::2], held_out=True, row_group_size=7).url for i in range(2)]
    settings = (FEATURES, SAMPLES, torch.device("cpu"), Alone())
    found = validate(towers, Catalogue(ITEM_IDS), urls, *settings, filter_seen=filter_seen)
    with torch.no_grad():
        vectors = [towers.user_vectors(batch).numpy()[0] for batch in batches_of_one(tmp_path, users, FEATURES)]
        items = towers.item_vectors().numpy()
    assert found == pytest.approx(by_sorting(zip(users, vectors, strict=True), items, filter_seen=filter_seen))
    assert found["users"] == (39 - sum(own[-1] in own[:-1] for own in users) if filter_seen else 39)
    assert found["ndcg@10"] != by_sorting(zip(users, vectors, strict=True), items, filter_seen=filter_seen, ties=int)["ndcg@10"]
    assert validate(towers, Catalogue(ITEM_IDS), [], *settings) == {}


PRIORS = np.array([0, 0, *(-float(n % 3) / 4 for n in range(20))])  # items of one category and prior tie
LACKING = 21  # an item that items/dt lacks has the least prior
PRIORS[LACKING] = PRIORS.min()


def of_recency(folder: Path, held_out: list[list[int]], **training: Any) -> TrainSpec:
    """A model of the items' categories alone, with model.recency: whole groups of items have one vector."""
    features = Features(item_id=ItemId(dim=8), user=(Feature(name="city", dim=4),), item=(Feature(name="category", dim=8),))
    known = [i for i in range(2, len(IDS)) if i != LACKING]
    lists = pa.array([[2 + i % 4] for i in known], pa.list_(pa.int32()))
    columns = {"item_index": pa.array(known, pa.int32()), "prior": PRIORS[known], "category_index": lists}
    pq.write_table(pa.table(columns), folder / "items.parquet")
    spec = make_spec(
        [write_runs(folder / "train.parquet", sequences(60, 8, ordered=True))],
        [write_runs(folder / "held.parquet", held_out, held_out=True, row_group_size=7)],
        model={"item_rows": "content", "item_bias": True, "embedding_std": 0.5, "recency": {"weight": 0.8}},
        training={"epochs": 3, **training},
        items=(f"file://{folder}/items.parquet",),
    )
    return spec.model_copy(update={"features": features})


@pytest.mark.parametrize("filter_seen", [True, False])
@pytest.mark.parametrize("training", [{}, {"early_stopping": 1, "epochs": 6, "mixed_precision": True}])
def test_validation_is_what_metrics_say_of_the_published_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, training: dict[str, Any], filter_seen: bool
) -> None:
    users = [own for own in sequences(80, 5, ordered=False, seed=4) if own[-1] not in own[:-1]]
    users[3][-1] = 1
    spec = of_recency(tmp_path, users, **training).model_copy(update={"filter_seen": filter_seen})
    (tmp_path / "out").mkdir()
    found = train(spec, Alone(), tmp_path / "out")["validation"]
    model, vectors, items = exported(tmp_path / "out", tmp_path / "held.parquet", PRIORS)

    index = ItemIndex.build(items, ITEM_IDS)
    popular = MostClicked(np.array(spec.counts), index.id_rank)
    monkeypatch.setattr(inference, "_recommenders", lambda *_: (index, popular, popular, {}))
    rows = pq.read_table(tmp_path / "held.parquet").to_batches()
    unused = Shipped("", "")
    tally = pa.Table.from_batches(
        inference.evaluate(rows, model=model, index=unused, baselines=unused, filter_seen=filter_seen)
    ).to_pylist()
    ranks = {row["key"]: row["count"] for row in tally if (row["recommender"], row["cutoff"]) == ("model", RANKS)}
    metrics = summarise(ranks, {}, len(IDS) - 2)
    assert found == {"hr@10": metrics["hr@10"], "ndcg@10": metrics["ndcg@10"], "users": len(users)}

    scored = list(zip(users, vectors, strict=True))
    assert found == pytest.approx(by_sorting(scored, items, filter_seen=filter_seen))
    assert found != by_sorting(scored, items, filter_seen=filter_seen, ties=int)
    _, _, without = exported(tmp_path / "out", tmp_path / "held.parquet", np.zeros_like(PRIORS))
    assert found != by_sorting(scored, without, filter_seen=filter_seen)


def test_the_mean_user_is_that_of_the_weights(tmp_path: Path) -> None:
    """Each validation measures it again, and what is kept with the best weights is theirs."""
    users = sequences(30, 5, ordered=True, seed=4)
    run = Run(of_recency(tmp_path, users), Alone(), tmp_path)
    batches, means = batches_of_one(tmp_path, users, run.spec.streamed), []
    for _ in range(2):
        run.train_epoch()
        run.validate()
        means.append(run.model.get_buffer("mean_user").clone())
        with torch.no_grad():
            vectors = [run.model.user_representation(batch) for batch in batches]
        torch.testing.assert_close(means[-1], torch.cat(vectors).mean(0))
    assert not torch.equal(*means)
    run.stream.close()
    run.close()
