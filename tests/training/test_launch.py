import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from recall_lib.config import Samples, Training
from recall_lib.model import checkpoint
from recall_lib.process.errors import DataRefused, RecallError, UsageError
from recall_lib.store import locks
from recall_lib.training import horovod_ranks
from recall_lib.training.launch import BACKENDS, backend, launch
from recall_lib.training.spec import FirstWeights, TrainSpec
from tests.conftest import ROOT, Cluster
from tests.training.synthetic import VALUES, make_spec, sequences, write_runs, write_vocab

FILES = {"log.jsonl", "model.json", "model.safetensors"}
needs_horovod = pytest.mark.skipif(not horovod_ranks.built(), reason="Horovod is not installed")
ON_HOROVOD = pytest.param("horovod", marks=needs_horovod)
Weights = dict[str, torch.Tensor]


@pytest.mark.parametrize(
    ("launcher", "with_horovod", "without"),
    [
        ("process", None, None),
        ("local", "horovod", "torch"),
        ("spark", "horovod", "torch"),
        ("torch", "torch", "torch"),
        ("spark_torch", "torch", "torch"),
    ],
)
def test_what_connects_the_ranks(monkeypatch: pytest.MonkeyPatch, launcher: Any, with_horovod: str, without: str) -> None:
    for built, expected in ((True, with_horovod), (False, without)):
        monkeypatch.setattr(horovod_ranks, "built", lambda built=built: built)
        assert backend(Training(launcher=launcher)) == expected


def test_horovod_that_is_missing_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(horovod_ranks, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"training\.launcher=torch"):
        backend(Training(launcher="horovod"))


TARGETS = 4 * 30 * 7  # of the files of `spec_of`


def spec_of(tmp_path: Path, **training: Any) -> TrainSpec:
    files = [write_runs(tmp_path / f"{i}.parquet", sequences(30, 8, ordered=True, seed=i), negatives=10) for i in range(4)]
    held_out = [
        write_runs(tmp_path / f"held-{i}.parquet", sequences(15, 6, ordered=True, seed=i), held_out=True) for i in (8, 9)
    ]
    return make_spec(files, held_out, training=training, samples=Samples(window_size=4, negatives_per_positive=10))


def launched(spec: TrainSpec, folder: Path) -> tuple[dict[str, Any], list[float]]:
    folder.mkdir()
    facts = launch(spec, folder)
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES
    assert [name.startswith("events.out.tfevents") for name in names - FILES] == [True]
    assert facts["version"] == checkpoint.load(folder)[1]["version"]
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return facts, [record["loss"] for record in records if "loss" in record]


# Each target has its own negatives, whichever rank trains on it.
ROWS = {"loss": "sampled_softmax", "negatives": "samples", "gradients": "rows", "clip_norm": 1.0}


