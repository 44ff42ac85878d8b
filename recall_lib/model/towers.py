"""YouTubeDNN (Covington et al. 2016): a user tower over history and features, and one vector an item.

F (fun-rec) is encoder `mean`, items tied to the history's table, cosine at export; P (Paddle) is encoder `lstm`, item
weights and biases of their own, [1, u] against [b, w] at export.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recall_lib.config import Features, Model
from recall_lib.ids import ITEM_ID, PADDING
from recall_lib.model.batch import Batch


class MeanEncoder(nn.Module):
    """The mean of the history's embeddings (paper, F)."""

    def __init__(self, dim: int) -> None:
        """`dim`: of the embeddings, and so of the output."""
        super().__init__()
        self.dim = dim

    def forward(self, table: Tensor, history: Tensor, length: Tensor) -> Tensor:
        """[n, dim] embeddings, [B, W] ids, [B] lengths -> [B, dim]; zeros for an empty history."""
        return F.embedding_bag(history, table, mode="mean", padding_idx=PADDING)


class LstmEncoder(nn.Module):
    """The largest value over time of each LSTM output (P)."""

    def __init__(self, dim: int, hidden: int) -> None:
        """`dim`: of the embeddings; `hidden`: of the LSTM, and so of the output."""
        super().__init__()
        self.dim = hidden
        self.lstm = nn.LSTM(dim, hidden, batch_first=True)

    def forward(self, table: Tensor, history: Tensor, length: Tensor) -> Tensor:
        """[n, dim] embeddings, [B, W] ids, [B] lengths -> [B, hidden]; zeros for an empty history."""
        # Padding stands after the end, so that it cannot reach the outputs of the steps before it.
        steps, _ = self.lstm(F.embedding(history, table, padding_idx=PADDING))  # [B, W, hidden]
        inside = torch.arange(history.shape[1], device=history.device) < length[:, None]  # [B, W]
        largest = steps.masked_fill(~inside[:, :, None], -torch.inf).amax(dim=1)
        return torch.where(length[:, None] > 0, largest, 0.0)


class YouTubeDNN(nn.Module):
    """User tower and item vectors, for training and export alike."""

    def __init__(self, features: Features, model: Model, sizes: Mapping[str, int]) -> None:
        """`sizes`: ids of each feature, 0 and 1 included, with the items' under `item_id`."""
        super().__init__()
        self.settings = model
        self.item_table = self._table(sizes[ITEM_ID], features.item_id.dim)
        self.encoder: MeanEncoder | LstmEncoder = (
            MeanEncoder(features.item_id.dim)
            if model.encoder == "mean"
            else LstmEncoder(features.item_id.dim, model.encoder_dim)
        )
        self.user_features = [feature.name for feature in features.user]
        self.item_features = [feature.name for feature in features.item]
        # The prefix keeps a feature's name apart from ModuleDict's own attributes (`type`, `keys`).
        self.tables = nn.ModuleDict(
            {f"user_{f.name}": self._table(sizes[f.name], f.dim) for f in features.user}
            | {f"bag_{f.name}": self._table(sizes[f.name], f.dim) for f in features.item}
        )
        width = self.encoder.dim + sum(f.dim for f in (*features.user, *features.item)) + model.example_age
        layers: list[nn.Module] = []
        for size in model.tower:
            layers += [nn.Linear(width, size), nn.ReLU()]
            width = size
        self.tower = nn.Sequential(*(layers if model.output_activation == "relu" else layers[:-1]))
        separate = model.item_output == "separate"
        self.output_table = self._table(sizes[ITEM_ID], width) if separate else None
        self.item_bias = nn.Parameter(torch.zeros(sizes[ITEM_ID])) if model.item_bias else None

    def _table(self, size: int, dim: int) -> nn.Embedding:
        table = nn.Embedding(size, dim, padding_idx=PADDING)
        nn.init.normal_(table.weight, std=self.settings.embedding_std)
        with torch.no_grad():
            table.weight[PADDING] = 0
        return table

    def _weight(self, kind: str, name: str) -> Tensor:
        return self.tables.get_parameter(f"{kind}_{name}.weight")

    @property
    def item_weights(self) -> Tensor:
        """The weights that items are scored with, [n, d]: the history's own table (F) or another (P)."""
        return self.item_table.weight if self.output_table is None else self.output_table.weight

    def user_representation(self, batch: Batch) -> Tensor:
        """Output of the tower's last layer, [B, d]."""
        parts = [self.encoder(self.item_table.weight, batch.history, batch.length)]
        parts += [F.embedding(batch.user[name], self._weight("user", name), padding_idx=PADDING) for name in self.user_features]
        for name in self.item_features:
            values, offsets = batch.bags[name]
            parts.append(F.embedding_bag(values, self._weight("bag", name), offsets, mode="mean", padding_idx=PADDING))
        if self.settings.example_age:
            # Days span minutes to years: the logarithm keeps hours apart and months in range, and 0 stays 0.
            parts.append(torch.log1p(batch.example_age.clamp(min=0))[:, None])
        return self.tower(torch.cat(parts, dim=1))

    def scores(self, user: Tensor, items: Tensor) -> Tensor:
        """Logits of user representations [B, d] with their own candidates, ids [B, k] -> [B, k]."""
        found = torch.einsum("bd,bkd->bk", user, F.embedding(items, self.item_weights, padding_idx=PADDING))
        return found if self.item_bias is None else found + self.item_bias[items]

    def shared_scores(self, user: Tensor, items: Tensor | slice) -> Tensor:
        """Logits of user representations [B, d] with the same candidates, ids [m] or a slice -> [B, m]."""
        found = user @ self.item_weights[items].T
        return found if self.item_bias is None else found + self.item_bias[items]

    def user_vectors(self, batch: Batch) -> Tensor:
        """Exported user vectors, float32 [B, e]: their inner product with `item_vectors` is the score (SPEC 5.1).

        With `item_bias` e = d + 1 and u = [1, u]; with similarity `cosine` vectors have norm 1 (or are 0).
        """
        user = self.user_representation(batch)
        if self.item_bias is not None:
            user = torch.cat([torch.ones_like(user[:, :1]), user], dim=1)
        return F.normalize(user) if self.settings.similarity == "cosine" else user

    def item_vectors(self) -> Tensor:
        """Exported item vectors, float32 [n, e], a row an id; rows 0 and 1 are no candidates. With `item_bias` [b, w]."""
        items = self.item_weights
        if self.item_bias is not None:
            items = torch.cat([self.item_bias[:, None], items], dim=1)
        return F.normalize(items) if self.settings.similarity == "cosine" else items
