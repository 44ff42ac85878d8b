"""The losses of SPEC 4.3, and the distribution their negatives are drawn from.

Symbols: B targets; k negatives per target; n item ids (0 padding and 1 unknown included); q the proposal, an item's
probability of being drawn. The logQ correction subtracts log q from the score, so that popular items are not penalised for
being drawn more often.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recall_lib.config import Training
from recall_lib.model.batch import Batch
from recall_lib.model.towers import YouTubeDNN
from recall_lib.samples.ids import FIRST_INDEX
from recall_lib.samples.ragged import Ints


class Proposal:
    """Draws items in proportion to count^alpha; alpha 0 is uniform. Ids 0 and 1 and items with count 0 are never drawn."""

    def __init__(self, counts: Ints, alpha: float, device: torch.device | str = "cpu") -> None:
        """`counts`: training clicks of each item id, [n]; the values at 0 and 1 are ignored."""
        drawn = np.flatnonzero(counts[FIRST_INDEX:] > 0) + FIRST_INDEX
        if not len(drawn):
            raise ValueError("no item has a count: there is nothing to draw negatives from")
        weights = counts[drawn].astype(np.float64) ** alpha
        share = weights / weights.sum()
        # An item with count 0 is never a training target; the smallest share keeps its logarithm finite.
        log_q = np.full(len(counts), np.log(share.min()), np.float32)
        log_q[drawn] = np.log(share)
        cumulative = np.cumsum(share)
        self.log_q = torch.as_tensor(log_q, device=device)  # [n]
        self._ids = torch.as_tensor(drawn, device=device)
        # The last bound is left out, so that a draw above all other bounds is the last item even if the sum is rounded below 1.
        self._bounds = None if alpha == 0 else torch.as_tensor(cumulative[:-1], device=device)

    def draw(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Item ids drawn independently with replacement, int64 [shape]."""
        device = self._ids.device
        if self._bounds is None:
            return self._ids[torch.randint(len(self._ids), shape, generator=generator, device=device)]
        place = torch.rand(shape, generator=generator, device=device, dtype=torch.float64)
        return self._ids[torch.searchsorted(self._bounds, place, right=True)]


