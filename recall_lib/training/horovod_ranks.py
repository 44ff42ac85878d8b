"""Ranks connected by Horovod; no other module imports Horovod.

The local rendezvous listens only on 127.0.0.1. Elastic mode and `horovod.run(func)` are not used: both unpickle data from the
network.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from recall_lib.training.ranks import Work

# Seconds. If a rank waits longer than this for another, at the start or in a step, the run ends; it can be resumed.
_ENVIRONMENT = {
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "120",
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "300",
}


def built() -> bool:
    """Whether Horovod is installed, with its part for PyTorch."""
    package = find_spec("horovod")
    places = (package.submodule_search_locations if package else None) or ()
    return any(next(Path(place, "torch").glob("mpi_lib*.so"), None) for place in places)


class Horovod:
    """The ranks of the Horovod run that this process is part of."""

    def __init__(self) -> None:
        """Join the run that the environment describes."""
        import horovod.torch as hvd

        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Start all tensors at once, so that Horovod packs small ones. For sparse ones, all ranks' rows go to every rank."""
        average = self._hvd.Average
        rows, handles = [], []
        for i, tensor in enumerate(tensors):
            if tensor.is_sparse:
                rows.append((tensor, self._hvd.sparse_allreduce_async(tensor, name=f"average.{i}", op=average)))
            else:
                handles.append(self._hvd.allreduce_async_(tensor, name=f"average.{i}", op=average))
        for handle in handles:
            self._hvd.synchronize(handle)
        for tensor, mean in rows:
            tensor.copy_(mean().coalesce())

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the ranks, in float64."""
        total = self._hvd.allreduce(torch.tensor(values, dtype=torch.float64), name="sum", op=self._hvd.Sum)
        return total.tolist()

    def broadcast(self, data: bytes) -> bytes:
        """Send the bytes as a tensor, because Horovod's own broadcast of objects uses pickle."""
        size = int(self._hvd.broadcast(torch.tensor([len(data)]), 0, name="size"))
        if not size:
            return b""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
        return self._hvd.broadcast(mine, 0, name="data").numpy().tobytes()


@contextmanager
def local_rendezvous(ranks: int) -> Iterator[list[dict[str, str]]]:
    """A rendezvous on 127.0.0.1; yields the environment variables of each rank."""
    from horovod.runner.common.util.hosts import get_host_assignments, parse_hosts
    from horovod.runner.gloo_run import create_run_env_vars, create_slot_env_vars
    from horovod.runner.http.http_server import RendezvousHandler, RendezvousHTTPServer

    slots = get_host_assignments(parse_hosts(f"localhost:{ranks}"), ranks)
    server = RendezvousHTTPServer(("127.0.0.1", 0), RendezvousHandler, False)
    server.init(slots)
    thread = threading.Thread(target=server.serve_forever, name="rendezvous", daemon=True)
    thread.start()
    try:
        run = create_run_env_vars("127.0.0.1", ["lo"], str(server.server_address[1]))
        yield [_ENVIRONMENT | run | create_slot_env_vars(slot) for slot in slots]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def join() -> Horovod:
    """The rank that the environment describes."""
    return Horovod()


def run_in_executors(work: Work, text: str, ranks: int) -> Mapping[str, bytes]:
    """Call `work` on every rank, each in a process started by a Spark task; returns the files of rank 0."""
    import horovod.spark

    # The executors' Python, as Spark knows it. By default Horovod uses the driver's path, which may not exist there.
    python = os.environ["PYSPARK_PYTHON"]
    found = horovod.spark.run(_run, args=(work, text), num_proc=ranks, env=dict(_ENVIRONMENT), verbose=0, executable=python)
    files: Mapping[str, bytes] = found[0]
    return files


def _run(work: Work, text: str) -> Mapping[str, bytes]:
    return work(join(), text)
