"""Starts the ranks of a training run: in this process, in local processes, or in Spark executors."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from recall_lib.config import Training
from recall_lib.process.children import end_with_parent, start
from recall_lib.process.errors import DataRefused, RecallError, UsageError
from recall_lib.training import horovod_ranks, torch_ranks
from recall_lib.training.ranks import Alone, Backend, Ranks
from recall_lib.training.spec import TrainSpec

BACKENDS: dict[str, Backend] = {"horovod": horovod_ranks, "torch": torch_ranks}
_RESULT = "result.json"  # the return value of `loop.train` on rank 0


def backend(training: Training) -> Literal["horovod", "torch"] | None:
    """The name of the library that connects the ranks; None if the only rank is this process.

    Raises:
        UsageError: the launcher is horovod, but Horovod is not installed here.
    """
    if training.launcher == "process":
        return None
    if training.launcher in ("torch", "spark_torch"):
        return "torch"
    if horovod_ranks.built():
        return "horovod"
    if training.launcher == "horovod":
        raise UsageError(
            "training.launcher is horovod, but Horovod is not installed here: "
            "--set training.launcher=torch, or install a C++17 compiler and run `make setup` again"
        )
    return "torch"


def launch(spec: TrainSpec, folder: Path) -> dict[str, Any]:
    """Train with the configured launcher. Every launcher leaves the model's files in `folder`.

    Returns:
        The return value of `loop.train` on rank 0.

    Raises:
        UsageError: see `backend`.
        DataRefused: a rank refused the data.
        RecallError: a rank died; the message has the last lines of its output.
    """
    over = backend(spec.training)
    if over is None:
        from recall_lib.training.loop import train

        return train(spec, Alone(), folder)
    if spec.training.in_executors:
        return _executors(spec, folder, BACKENDS[over])
    return _local_ranks(spec, folder, over)


def _local_ranks(spec: TrainSpec, folder: Path, over: str) -> dict[str, Any]:
    ranks = spec.training.ranks
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (work / "spec.json").write_text(spec.model_dump_json(), encoding="utf-8")
        threads = str(max(1, (os.cpu_count() or 1) // ranks))
        processes: list[subprocess.Popen] = []
        for rank, environment in enumerate(stack.enter_context(BACKENDS[over].local_rendezvous(ranks))):
            # Rank 0 prints to the terminal. The output of the others is kept for the error message if one dies.
            log = None if rank == 0 else stack.enter_context((work / f"{rank}.log").open("wb"))
            command = [sys.executable, "-m", "recall_lib.training.launch", str(work), str(folder), over, str(rank)]
            environment = os.environ | environment | {"OMP_NUM_THREADS": threads}
            processes.append(start(command, env=environment, stdout=log, stderr=log))
        stack.callback(_end, processes)
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                break
            time.sleep(0.05)
        if any(process.returncode for process in processes):
            raise _failure(work, processes)
        result: dict[str, Any] = json.loads((work / _RESULT).read_text(encoding="utf-8"))
        return result


def _end(processes: list[subprocess.Popen]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


def _failure(work: Path, processes: list[subprocess.Popen]) -> RecallError:
    """The error of the rank that failed first; the others failed only because they lost their connection to it."""
    time.sleep(0.5)  # the rank that failed first may still be writing its error
    # A killed rank writes no error file, but it is the cause whatever errors the others report. Ranks that lost it may abort.
    killed = sorted((p.poll() == -signal.SIGABRT, rank) for rank, p in enumerate(processes) if (p.poll() or 0) < 0)
    errors = sorted(work.glob("*.error"), key=lambda path: path.stat().st_mtime_ns)
    if killed or not errors:
        rank = killed[0][1] if killed else next(rank for rank, p in enumerate(processes) if p.returncode)
        log = work / f"{rank}.log"
        tail = log.read_text(errors="replace").splitlines()[-3:] if log.exists() else []
        words = " | ".join(line for line in tail if line.strip()) or "it printed nothing"
        return RecallError(f"rank {rank} ended with code {processes[rank].returncode}: {words}; run it again to resume")
    error = json.loads(errors[0].read_text(encoding="utf-8"))
    return (DataRefused if error["refused"] else RecallError)(error["message"])


def _rank_main(work: Path, folder: Path, over: str, rank: str) -> None:
    """One local rank: read the spec from the launcher's folder, and write the result or the error into it."""
    end_with_parent(lambda: os.kill(os.getpid(), signal.SIGKILL))
    import torch

    from recall_lib.training.loop import train

    spec = TrainSpec.model_validate_json((work / "spec.json").read_text(encoding="utf-8"))
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        facts = train(spec, BACKENDS[over].join(), folder)
    except Exception as error:
        refused = isinstance(error, DataRefused)
        message = str(error) if refused else f"rank {rank}: {type(error).__name__}: {error}"
        (work / f"{rank}.error").write_text(json.dumps({"refused": refused, "message": message}), encoding="utf-8")
        raise SystemExit(1) from error
    if rank == "0":
        (work / _RESULT).write_text(json.dumps(facts), encoding="utf-8")


def _executors(spec: TrainSpec, folder: Path, over: Backend) -> dict[str, Any]:
    files = dict(over.run_in_executors(_train_in_executor, spec.model_dump_json(), spec.training.ranks))
    facts: dict[str, Any] = json.loads(files.pop(_RESULT))
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return facts


def _train_in_executor(ranks: Ranks, spec: str) -> dict[str, bytes]:
    """Train on one rank, and return rank 0's files as bytes, because an executor cannot write to the driver's disk."""
    from recall_lib.training.loop import train

    with tempfile.TemporaryDirectory() as folder:
        facts = train(TrainSpec.model_validate_json(spec), ranks, Path(folder))
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    return files | {_RESULT: json.dumps(facts).encode()} if ranks.rank == 0 else {}


if __name__ == "__main__":
    _rank_main(Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:])
