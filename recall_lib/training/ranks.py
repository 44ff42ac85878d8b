"""The ranks of a training run: the operations that training needs, and the interface of a library that connects ranks.

Ranks find each other through a rendezvous without authentication. Local ranks use only the loopback interface or a file on this
machine; ranks in Spark executors need a private network. Nothing that comes from the network is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


class Ranks(Protocol):
    """The operations between ranks; every rank makes the same calls in the same order."""

    rank: int
    size: int

    def average(self, tensors: Sequence[Tensor]) -> None:
        """Replace each tensor by its mean over the ranks; sparse tensors must be coalesced, and the means are."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum of each value over the ranks."""

    def broadcast(self, data: bytes) -> bytes:
        """The data that rank 0 called this with."""


class Alone:
    """The only rank, in this process."""

    rank, size = 0, 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """The mean over one rank."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over one rank."""
        return list(values)

    def broadcast(self, data: bytes) -> bytes:
        """The same data."""
        return data


Work = Callable[[Ranks, str], Mapping[str, bytes]]  # the work of one rank: (the rank, a text) -> {file name: content}


class Backend(Protocol):
    """A library that connects the ranks: the module horovod_ranks or torch_ranks."""

    def local_rendezvous(self, ranks: int) -> AbstractContextManager[list[dict[str, str]]]:
        """A rendezvous on this machine; yields the environment variables of each rank."""

    def join(self) -> Ranks:
        """Connect this process, which has such environment variables, with the other ranks."""

    def run_in_executors(self, work: Work, text: str, ranks: int) -> Mapping[str, bytes]:
        """Call `work` on every rank, inside executors of the running Spark session; returns the files of rank 0."""