def sampled_softmax(positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
    """Softmax cross-entropy of each target among its own negatives.

    Args:
        positive: corrected scores s - log q of the targets, [B].
        negative: the same for the negatives, [B, k].
        usable: bool [B, k], false for padding and accidental hits.

    Returns:
        The loss of each target, [B]; log(k + 1) at initialisation with uniform q.
    """
    logits = torch.cat([positive[:, None], negative.masked_fill(~usable, -torch.inf)], dim=1)
    return logits.logsumexp(dim=1) - positive


def nce(positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
    """Noise-contrastive estimation (P): binary cross-entropy that separates the target from the negatives.

    Args:
        positive: s - log(k q) of the targets, [B].
        negative: the same for the negatives, [B, k].
        usable: bool [B, k], false for padding and accidental hits.

    Returns:
        The sum of each target's k + 1 terms, [B]; at initialisation with uniform q over m items
        log(1 + k/m) + k log(1 + m/k).
    """
    return F.softplus(-positive) + (F.softplus(negative) * usable).sum(dim=1)


def in_batch_softmax(scores: Tensor, target: Tensor, log_q: Tensor) -> Tensor:
    """Softmax cross-entropy of each target among the batch's targets, with logQ correction.

    Args:
        scores: the score of user i with target j, [B, B].
        target: item ids, [B]; if another row has the same target, it is not used as a negative.
        log_q: for each item id, [n], the logarithm of its share of all targets.

    Returns:
        The loss of each target, [B]; about log(B) at initialisation if all shares are equal and all targets differ.
    """
    corrected = scores - log_q[target]
    same = (target[:, None] == target) & ~torch.eye(len(target), dtype=torch.bool, device=target.device)
    return corrected.masked_fill(same, -torch.inf).logsumexp(dim=1) - corrected.diagonal()


def full_softmax(user: Tensor, items: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Softmax cross-entropy over the whole catalogue.

    Args:
        user: representations, [B, d].
        items: weights of the item ids from 2 on, [m, d].
        bias: of the same items, [m]; None: no bias.
        target: item ids, [B], 2 or above.
        weight: of each target, [B]; None: 1.

    Returns:
        The weighted losses' mean over targets; log(m) at initialisation without weights.
    """
    with torch.autocast(user.device.type, enabled=False):
        loss: Tensor = _FullSoftmax.apply(user.float(), items.float(), bias, target - FIRST_INDEX, weight)
    return loss


_SCORES_AT_ONCE = 1 << 22


class _FullSoftmax(torch.autograd.Function):
    """Computes the gradients in the forward pass, in chunks of targets, so the full [B, m] scores are never in memory."""

    @staticmethod
    def forward(ctx: Any, user: Tensor, items: Tensor, bias: Tensor | None, target: Tensor, weight: Tensor | None) -> Tensor:
        rows = max(1, _SCORES_AT_ONCE // len(items))
        d_user, d_items, d_bias = torch.empty_like(user), torch.zeros_like(items), torch.zeros_like(items[:, 0])
        loss = user.new_zeros((), dtype=torch.float64)
        scores = user.new_empty(min(rows, len(user)), len(items))
        weights = torch.ones_like(user[:, :1]) if weight is None else weight[:, None]
        parts = (tensor.split(rows) for tensor in (user, target[:, None], weights, d_user))
        for part, own, w, d_part in zip(*parts, strict=True):
            p = torch.mm(part, items.T, out=scores[: len(part)])
            if bias is not None:
                p.add_(bias)
            p.sub_(p.amax(dim=1, keepdim=True))
            loss -= (p.gather(1, own) * w).sum()
            mass = p.exp_().sum(dim=1, keepdim=True)
            loss += (mass.log() * w).sum()
            p.scatter_add_(1, own, -mass)  # mass times the gradient of the scores; smaller tensors are divided by mass below
            mass /= w
            torch.mm(p, items, out=d_part).div_(mass)
            d_items.addmm_(p.T, part / mass)
            if bias is not None:
                d_bias.addmv_(p.T, 1 / mass[:, 0])
        ctx.save_for_backward(d_user, d_items, d_bias)
        ctx.scale, ctx.biased = 1 / len(user), bias is not None
        return (loss / len(user)).float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        scale = gradients[0] * ctx.scale
        d_user, d_items, d_bias = (gradient * scale for gradient in ctx.saved_tensors)
        return d_user, d_items, d_bias if ctx.biased else None, None, None


class Loss:
    """The configured loss of a model on a batch."""

    def __init__(self, training: Training, negatives_alpha: float, counts: Ints, device: torch.device | str = "cpu") -> None:
        """`negatives_alpha`: the samples' own negatives were drawn by count to this power; `counts`: see Proposal, [n]."""
        self.settings = training
        alpha = {"uniform": 0.0, "counts": training.alpha, "samples": negatives_alpha}[training.negatives]
        # The batch's targets are drawn by their counts.
        self.proposal = Proposal(counts, 1.0 if training.loss == "in_batch_softmax" else alpha, device)

    def __call__(self, model: YouTubeDNN, batch: Batch, generator: torch.Generator) -> Tensor:
        """The mean of the targets' weighted losses, scalar; the generator draws the negatives."""
        user = model.user_representation(batch)
        if self.settings.loss == "full_softmax":
            known = slice(FIRST_INDEX, None)
            bias = None if model.item_bias is None else model.item_bias[known]
            return full_softmax(user, model.candidates(known), bias, batch.target, batch.weight)
        losses = self._of_targets(model, user, batch, generator)
        return (losses if batch.weight is None else losses * batch.weight).mean()

    def _of_targets(self, model: YouTubeDNN, user: Tensor, batch: Batch, generator: torch.Generator) -> Tensor:
        """The loss of each target among other items of the batch or drawn ones, [B]."""
        log_q = self.proposal.log_q
        if self.settings.loss == "in_batch_softmax":
            return in_batch_softmax(model.shared_scores(user, batch.target), batch.target, log_q)
        negatives = (
            batch.negatives
            if self.settings.negatives == "samples"
            else self.proposal.draw((len(batch), self.settings.num_negatives), generator)
        )
        items = torch.cat([batch.target[:, None], negatives], dim=1)  # [B, 1 + k]
        corrected = model.scores(user, items) - log_q[items]
        usable = (negatives != batch.target[:, None]) & (negatives >= FIRST_INDEX)
        if self.settings.loss == "sampled_softmax":
            return sampled_softmax(corrected[:, 0], corrected[:, 1:], usable)
        corrected = corrected - float(np.log(negatives.shape[1]))
        return nce(corrected[:, 0], corrected[:, 1:], usable)
