"""Counts of ranks -> hit rate and NDCG. Validation and metrics.json share these formulas; they are plain Python."""

from __future__ import annotations

import math
from collections.abc import Mapping


def hit_rate(ranks: Mapping[int, int], k: int) -> float | None:
    """The share of users whose target is among the first k; None without users.

    Args:
        ranks: {rank from 1: users}, 0 for a miss.
        k: number of items in a list.
    """
    return ratio(sum(n for rank, n in ranks.items() if 1 <= rank <= k), sum(ranks.values()))


def ndcg(ranks: Mapping[int, int], k: int) -> float | None:
    """NDCG@k with one target per user: the mean of 1 / log2(1 + rank), 0 for a rank beyond k; None without users.

    Args:
        ranks: as in `hit_rate`.
        k: items of a list.
    """
    return ratio(math.fsum(n / math.log2(1 + rank) for rank, n in ranks.items() if 1 <= rank <= k), sum(ranks.values()))


def ratio(part: float, whole: int) -> float | None:
    """part / whole; None if whole is 0."""
    return part / whole if whole else None