# Windows are the same on any rank, so only the order of sums differs. Each rank cuts runs at random, which changes histories.
@pytest.mark.parametrize(("training", "tolerance"), [(ROWS, 1e-5), ({"unit": "run"}, 1e-2)], ids=["window", "run"])
def test_two_local_ranks_train_like_one_process(tmp_path: Path, training: dict[str, Any], tolerance: float) -> None:
    """Each step sees all targets, half of them on each of the two ranks."""
    training = training | {"learning_rate": 0.05, "epochs": 8}
    alone, losses = launched(spec_of(tmp_path, batch_size=TARGETS, **training), tmp_path / "alone")
    halves = {"batch_size": TARGETS // 2, "launcher": "local", "ranks": 2}
    both, shared = launched(spec_of(tmp_path, **training | halves), tmp_path / "both")
    assert alone.keys() == both.keys() == {"version", "targets", "epochs", "steps", "seconds", "validation"}
    assert [(facts["targets"], facts["epochs"], facts["steps"]) for facts in (alone, both)] == [(TARGETS, 8, 8)] * 2
    assert losses[-1] < 0.9 * losses[0], losses
    assert shared == pytest.approx(losses, rel=tolerance)
    assert both["validation"]["users"] == alone["validation"]["users"] == 30
    assert both["validation"]["ndcg@10"] == pytest.approx(alone["validation"]["ndcg@10"], abs=5 * tolerance)


WORKER = """
    import json, os, sys
    from pathlib import Path
    import torch
    from recall_lib.model import checkpoint
    from recall_lib.training.launch import BACKENDS
    from recall_lib.training.loop import Run
    from recall_lib.training.spec import TrainSpec

    folder, over = Path(sys.argv[1]), sys.argv[2]
    ranks = BACKENDS[over].join()
    mine = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
    sockets = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    listening = [row[1] for row in sockets if row[3] == "0A" and f"socket:[{row[9]}]" in mine]
    assert bool(listening) == (over == "torch")  # Horovod's ranks have stopped to listen once they have met
    assert all(address.startswith("0100007F:") for address in listening), listening
    for spec in sorted(folder.glob("*.json")):
        own = folder / spec.stem / str(ranks.rank)
        own.mkdir(parents=True)
        run = Run(TrainSpec.model_validate_json(spec.read_text()), ranks, own)
        run.train_epoch()
        run.stream.close()
        summed = ranks.sum([1.0, ranks.rank])
        (own / "weights").write_bytes(checkpoint.pack(dict(run.model.state_dict()), {"sum": summed}))
    assert ranks.broadcast(b"rank %d" % ranks.rank) == b"rank 0"
    assert ranks.broadcast(b"") == b""
    rows = [[1], [1, 3]][ranks.rank]  # of the first table; of the second one rank has none at all
    value = 2.0 + 2 * ranks.rank
    tables = [torch.sparse_coo_tensor([ids], torch.full((len(ids), 2), value), (5, 2)).coalesce() for ids in (rows, rows[1:])]
    dense = torch.tensor([float(ranks.rank)])
    ranks.average([tables[0], dense, tables[1]])
    assert [table.is_coalesced() for table in tables] == [True, True]
    assert [table.to_dense()[:, 0].tolist() for table in tables] == [[0, 3, 0, 2, 0], [0, 0, 0, 2, 0]]
    assert dense == 0.5
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, dict[str, list[Weights]]]]:
    """Two local ranks that have run WORKER: their folder, and of each spec each rank's weights; `warm` starts from before/."""

    @cache
    def on_two_ranks(over: str) -> tuple[Path, dict[str, list[Weights]]]:
        folder = tmp_path_factory.mktemp(over)
        training = {"loss": "sampled_softmax", "launcher": over, "ranks": 2, "learning_rate": 0.001}
        specs = {gradients: spec_of(folder, gradients=gradients, **training) for gradients in ("dense", "rows")}
        facts, _ = launched(spec_of(folder, epochs=1), folder / "before")
        vocab, before = write_vocab(folder / "vocab", VALUES), f"file://{folder}/before"
        first = FirstWeights(dt="2024-03-03", version=facts["version"], folder=before, vocab=vocab)
        specs["warm"] = specs["dense"].model_copy(update={"first": first, "vocab_files": vocab})
        for name, spec in specs.items():
            (folder / f"{name}.json").write_text(spec.model_dump_json())
        command = [sys.executable, "-c", textwrap.dedent(WORKER), str(folder), over]
        with BACKENDS[over].local_rendezvous(2) as environments:
            ranks = [
                subprocess.Popen(command, env=os.environ | own | {"OMP_NUM_THREADS": "1"}, cwd=ROOT) for own in environments
            ]
            assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
        found: dict[str, list[Weights]] = {}
        for name in specs:
            ends = [checkpoint.unpack((folder / name / str(rank) / "weights").read_bytes()) for rank in range(2)]
            assert [facts for _, facts in ends] == [{"sum": [2.0, 1.0]}] * 2
            found[name] = [weights for weights, _ in ends]
        return folder, found

    return on_two_ranks


def assert_equal(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, value in found.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("spec", ["dense", "rows", "warm"])
@pytest.mark.parametrize("over", [ON_HOROVOD, "torch"])
def test_ranks_have_the_same_weights(trained: Any, over: str, spec: str) -> None:
    first, second = trained(over)[1][spec]
    assert_equal(first, second)


@needs_horovod
@pytest.mark.parametrize("spec", ["dense", "rows", "warm"])
def test_two_ranks_have_the_same_weights_over_horovod_and_torch(trained: Any, spec: str) -> None:
    # A sum of two has one order only; of more than two each library has its own.
    assert_equal(trained("horovod")[1][spec][0], trained("torch")[1][spec][0])


def test_ranks_start_from_an_earlier_model(trained: Any) -> None:
    folder, found = trained("torch")
    # 7 small steps from the earlier model's weights; drawn ones are farther away.
    before = checkpoint.load(folder / "before")[0].state_dict()["item_table.weight"]
    distances = {spec: float((found[spec][0]["item_table.weight"] - before).abs().max()) for spec in ("dense", "warm")}
    assert distances["warm"] < 0.02 < distances["dense"]


@needs_horovod
def test_horovods_rendezvous_listens_on_the_loopback_alone() -> None:
    with horovod_ranks.local_rendezvous(2) as environments:
        assert {env["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for env in environments} == {"127.0.0.1"}
        port = int(environments[0]["HOROVOD_GLOO_RENDEZVOUS_PORT"])
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        addresses = [row[1].split(":")[0] for row in listening if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    assert addresses == ["0100007F"]


@pytest.mark.parametrize("over", [ON_HOROVOD, "torch"])
def test_a_refusal_in_a_rank_is_a_refusal_here(tmp_path: Path, over: str) -> None:
    spec = spec_of(tmp_path, launcher=over, ranks=2)
    wrong = [file.model_copy(update={"targets": file.targets + 1}) for file in spec.train]
    with pytest.raises(DataRefused, match="fewer targets"):
        launch(spec.model_copy(update={"train": wrong}), tmp_path)


@pytest.mark.parametrize("over", [ON_HOROVOD, "torch"])
def test_a_rank_that_dies_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, over: str) -> None:
    # Imported by every Python process before its own code: rank 1 kills itself once rank 0 trains.
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, signal, threading, time
        from pathlib import Path

        def die_at_work():
            log = Path(__file__).with_name("log.jsonl")
            while not log.exists() or not log.stat().st_size:
                time.sleep(0.1)
            os.kill(os.getpid(), signal.SIGKILL)

        if "1" in (os.environ.get("HOROVOD_RANK"), os.environ.get("RANK")):
            threading.Thread(target=die_at_work, daemon=True).start()
        """)
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    with pytest.raises(RecallError, match="rank 1 ended with code -9"):
        launch(spec_of(tmp_path, launcher=over, ranks=2, epochs=100_000), tmp_path)


DRIVER = """
    import sys
    from pathlib import Path
    from recall_lib.training.launch import launch
    from recall_lib.training.spec import TrainSpec

    launch(TrainSpec.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def test_ranks_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(spec_of(tmp_path, launcher="local", ranks=2, epochs=100_000).model_dump_json())
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), str(tmp_path / "spec.json"), str(tmp_path)]
    driver = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(ROOT)})
    deadline = time.monotonic() + 120
    while not (tmp_path / "log.jsonl").exists() or not (tmp_path / "log.jsonl").stat().st_size:  # until it trains
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    ranks = [int(pid) for pid in Path(f"/proc/{driver.pid}/task/{driver.pid}/children").read_text().split()]
    assert len(ranks) == 2
    driver.kill()
    driver.wait()
    deadline = time.monotonic() + 20
    while (left := [rank for rank in ranks if locks._start_of(rank) is not None]) and time.monotonic() < deadline:
        time.sleep(0.1)
    for rank in left:
        os.kill(rank, signal.SIGKILL)
    assert left == [], "a rank outlived the driver"


LAUNCH = """
    import json, sys
    from pathlib import Path
    from recall_lib.training.launch import launch
    from recall_lib.training.spec import TrainSpec

    facts = launch(TrainSpec.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    Path(sys.argv[2], "facts").write_text(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def in_executors(spark: Any, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], dict[str, Any]]:
    """What a training on two ranks in executors says, trained once by each launcher."""

    @cache
    def facts_of(launcher: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp(launcher)
        spec = spec_of(folder, launcher=launcher, ranks=2, epochs=2)
        if launcher == "spark_torch":
            return launched(spec, folder / "out")[0]
        (folder / "out").mkdir()
        (folder / "spec.json").write_text(spec.model_dump_json())
        cluster.run(LAUNCH, str(folder / "spec.json"), str(folder / "out"))
        facts: dict[str, Any] = json.loads((folder / "out/facts").read_text())
        assert {path.name for path in (folder / "out").iterdir()} >= FILES
        assert checkpoint.load(folder / "out")[1]["version"] == facts["version"]
        return facts

    return facts_of


@pytest.mark.parametrize("launcher", [pytest.param("spark", marks=needs_horovod), "spark_torch"])
def test_two_ranks_in_executors(in_executors: Any, launcher: str) -> None:
    facts = in_executors(launcher)
    assert facts.keys() == {"version", "targets", "epochs", "steps", "seconds", "validation"}
    assert facts["validation"]["users"] == 30


@needs_horovod
def test_two_ranks_in_executors_make_one_model_over_horovod_and_torch(in_executors: Any) -> None:
    assert in_executors("spark")["version"] == in_executors("spark_torch")["version"]
