"""Which rank reads which files, in how many steps: arithmetic on the number of targets in each file.

A rank reads whole files. All ranks take the same number of steps. Every target is used once per epoch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recall_lib.process.errors import DataRefused
from recall_lib.samples.ragged import Ints


def assign(targets: Sequence[int], ranks: int) -> list[list[int]]:
    """Distribute files to ranks: the largest remaining file goes to the rank with the fewest targets so far.

    Args:
        targets: number of targets of each file; files without targets are left out.
        ranks: number of ranks.

    Returns:
        For each rank, the positions of its files in `targets`, ascending; a rank may have none.
    """
    shards: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for file in sorted(range(len(targets)), key=lambda file: (-targets[file], file)):
        if targets[file]:
            rank = loads.index(min(loads))
            shards[rank].append(file)
            loads[rank] += targets[file]
    return [sorted(shard) for shard in shards]


def batch_sizes(targets: int, steps: int) -> Ints:
    """Number of targets of each step of a rank, [steps]: the numbers differ by at most 1 and sum to `targets`."""
    return np.diff(np.arange(steps + 1) * targets // steps)


def plan(targets: Sequence[int], ranks: int, batch_size: int) -> tuple[list[list[int]], Ints]:
    """Files and batch sizes of every rank, for one epoch.

    Args:
        targets: number of targets of each file.
        ranks: number of ranks.
        batch_size: the largest batch of any rank, in targets.

    Returns:
        (files of each rank, batch sizes [ranks, steps]).

    Raises:
        DataRefused: there are no targets, or too few files or targets for the ranks.
    """
    if not sum(targets):
        raise DataRefused("the training split has no target: is the log empty, or are the vocabularies' min_count too high?")
    shards = assign(targets, ranks)
    loads = [sum(targets[file] for file in shard) for shard in shards]
    steps = -(-max(loads) // batch_size)
    if min(loads) < steps:
        raise DataRefused(
            f"{ranks} ranks cannot share {sum(targets)} targets in {sum(map(bool, targets))} files evenly (targets per rank: "
            f"{loads}): run `recall samples` with this training.ranks, or use fewer ranks"
        )
    return shards, np.stack([batch_sizes(load, steps) for load in loads])
