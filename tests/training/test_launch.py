import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recall_lib.errors import DataRefused, RecallError
from recall_lib.io import locks
from recall_lib.model import checkpoint
from recall_lib.training.launch import launch
from recall_lib.training.ranks import local_rendezvous
from recall_lib.training.spec import FirstWeights, TrainSpec
from tests.training.synthetic import VALUES, make_spec, sequences, write_runs, write_vocab

ROOT = Path(__file__).resolve().parents[2]
FILES = {"log.jsonl", "model.json", "model.safetensors"}


def spec_of(tmp_path: Path, **training: Any) -> TrainSpec:
    files = [write_runs(tmp_path / f"{i}.parquet", sequences(30, 8, ordered=True, seed=i)) for i in range(4)]
    held_out = [
        write_runs(tmp_path / f"held-{i}.parquet", sequences(15, 6, ordered=True, seed=i), held_out=True) for i in (8, 9)
    ]
    return make_spec(files, held_out, training=training)


def launched(spec: TrainSpec, folder: Path) -> tuple[dict[str, Any], list[float]]:
    folder.mkdir()
    facts = launch(spec, folder)
    names = {path.name for path in folder.iterdir()}
    assert names >= FILES
    assert [name.startswith("events.out.tfevents") for name in names - FILES] == [True]
    assert facts["version"] == checkpoint.load(folder)[1]["version"]
    records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return facts, [record["loss"] for record in records if "loss" in record]


ROWS = {"loss": "sampled_softmax", "num_negatives": 10, "gradients": "rows", "clip_norm": 1.0}


@pytest.mark.parametrize("training", [{}, ROWS, {"unit": "run"}])
def test_two_local_ranks_train_like_one_process(tmp_path: Path, training: dict[str, Any]) -> None:
    # One rank with twice the batch: the same targets a step.
    training = training | {"learning_rate": 0.01}
    alone, losses = launched(spec_of(tmp_path, batch_size=128, **training), tmp_path / "alone")
    both, shared = launched(spec_of(tmp_path, batch_size=64, launcher="horovod", ranks=2, **training), tmp_path / "both")
    assert alone.keys() == both.keys() == {"version", "targets", "epochs", "steps", "seconds", "validation"}
    assert all(alone[name] == both[name] for name in ("targets", "epochs", "steps"))
    # Which targets meet in a step differs, what an epoch teaches does not.
    assert np.reshape(losses, (4, 7)).mean(axis=1) == pytest.approx(np.reshape(shared, (4, 7)).mean(axis=1), rel=0.1)
    assert both["validation"]["users"] == alone["validation"]["users"] == 30
    assert both["validation"]["ndcg@10"] == pytest.approx(alone["validation"]["ndcg@10"], abs=0.2)


