"""What every benchmark shares: rows, peers in an environment of their own, best of several runs, peak memory."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "build" / "bench"
PEERS_PYTHON = FOLDER / "venv" / "bin" / "python"
CORES = 2  # of the machine, for ours and for every peer
GIB = 1 << 30


@dataclass(frozen=True)
class Row:
    """One measure.

    Attributes:
        ours, peer: in `unit`; peer is None where there is nothing to compare with.
        ratio: above 1 ours is better; None without a peer.
    """

    name: str
    ours: float | None
    peer: float | None
    ratio: float | None
    unit: str
    note: str


def faster(name: str, ours: float, peer: float, unit: str, note: str) -> Row:
    """A row of two speeds: more is better."""
    return Row(name, ours, peer, ours / peer, unit, note)


def smaller(name: str, ours: float, peer: float, unit: str, note: str) -> Row:
    """A row of two sizes: less is better."""
    return Row(name, ours, peer, peer / ours, unit, note)


def run_peer(script: str, task: dict[str, Any], repeats: int) -> dict[str, Any]:
    """What a script of peers/ prints for a task, of the fastest of several runs, each in a process of its own.

    Raises:
        SystemExit: there is no environment for peers, or the script failed.
    """
    if not PEERS_PYTHON.exists():
        raise SystemExit(f"bench: no {PEERS_PYTHON}: run `make bench`, which sets it up")
    command = [str(PEERS_PYTHON), str(Path(__file__).parent / "peers" / script), json.dumps(task)]
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    said = []
    for _ in range(repeats):
        done = subprocess.run(command, env=env | {"POLARS_MAX_THREADS": str(CORES)}, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"bench: {script} failed: {done.stderr.strip()[-2000:]}")
        said.append(json.loads(done.stdout.splitlines()[-1]))
    return min(said, key=lambda result: result["seconds"])


class PeakMemory:
    """Resident memory of this process and all below it while the block runs, sampled five times a second.

    Attributes:
        tree: bytes of all of them at the worst moment; pages that forked Python workers share count once for each.
        largest: bytes of the largest process at its worst moment.
        name: of that process.
    """

    def __init__(self) -> None:
        self.tree = self.largest = 0
        self.name = ""
        self._done = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._watcher.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watcher.join()

    def _watch(self) -> None:
        root = psutil.Process()
        while True:
            total = 0
            for process in [root, *root.children(recursive=True)]:
                try:
                    size = process.memory_info().rss
                    total += size
                    if size > self.largest:
                        self.largest, self.name = size, process.name()
                except psutil.NoSuchProcess:  # ended since it was listed
                    continue
            self.tree = max(self.tree, total)
            if self._done.wait(0.2):
                return

    def __str__(self) -> str:
        return f"process tree {self.tree / GIB:.2f} GiB, largest process {self.largest / GIB:.2f} GiB ({self.name})"
