"""The ranks of a training run: what training asks of them, and what a library must offer to connect them.

Ranks find each other through a rendezvous that authenticates nobody: local ones meet on this machine alone, those in Spark
executors need a private network. Nothing that the network sends is unpickled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from torch import Tensor


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
    """One process, nothing to connect."""

    rank, size = 0, 1

    def average(self, tensors: Sequence[Tensor]) -> None:
        """The mean over one rank."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sum over one rank."""
        return list(values)

    def broadcast(self, data: bytes) -> bytes:
        """Rank 0's own."""
        return data


Work = Callable[[Ranks, str], Mapping[str, bytes]]  # of one rank: a rank and a text in, files by name out


class Backend(Protocol):
    """The library that connects the ranks: the module horovod_ranks or torch_ranks."""

    def local_rendezvous(self, ranks: int) -> AbstractContextManager[list[dict[str, str]]]:
        """A rendezvous on this machine; gives the environment of each rank."""

    def join(self) -> Ranks:
        """In a process with such an environment: meet the others."""

    def run_in_executors(self, work: Work, text: str, ranks: int) -> Mapping[str, bytes]:
        """Call `work` on every rank, inside executors of the running Spark session; gives the files of rank 0."""
