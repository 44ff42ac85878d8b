"""The benchmark of training at a tiny size: every row, and that both sides train on the same targets."""

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest

from recall_lib.samples.ragged import Ragged
from recall_lib.training.ranks import Alone
from tests.benchmarks import common, train, training

pytestmark = pytest.mark.proof  # what protects a benchmark

SCALE = 0.001  # 50 users
NEEDS_PEER = pytest.mark.skipif(
    not list(common.PEERS_PYTHON.parents[1].glob("lib/*/site-packages/torch_rechub")),
    reason="no torch-rechub in build/bench/venv: `make bench` sets it up",
)


@pytest.fixture(scope="module")
def work(spark, tmp_path_factory):
    """Folder of one generated log and its samples, which all measures share."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "REPEATS": 1,
            "ROUNDS": 1,
            "PEER_REPEATS": 1,
            "THREADS": (1,),
            "THREADS_WORKERS": ((1, 0), (1, 1)),
        }.items():
            patch.setattr(train, name, value)
        yield tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def spec(work):
    return train.spec(train.published(work, SCALE)[0], 512)


def test_the_peer_gets_the_windows_that_ours_trains_on(work, spec):
    ctx, log = train.published(work, SCALE)
    assert log.startswith("generated")
    columns = train.training_windows(ctx)
    theirs = Counter(zip(columns["user_id"], map(bytes, columns["history"]), columns["target"], strict=True))
    ours = Counter()
    with training.new_run(Alone(), spec, epochs=1) as run:
        for found in training.windows(run):
            history = train.padded(found.history, columns["history"].shape[1])
            ours.update(zip(found.user["user_id"], map(bytes, history), found.target, strict=True))
    assert ours == theirs
    assert ours.total() == sum(file["targets"] for file in spec["train"]) > 500
    assert set(columns) == {"history", "target", "example_age", "user_id", "city", "age", "gender"}


@pytest.mark.parametrize("measure", ["epoch", "loading", "steps"])
def test_every_measure_of_a_run_sees_all_targets(spec, measure):
    found = training.MEASURES[measure](Alone(), spec=spec, repeats=1)
    assert found["seconds"] > 0
    assert found["targets"] == sum(file["targets"] for file in spec["train"])


def test_rows_without_peers(work, monkeypatch):
    monkeypatch.setattr(train, "TABLES", {"10k": 10_000})
    rows = [train.loader_vs_step(work, SCALE), train.ranks_2_vs_1(work, SCALE), *train.sparse_vs_dense(SCALE)]
    assert [row.name for row in rows] == [
        "loader_vs_step",
        "ranks_2_vs_1",
        "sparse_vs_dense_10k",
        "sparse_vs_dense_10k_2_ranks",
    ]
    for row in rows:
        json.dumps(asdict(row), allow_nan=False)
        assert row.ours > 0
        assert row.peer > 0


def test_lists_are_padded_after_their_end():
    lists = Ragged.of(np.array([4, 5, 6]), np.array([2, 0, 1]))
    assert train.padded(lists, 3).tolist() == [[4, 5, 0], [0, 0, 0], [6, 0, 0]]


def test_a_failing_process_ends_the_benchmark():
    with pytest.raises(SystemExit, match=r"(?s)bench: epoch failed: .*ValidationError"):
        train.run_ours({"measure": "epoch", "spec": {}, "repeats": 1})


@NEEDS_PEER
def test_the_peer_trains_on_as_many_targets(work, spec):
    row = train.against_rechub(work, SCALE)
    assert row.name == "vs_torch_rechub"
    assert row.ratio > 0
    assert f"{sum(file['targets'] for file in spec['train']):,} targets" in row.note


def test_a_peer_with_other_targets_is_not_reported(work, monkeypatch):
    peer = {"seconds": 1.0, "targets": 7, "version": "0", "threads": 1, "workers": 0}
    monkeypatch.setattr(train, "run_rechub", lambda work, ctx: peer)
    monkeypatch.setattr(train, "run_ours", lambda task, threads: peer | {"targets": 8})
    with pytest.raises(SystemExit, match="the peer trains on 7 targets, ours on 8"):
        train.against_rechub(work, SCALE)
