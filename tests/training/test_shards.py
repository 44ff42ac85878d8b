from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recall_lib.process.errors import DataRefused
from recall_lib.training.shards import assign, batch_sizes, plan


@pytest.mark.parametrize(("ranks", "files", "batch_size"), list(product([1, 2, 3, 8], [8, 13, 64], [7, 64, 100_000])))
def test_every_target_once_in_equal_steps(ranks: int, files: int, batch_size: int) -> None:
    targets = np.random.default_rng(files).integers(900, 1100, files).tolist()
    shards, sizes = plan(targets, ranks, batch_size)
    assert sorted(file for shard in shards for file in shard) == list(range(files))
    assert sizes.shape[0] == ranks
    for shard, own in zip(shards, sizes, strict=True):
        assert own.sum() == sum(targets[file] for file in shard)
        assert own.max() - own.min() <= 1
        assert 1 <= own.min() <= own.max() <= batch_size
    assert sizes.shape[1] == -(-max(sum(targets[f] for f in shard) for shard in shards) // batch_size)


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=40), st.integers(1, 9))
def test_shards_are_disjoint_and_balanced(targets: list[int], ranks: int) -> None:
    shards = assign(targets, ranks)
    assert sorted(file for shard in shards for file in shard) == [i for i, n in enumerate(targets) if n]
    loads = [sum(targets[file] for file in shard) for shard in shards]
    assert max(loads) - min(loads) <= max(targets)  # no rank waits for more than one file of another


@given(st.integers(1, 500), st.integers(1, 500))
def test_batches_are_nearly_equal(targets: int, steps: int) -> None:
    sizes = batch_sizes(targets, steps)
    assert (len(sizes), sizes.sum()) == (steps, targets)
    assert sizes.max() - sizes.min() <= 1


@pytest.mark.parametrize(("targets", "ranks"), [([100], 2), ([100, 0, 0], 2), ([10_000, 1], 2)])
def test_too_few_files_or_targets_for_the_ranks(targets: list[int], ranks: int) -> None:
    with pytest.raises(DataRefused, match="run `recall samples`"):
        plan(targets, ranks, 64)


def test_no_targets() -> None:
    with pytest.raises(DataRefused, match="no target"):
        plan([0, 0], 1, 64)
