"""Encoders of a user's history: from tokens to one vector per target.

Each encoder reads a history once. A target's vector is the state after the last token that the target sees, so a history may
belong to one target (a window) or to many (training.unit `run`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix
from torch import Tensor, nn
from torch.nn import functional as F

from recall_lib.config import Model
from recall_lib.model.batch import Batch


def rows_of(table: Tensor, ids: Tensor, *, sparse: bool) -> Tensor:
    """Rows of a table [n, dim], ids [...] -> [..., dim]; `sparse`: the table's gradient holds only these rows."""
    if sparse:
        return F.embedding(ids, table, sparse=True)
    rows: Tensor = _Rows.apply(table, ids.flatten())
    return rows.view(*ids.shape, table.shape[1])


def mean_seen(table: Tensor, values: Tensor, counts: Tensor, batch: Batch, *, sparse: bool) -> Tensor:
    """The mean row of all values of the tokens that a target sees, [T, dim]; zeros where there are none.

    Args:
        table: [n, dim].
        values: ids of all tokens, one token after the other, int64 [total].
        counts: values of each token, int64 [tokens].
        batch: the batch of these tokens.
        sparse: the table's gradient holds only the rows of these values.
    """
    if batch.shared is None:
        ends = F.pad(counts.cumsum(0), (1, 0))[F.pad(batch.length.cumsum(0), (1, 0))]
        return mean_of_lists(table, values, torch.diff(ends), sparse=sparse)
    sums = F.embedding_bag(values, table, counts.cumsum(0) - counts, mode="sum", sparse=sparse)
    return batch.mean_seen(sums, counts)


def mean_of_lists(table: Tensor, values: Tensor, counts: Tensor, *, sparse: bool) -> Tensor:
    """The mean row of each list of ids, [B, dim]; zeros for an empty list.

    Args:
        table: [n, dim].
        values: ids of all lists, one list after the other, int64 [total].
        counts: number of ids of each list, int64 [B].
        sparse: the table's gradient holds only the rows of these ids.
    """
    if sparse:
        return F.embedding_bag(values, table, counts.cumsum(0) - counts, mode="mean", sparse=True)
    return _Mean.apply(table, values, counts)


class _Rows(torch.autograd.Function):
    """Rows of a table, with a faster backward pass: PyTorch's own dense one takes several times as long."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, ids: Tensor) -> Tensor:
        """[n, dim], [B] -> [B, dim]."""
        ctx.save_for_backward(ids)
        ctx.rows = len(table)
        return table.index_select(0, ids)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        return _sums(ids, None, gradients[0], ctx.rows), None


class _Mean(torch.autograd.Function):
    """F.embedding_bag, mode mean, with a faster backward pass.

    PyTorch's own dense one sorts the ids, which takes several times as long for narrow rows.
    """

    @staticmethod
    def forward(ctx: Any, table: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
        """[n, dim], [total], number of values of each bag [B] -> [B, dim]; zeros for an empty bag."""
        ctx.save_for_backward(values, lengths)
        ctx.rows = len(table)
        return F.embedding_bag(values, table, lengths.cumsum(0) - lengths, mode="mean")

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        values, lengths = ctx.saved_tensors
        return _sums(values, lengths, gradients[0] / lengths.clamp(min=1)[:, None], ctx.rows), None, None


_MANY = 4096  # with at least this many ids, SciPy is faster in spite of its setup time


def _sums(values: Tensor, lengths: Tensor | None, rows: Tensor, n: int) -> Tensor:
    """For each id, the sum of the rows of the bags that hold it, [n, dim]: the gradient of a table.

    Args:
        values: ids of all bags, one bag after the other, int64 [total].
        lengths: number of values of each bag, int64 [B]; None: one each.
        rows: the row of each bag, [B, dim].
        n: number of ids in the table.
    """
    if rows.device.type == "cpu" and len(values) >= _MANY:
        ends = np.arange(len(values) + 1) if lengths is None else F.pad(lengths.cumsum(0), (1, 0)).numpy()
        bags = csr_matrix((np.ones(len(values), np.float32), values.numpy(), ends), (len(rows), n))
        return torch.from_numpy(bags.T @ rows.numpy())
    each = rows if lengths is None else rows.repeat_interleave(lengths, dim=0)
    return each.new_zeros(n, each.shape[1]).index_add_(0, values, each)


class MeanEncoder(nn.Module):
    """The mean of the history's embeddings (paper, F)."""

    def __init__(self, dim: int) -> None:
        """`dim`: width of the embeddings and of the output."""
        super().__init__()
        self.dim = dim

    def forward(self, table: Tensor, batch: Batch, *, sparse: bool) -> Tensor:
        """[n, dim] embeddings -> [T, dim]; zeros for an empty history; `sparse` as in `rows_of`."""
        return mean_seen(table, batch.history, torch.ones_like(batch.history), batch, sparse=sparse)


