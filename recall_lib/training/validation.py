"""Validation by full ranking: every item is a candidate, never a sample of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from recall_lib.config import Features, Samples
from recall_lib.model.batch import Batch
from recall_lib.model.towers import YouTubeDNN
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.samples.ragged import Ragged
from recall_lib.training.loader import read_segments
from recall_lib.training.ranks import Ranks

K = 10
_SCORES_IN_MEMORY = 1 << 25
_TOKENS_IN_MEMORY = 1 << 14


@torch.no_grad()
def evaluate(
    model: YouTubeDNN,
    urls: Sequence[str],
    features: Features,
    samples: Samples,
    device: torch.device,
    ranks: Ranks,
    *,
    filter_seen: bool = True,
) -> dict[str, float]:
    """Mean HR@10 and NDCG@10 of a hold-out split, over the files of all ranks.

    With `filter_seen` items the user has `seen` are no candidates, and a target among them is not scored. Neither is one
    without history (SPEC 3.8); a target outside the vocabulary (id 1) is a miss.

    Returns:
        {"hr@10", "ndcg@10", "users"}, or nothing when no target is scored.
    """
    model.eval()
    items = model.item_vectors()
    chunk = max(1, min(_SCORES_IN_MEMORY // len(items), _TOKENS_IN_MEMORY // samples.window_size))
    samples = samples.model_copy(update={"negatives_per_positive": 0})  # hold-outs have none
    sums = np.zeros(3)
    for runs, seen in read_segments(urls, features, samples, seen=True):
        assert seen is not None
        order = np.argsort(runs.items.lengths[runs.segment_of_target], kind="stable")  # like lengths together: little is padded
        for start in range(0, len(runs), chunk):
            targets = order[start : start + chunk]
            run = runs.segment_of_target[targets]
            known = seen.slices(seen.offsets[run], seen.offsets[run + 1 if filter_seen else run])
            batch = Batch.of(runs.windows(targets), device)
            place = places(model.user_vectors(batch) @ items.T, batch.target, known)
            place = place[(place >= 0) & (batch.length > 0)]
            hit = place < K
            sums += [len(place), int(hit.sum()), float((1 / torch.log2(place[hit].double() + 2)).sum())]
    model.train()
    users, hits, gain = ranks.sum(sums.tolist())
    return {f"hr@{K}": hits / users, f"ndcg@{K}": gain / users, "users": users} if users else {}


@torch.no_grad()
def mean_user(
    model: YouTubeDNN, urls: Sequence[str], features: Features, samples: Samples, device: torch.device, ranks: Ranks
) -> Tensor:
    """The mean representation of a hold-out split's users, over the files of all ranks, float32 [d]; zeros without any."""
    model.eval()
    chunk = max(1, _TOKENS_IN_MEMORY // samples.window_size)
    samples = samples.model_copy(update={"negatives_per_positive": 0})
    total = np.zeros(1 + len(model.get_buffer("mean_user")))
    for runs, _ in read_segments(urls, features, samples):
        for start in range(0, len(runs), chunk):
            batch = Batch.of(runs.windows(np.arange(start, min(start + chunk, len(runs)))), device)
            known = model.user_representation(batch)[batch.length > 0].double()
            total += [len(known), *known.sum(dim=0).tolist()]
    users, *sums = ranks.sum(total.tolist())
    return torch.tensor(sums, device=device).float() / max(1.0, users)


def places(scores: Tensor, target: Tensor, seen: Ragged) -> Tensor:
    """Each target's place in its user's ranking, from 0, ties by item id.

    Args:
        scores: of all item ids, [B, n]; overwritten where an item is no candidate.
        target: item ids, [B].
        seen: item ids that are no candidates (ragged [B]).

    Returns:
        int64 [B]; n for a target outside the vocabulary, -1 for one that was seen.
    """
    scores[:, :FIRST_INDEX] = -torch.inf
    rows = torch.as_tensor(np.repeat(np.arange(len(scores)), seen.lengths), device=scores.device)
    scores[rows, torch.as_tensor(seen.values, device=scores.device).long()] = -torch.inf
    own = scores.gather(1, target[:, None])
    before = torch.arange(scores.shape[1], device=scores.device) < target[:, None]
    place = ((scores > own) | ((scores == own) & before)).sum(dim=1)
    place = torch.where(own[:, 0] == -torch.inf, -1, place)
    return torch.where(target < FIRST_INDEX, scores.shape[1], place)
