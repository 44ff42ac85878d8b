"""The ranks of a training run, and the one place that imports Horovod.

Ranks find each other through a rendezvous that authenticates nobody: the local one listens on 127.0.0.1 alone, that of
Spark executors needs a private network. No elastic mode and no `horovod.run(func)`: both unpickle what the network sends.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

# Seconds. A rank that waits longer for another, at the start or in a step, ends the run; its checkpoint is taken up again.
_ENVIRONMENT = {
    "HOROVOD_GLOO_TIMEOUT_SECONDS": "120",
    "HOROVOD_STALL_CHECK_TIME_SECONDS": "60",
    "HOROVOD_STALL_SHUTDOWN_TIME_SECONDS": "300",
}


class Ranks(Protocol):
    """What training asks of the other ranks; every rank makes the same calls in the same order."""

    rank: int
    size: int

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks; sparse ones are coalesced, and stay so."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value's sum over the ranks."""

    def broadcast(self, data: bytes) -> bytes:
        """What rank 0 was called with."""


class Alone:
    """One process, no Horovod."""

    rank, size = 0, 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """The mean over one rank."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over one rank."""
        return list(values)

    def broadcast(self, data: bytes) -> bytes:
        """Rank 0's own."""
        return data


class Horovod:
    """The ranks of the Horovod run that this process is part of."""

    def __init__(self) -> None:
        """Join the run that the environment describes."""
        import horovod.torch as hvd

        hvd.init()
        self._hvd = hvd
        self.rank, self.size = hvd.rank(), hvd.size()

    def average(self, tensors: Sequence[Tensor]) -> None:
        """All in flight at once: Horovod packs small ones together. Of sparse ones every rank gets every rank's rows."""
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
        """In float64."""
        total = self._hvd.allreduce(torch.tensor(values, dtype=torch.float64), name="sum", op=self._hvd.Sum)
        return total.tolist()

    def broadcast(self, data: bytes) -> bytes:
        """As numbers: Horovod's own broadcast of objects would be unpickled."""
        size = int(self._hvd.broadcast(torch.tensor([len(data)]), 0, name="size"))
        if not size:
            return b""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
        return self._hvd.broadcast(mine, 0, name="data").numpy().tobytes()


@contextmanager
def local_rendezvous(ranks: int) -> Iterator[list[dict[str, str]]]:
    """A rendezvous on 127.0.0.1; gives the environment of each rank."""
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


def run_in_executors(function: Callable[..., Any], arguments: tuple[Any, ...], ranks: int) -> list[Any]:
    """Call a function on every rank, inside executors of the running Spark session; gives their results by rank."""
    import horovod.spark

    # The executors' Python, as Spark was told of it: Horovod would look there for the driver's, which may be another's path.
    python = os.environ["PYSPARK_PYTHON"]
    return horovod.spark.run(function, args=arguments, num_proc=ranks, env=dict(_ENVIRONMENT), verbose=0, executable=python)
