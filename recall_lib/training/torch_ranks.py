"""Ranks connected by torch.distributed with Gloo, which needs nothing but PyTorch.

Local ranks meet through a file and listen only on 127.0.0.1. Ranks in Spark executors are the tasks of a barrier stage; each
listens only on the address at which the other machines reach it. torch's own launchers listen on every interface.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, distributed

from recall_lib.process.errors import DataRefused, RecallError
from recall_lib.training.ranks import Work

if TYPE_CHECKING:
    import pyarrow as pa

# If a rank waits longer than this for another, at the start or in a step, the run ends; it can be resumed. Horovod's shutdown
# time is as long. It must cover the time in which rank 0 writes a checkpoint, because the others wait for it.
_TIMEOUT = timedelta(seconds=300)
_LET_IT_SPEAK = 10  # seconds that a rank waits before it reports a lost rank, so that the lost rank's own error comes first
_LARGE = 1 << 20  # elements; smaller tensors are packed into one message
_PIECE = 1 << 26  # bytes of a file in one row of the stage's result


class LostRank(RecallError):
    """Another rank ended, or did not answer in time."""


class Torch:
    """One rank of a Gloo group."""

    def __init__(self, rank: int, size: int, store: distributed.Store, address: str) -> None:
        """Meet the other ranks through the store.

        Args:
            rank: this rank's number, from 0.
            size: the number of ranks.
            store: a store that all ranks can read and write.
            address: the address at which the others reach this rank; it listens only there.
        """
        self.rank, self.size = rank, size
        # torch's default group is not used: it chooses the address itself, and it would stay in an executor's Python worker.
        gloo: Any = distributed.ProcessGroupGloo
        options = gloo._Options()
        options._devices = [gloo.create_device(hostname=address)]
        options._timeout = _TIMEOUT
        store.set_timeout(_TIMEOUT)
        self._group = gloo(store, rank, size, options)

    def leave(self) -> None:
        """End the group's threads: one that still lets go of a tensor when the interpreter is gone would abort the process."""
        del self._group

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Start all dense tensors at once, through host memory. For sparse ones, all ranks' rows go to every rank."""
        groups: dict[tuple[torch.dtype, int], list[Tensor]] = defaultdict(list)
        for i, tensor in enumerate(tensors):
            if not tensor.is_sparse:
                groups[tensor.dtype, i if tensor.numel() >= _LARGE else -1].append(tensor)
        sums = []
        for group in groups.values():
            flat = (torch.cat([tensor.reshape(-1) for tensor in group]) if len(group) > 1 else group[0].reshape(-1)).cpu()
            sums.append((group, flat, self._group.allreduce([flat])))
        for group, flat, work in sums:
            _wait(work)
            flat /= self.size
            for tensor, mean in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                if tensor.data_ptr() != mean.data_ptr():
                    tensor.copy_(mean.view_as(tensor))
        sparse = [tensor for tensor in tensors if tensor.is_sparse]
        if sparse:
            self._average_rows(sparse)

    def _average_rows(self, tensors: Sequence[Tensor]) -> None:
        counts = self._gather(torch.tensor([tensor._nnz() for tensor in tensors]))
        for tensor, rows in zip(tensors, torch.stack(counts, 1).tolist(), strict=True):
            # Gloo gathers parts of equal size only, so each is padded to the longest.
            parts = (self._gather(_padded(part.cpu(), max(rows))) for part in (tensor.indices().T, tensor.values()))
            indices, values = (torch.cat([part[:n] for part, n in zip(of, rows, strict=True)]) for of in parts)
            mean = torch.sparse_coo_tensor(indices.T, values / self.size, tensor.shape, device=tensor.device)
            tensor.copy_(mean.coalesce())

    def _gather(self, mine: Tensor) -> list[Tensor]:
        """The tensors of all ranks, which have the same shape."""
        found = [torch.empty_like(mine) for _ in range(self.size)]
        _wait(self._group.allgather([found], [mine]))
        return found

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the ranks, in float64."""
        total = torch.tensor(values, dtype=torch.float64)
        _wait(self._group.allreduce([total]))
        return total.tolist()

    def broadcast(self, data: bytes) -> bytes:
        """Send the bytes as a tensor, because torch's own broadcast of objects uses pickle."""
        length = torch.tensor([len(data)])
        _wait(self._group.broadcast(length, 0))
        size = int(length)
        if not size:
            return b""
        mine = torch.frombuffer(bytearray(data), dtype=torch.uint8) if self.rank == 0 else torch.empty(size, dtype=torch.uint8)
        _wait(self._group.broadcast(mine, 0))
        return mine.numpy().tobytes()