class LstmEncoder(nn.Module):
    """An LSTM; each output is its maximum over the tokens seen so far (P)."""

    def __init__(self, dim: int, hidden: int) -> None:
        """`dim`: width of the embeddings; `hidden`: width of the LSTM and of the output."""
        super().__init__()
        self.dim = hidden
        self.lstm = nn.LSTM(dim, hidden, batch_first=True)

    def forward(self, table: Tensor, batch: Batch, *, sparse: bool) -> Tensor:
        """[n, dim] embeddings -> [T, hidden]; zeros for an empty history; `sparse` as in `rows_of`."""
        # Padding comes after a history's end, so it does not change the outputs of the steps before it.
        steps, _ = self.lstm(batch.padded(rows_of(table, batch.history, sparse=sparse)))  # [S, L, hidden]
        return batch.seen(steps.cummax(dim=1).values)


class AttentionEncoder(nn.Module):
    """Causal self-attention in HSTU blocks (Zhai et al. 2024) over items, their features and learnt positions."""

    def __init__(self, width: int, model: Model, window_size: int) -> None:
        """`width`: of a token's embeddings; `window_size`: tokens of the longest history."""
        super().__init__()
        self.dim = model.encoder_dim
        self.project = nn.Identity() if width == self.dim else nn.Linear(width, self.dim)
        self.position = nn.Parameter(torch.randn(window_size, self.dim) * model.embedding_std)
        self.norm_in, self.norm_out = nn.LayerNorm(self.dim), nn.LayerNorm(self.dim)
        self.dropout = Dropout(model.dropout)
        self.blocks = nn.ModuleList([HstuBlock(model, window_size) for _ in range(model.layers)])

    def forward(self, tokens: Tensor, batch: Batch) -> Tensor:
        """[tokens, width] embeddings of items and their features -> [T, dim]; zeros for an empty history."""
        states = batch.padded(self.project(tokens))
        states = states + self.position[: states.shape[1]]
        states = self.dropout(self.norm_in(states))
        for block in self.blocks:
            states = block(states)
        return batch.seen(self.norm_out(states))


class HstuBlock(nn.Module):
    """Attention with SiLU instead of softmax, a gate instead of the feed-forward layer, and a learnt bias per distance."""

    def __init__(self, model: Model, window_size: int) -> None:
        """`window_size`: tokens of the longest history; the attention's sums are divided by it."""
        super().__init__()
        dim, self.heads, self.window_size = model.encoder_dim, model.heads, window_size
        self.norm_in, self.norm_attended = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.into, self.out = nn.Linear(dim, 4 * dim), nn.Linear(dim, dim)
        self.dropout = Dropout(model.dropout)
        self.distance_bias = nn.Parameter(torch.zeros(self.heads, window_size))

    def forward(self, states: Tensor) -> Tensor:
        """[S, L, dim] -> [S, L, dim]; a state does not depend on later ones."""
        rows, length, dim = states.shape
        gate, *parts = F.silu(self.into(self.norm_in(states))).split(dim, dim=-1)
        values, queries, keys = (part.view(rows, length, self.heads, -1).transpose(1, 2) for part in parts)
        weights = F.silu(torch.matmul(queries, keys.transpose(-1, -2)) + self._bias(length))  # [S, heads, L, L]
        attended = torch.matmul(weights, values / self.window_size).transpose(1, 2).reshape(rows, length, dim)
        return states + self.out(self.dropout(gate * self.norm_attended(attended)))

    def _bias(self, length: int) -> Tensor:
        """[heads, L, L], the bias by distance; for later tokens so low that SiLU gives 0 (minus infinity would give NaN)."""
        place = torch.arange(length, device=self.distance_bias.device)
        distance = place[:, None] - place
        return self.distance_bias[:, distance.clamp(min=0)].masked_fill(distance < 0, -1e4)


class Dropout(nn.Module):
    """Dropout rounded to 1/256: one random byte per element, on a CPU several times as fast as one random float."""

    def __init__(self, p: float) -> None:
        """`p`: share of the elements that are set to 0."""
        super().__init__()
        self.dropped = round(p * 256)

    def forward(self, x: Tensor) -> Tensor:
        """The same shape; the elements that are kept are scaled up."""
        if not self.training or not self.dropped:
            return x
        words = torch.empty((x.numel() + 7) // 8, dtype=torch.int64, device=x.device).random_(-(2**63), None)
        keep = (words.view(torch.uint8)[: x.numel()] >= self.dropped).view(x.shape)
        return x * keep.to(x.dtype).mul_(256 / (256 - self.dropped))
