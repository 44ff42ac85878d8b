"""Validation by full ranking: every item is a candidate, and the ranking is the one that is served.

Items and users have the vectors that would be exported now; with model.recency these include the day's prior. Ties are
ordered by the bytes of the item id. So early stopping and promotion measure the ranking of the top-N table and of
metrics.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from recall_lib.config import Features, Samples
from recall_lib.model.batch import Batch
from recall_lib.model.towers import YouTubeDNN
from recall_lib.retrieval.index import ItemIndex
from recall_lib.samples.ids import FIRST_INDEX, ITEM_ID
from recall_lib.samples.ragged import Float64s
from recall_lib.store.arrays import read_item_ids, read_priors
from recall_lib.training.loader import read_segments
from recall_lib.training.ranks import Ranks
from recall_lib.training.spec import TrainSpec
from recall_lib.transforms.accuracy import hit_rate, ndcg

K = 10
_TOKENS_IN_MEMORY = 1 << 14


@dataclass(frozen=True)
class Catalogue:
    """Everything but the model that decides the ranking of the items.

    Attributes:
        item_ids: string [n], null for 0 and 1; their bytes break ties.
        prior: the day's prior of each item, float64 [n]; None without model.recency.
    """

    item_ids: pa.Array
    prior: Float64s | None = None

    @classmethod
    def read(cls, spec: TrainSpec) -> Catalogue:
        """From the files of the vocabulary and, with model.recency, of items/dt."""
        prior = read_priors(spec.items, spec.sizes[ITEM_ID]) if spec.model.recency else None
        return cls(read_item_ids(spec.vocab_files), prior)

    @torch.no_grad()
    def index(self, model: YouTubeDNN) -> ItemIndex:
        """The items with the vectors that would be exported now."""
        vectors = model.item_vectors(of_day=True).cpu().numpy()
        if self.prior is not None:
            vectors[:, 0] += self.prior
        return ItemIndex.build(vectors, self.item_ids)


@torch.no_grad()
def validate(
    model: YouTubeDNN,
    catalogue: Catalogue,
    urls: Sequence[str],
    features: Features,
    samples: Samples,
    device: torch.device,
    ranks: Ranks,
    *,
    filter_seen: bool = True,
) -> dict[str, float]:
    """Mean HR@10 and NDCG@10 of a hold-out split, over the files of all ranks.

    With `filter_seen`, items that the user has seen are not candidates, and a target among them is not scored. A target
    without history is not scored either (SPEC 3.8). A target outside the vocabulary (id 1) is a miss.

    Returns:
        {"hr@10", "ndcg@10", "users"}; {} if no target is scored.
    """
    model.eval()
    items = catalogue.index(model)
    chunk = max(1, _TOKENS_IN_MEMORY // samples.window_size)
    samples = samples.model_copy(update={"negatives_per_positive": 0})  # held-out rows have none
    counts = np.zeros(K + 1, np.int64)  # targets by rank; those ranked below K count as 0
    for segments, seen in read_segments(urls, features, samples, seen=True):
        assert seen is not None
        # Targets of similar length share a batch, so that little is padded.
        order = np.argsort(segments.items.lengths[segments.segment_of_target], kind="stable")
        for start in range(0, len(segments), chunk):
            targets = order[start : start + chunk]
            segment = segments.segment_of_target[targets]
            known = seen.slices(seen.offsets[segment], seen.offsets[segment + 1 if filter_seen else segment])
            windows = segments.windows(targets)
            users = model.user_vectors(Batch.of(windows, device)).cpu().numpy()
            rank = items.rank(users, windows.target, known)
            scored = (windows.history.lengths > 0) & ((rank > 0) | (windows.target < FIRST_INDEX))
            counts += np.bincount(np.where(rank <= K, rank, 0)[scored], minlength=K + 1)
    model.train()
    found = {rank: int(users) for rank, users in enumerate(ranks.sum(counts.tolist()))}
    hits, gain = hit_rate(found, K), ndcg(found, K)
    return {} if hits is None or gain is None else {f"hr@{K}": hits, f"ndcg@{K}": gain, "users": sum(found.values())}


@torch.no_grad()
def mean_user(
    model: YouTubeDNN, urls: Sequence[str], features: Features, samples: Samples, device: torch.device, ranks: Ranks
) -> Tensor:
    """The mean representation of a hold-out split's users, over the files of all ranks, float32 [d]; zeros without users."""
    model.eval()
    chunk = max(1, _TOKENS_IN_MEMORY // samples.window_size)
    samples = samples.model_copy(update={"negatives_per_positive": 0})
    total = np.zeros(1 + len(model.get_buffer("mean_user")))
    for segments, _ in read_segments(urls, features, samples):
        for start in range(0, len(segments), chunk):
            batch = Batch.of(segments.windows(np.arange(start, min(start + chunk, len(segments)))), device)
            known = model.user_representation(batch)[batch.length > 0].double()
            total += [len(known), *known.sum(dim=0).tolist()]
    users, *sums = ranks.sum(total.tolist())
    return torch.tensor(sums, device=device).float() / max(1.0, users)