def _wait(work: distributed.Work) -> None:
    try:
        work.wait()
    except RuntimeError as error:
        raise LostRank(f"another rank ended or did not answer: {error}") from error


def _padded(rows: Tensor, length: int) -> Tensor:
    padded = rows.new_zeros((length, *rows.shape[1:]))
    padded[: len(rows)] = rows
    return padded


@contextmanager
def local_rendezvous(ranks: int) -> Iterator[list[dict[str, str]]]:
    """A file through which the ranks meet; yields the environment variables of each rank."""
    with tempfile.TemporaryDirectory() as folder:
        shared = {"WORLD_SIZE": str(ranks), "RECALL_STORE": f"{folder}/store"}
        yield [shared | {"RANK": str(rank)} for rank in range(ranks)]


def join() -> Torch:
    """The rank that the environment describes."""
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    ranks = Torch(rank, size, distributed.FileStore(os.environ["RECALL_STORE"], size), "127.0.0.1")
    atexit.register(ranks.leave)
    return ranks


def run_in_executors(work: Work, text: str, ranks: int) -> Mapping[str, bytes]:
    """Call `work` on every rank, each a task of a barrier stage; returns the files of rank 0.

    Raises:
        DataRefused: a rank refused the data.
        RecallError: a rank failed or was lost; Spark has ended the others.
    """
    from pyspark.sql import SparkSession

    tasks = SparkSession.active().range(0, ranks, 1, ranks)
    run = partial(_run_in_task, work=work, text=text)
    try:
        rows = tasks.mapInArrow(run, "name string, data binary", barrier=True).collect()
    except Exception as error:
        raise (_failure(str(error)) or error) from error
    files: dict[str, bytearray] = defaultdict(bytearray)
    for name, piece in rows:
        files[name] += piece
    return {name: bytes(data) for name, data in files.items()}


def _failure(said: str) -> RecallError | None:
    """The error of the task that failed first, from the last line of its message; None if Spark's message names no task."""
    task = re.search(r"barrier task ResultTask\(\d+, (\d+)\) finished unsuccessfully\.\s+(.*?)(\n\s*at |\Z)", said, re.DOTALL)
    if not task:
        return None
    last = task[2].strip().splitlines()[-1]
    refused = f"{DataRefused.__module__}.{DataRefused.__name__}: "
    if last.startswith(refused):
        return DataRefused(last.removeprefix(refused))
    lost = "" if "Traceback" in task[2] else "; run it again to resume"
    return RecallError(f"rank {task[1]}: {last}{lost}")


def _run_in_task(batches: Iterable[pa.RecordBatch], work: Work, text: str) -> Iterator[pa.RecordBatch]:
    import pyarrow as pa

    list(batches)  # they are not used, but Spark waits until they are read
    ranks = _join_stage()
    try:
        files = work(ranks, text)
    except LostRank:
        time.sleep(_LET_IT_SPEAK)
        raise
    ranks.leave()  # Spark keeps the process for other tasks
    for name, data in files.items():
        for start in range(0, max(1, len(data)), _PIECE):
            yield pa.RecordBatch.from_pydict({"name": [name], "data": [data[start : start + _PIECE]]})


def _join_stage() -> Torch:
    """Connect this task of a barrier stage as a rank. Rank 0 holds the store, and sends its address and port to the others."""
    from pyspark import BarrierTaskContext

    context = BarrierTaskContext.get()
    rank, hosts = context.partitionId(), [task.address.rsplit(":", 1)[0] for task in context.getTaskInfos()]
    address = _own_address(hosts[rank], hosts)
    own, listener = "", None
    if rank == 0:
        # Our own socket, because torch's would listen on every interface.
        server = socket.create_server((address, 0), family=socket.AF_INET6 if ":" in address else socket.AF_INET)
        own, listener = f"{address} {server.getsockname()[1]}", server.detach()
    host, port = context.allGather(own)[0].split()
    store = distributed.TCPStore(
        host, int(port), len(hosts), rank == 0, _TIMEOUT, wait_for_workers=False, master_listen_fd=listener
    )
    return Torch(rank, len(hosts), store, address)


def _own_address(host: str, hosts: Sequence[str]) -> str:
    """This host's address on the route to the first other host; 127.0.0.1 if all ranks are on one host."""
    others = [other for other in hosts if other != host]
    if not others:
        return "127.0.0.1"
    family, kind, _, _, address = socket.getaddrinfo(others[0].strip("[]"), 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # a datagram socket, so nothing is sent
        name: str = probe.getsockname()[0]
    return name