WORKER = """
    import json, sys
    from pathlib import Path
    import torch
    from recall_lib.model import checkpoint
    from recall_lib.training.loop import Run
    from recall_lib.training.ranks import Horovod
    from recall_lib.training.spec import TrainSpec

    ranks = Horovod()
    folder = Path(sys.argv[1]) / str(ranks.rank)
    folder.mkdir()
    run = Run(TrainSpec.model_validate_json(Path(sys.argv[2]).read_text()), ranks, folder)
    run.train_epoch()
    (folder / "weights").write_bytes(checkpoint.pack(dict(run.model.state_dict()), {"sum": ranks.sum([1.0, ranks.rank])}))
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


@pytest.mark.parametrize(("gradients", "warm"), [("dense", False), ("rows", False), ("dense", True)])
def test_ranks_have_the_same_weights(tmp_path: Path, gradients: str, warm: bool) -> None:
    spec = tmp_path / "spec.json"
    training = {"loss": "sampled_softmax", "launcher": "horovod", "ranks": 2, "gradients": gradients, "learning_rate": 0.001}
    wanted = spec_of(tmp_path, **training)
    if warm:
        facts, _ = launched(spec_of(tmp_path, epochs=1), tmp_path / "before")
        vocab, folder = write_vocab(tmp_path / "vocab", VALUES), f"file://{tmp_path}/before"
        start = FirstWeights(dt="2024-03-03", version=facts["version"], folder=folder, vocab=vocab)
        wanted = wanted.model_copy(update={"first": start, "vocab_files": vocab})
    spec.write_text(wanted.model_dump_json())
    out = tmp_path / "out"
    out.mkdir()
    with local_rendezvous(2) as environments:
        command = [sys.executable, "-c", textwrap.dedent(WORKER), str(out), str(spec)]
        ranks = [subprocess.Popen(command, env=os.environ | own | {"OMP_NUM_THREADS": "1"}, cwd=ROOT) for own in environments]
        assert [rank.wait(timeout=200) for rank in ranks] == [0, 0]
    (first, facts), (second, _) = (checkpoint.unpack((out / str(rank) / "weights").read_bytes()) for rank in range(2))
    assert facts == {"sum": [2.0, 1.0]}
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    if warm:
        # 7 small steps from the earlier model's weights; drawn ones are farther away.
        before = checkpoint.load(tmp_path / "before")[0].state_dict()["item_table.weight"]
        assert (first["item_table.weight"] - before).abs().max() < 0.02


def test_the_rendezvous_listens_on_the_loopback_alone() -> None:
    with local_rendezvous(2) as environments:
        assert {env["HOROVOD_GLOO_RENDEZVOUS_ADDR"] for env in environments} == {"127.0.0.1"}
        port = int(environments[0]["HOROVOD_GLOO_RENDEZVOUS_PORT"])
        listening = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        addresses = [row[1].split(":")[0] for row in listening if row[3] == "0A" and int(row[1].split(":")[1], 16) == port]
    assert addresses == ["0100007F"]


def test_a_refusal_in_a_rank_is_a_refusal_here(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, launcher="horovod", ranks=2)
    wrong = [file.model_copy(update={"targets": file.targets + 1}) for file in spec.train]
    with pytest.raises(DataRefused, match="fewer targets"):
        launch(spec.model_copy(update={"train": wrong}), tmp_path)


def test_a_rank_that_dies_ends_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Imported by every Python process before its own code: rank 1 kills itself once it has met the other.
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent("""
        import os, signal, sys, threading, time

        def die_at_work():
            while not getattr(sys.modules.get("horovod.torch"), "is_initialized", bool)():
                time.sleep(0.1)
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)

        if os.environ.get("HOROVOD_RANK") == "1":
            threading.Thread(target=die_at_work, daemon=True).start()
        """)
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{ROOT}")
    with pytest.raises(RecallError, match="rank 1 ended with code -9"):
        launch(spec_of(tmp_path, launcher="horovod", ranks=2, epochs=100_000), tmp_path)


DRIVER = """
    import sys
    from pathlib import Path
    from recall_lib.training.launch import launch
    from recall_lib.training.spec import TrainSpec

    launch(TrainSpec.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
"""


def test_ranks_end_with_a_driver_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "spec.json").write_text(spec_of(tmp_path, launcher="horovod", ranks=2, epochs=100_000).model_dump_json())
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


SPARK = """
    import sys
    from pathlib import Path
    from recall_lib.config import Spark
    from recall_lib.session import start
    from recall_lib.training.launch import launch
    from recall_lib.training.spec import TrainSpec
    import json

    session = start(Spark(master="local-cluster[2,1,1024]"), "test")
    facts = launch(TrainSpec.model_validate_json(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
    session.stop()
    (Path(sys.argv[2]) / "facts").write_text(json.dumps(facts))
"""


def test_two_ranks_in_executors(tmp_path: Path) -> None:
    spec = spec_of(tmp_path, launcher="spark", ranks=2, epochs=2)
    (tmp_path / "spec.json").write_text(spec.model_dump_json())
    out = tmp_path / "out"
    out.mkdir()
    command = [sys.executable, "-c", textwrap.dedent(SPARK), str(tmp_path / "spec.json"), str(out)]
    # A session of its own: the tests' shared one runs in this process.
    subprocess.run(command, check=True, timeout=400, env=os.environ | {"PYTHONPATH": str(ROOT)})
    facts = json.loads((out / "facts").read_text())
    assert {path.name for path in out.iterdir()} >= FILES
    assert checkpoint.load(out)[1]["version"] == facts["version"]
    assert facts.keys() == {"version", "targets", "epochs", "steps", "seconds", "validation"}
    assert facts["validation"]["users"] == 30
