"""YouTubeDNN (Covington et al. 2016): a user tower over history and features, and one vector an item.

F (fun-rec) is encoder `mean`, items tied to the history's table, cosine at export; P (Paddle) is encoder `lstm`, item
weights and biases of their own, [1, u] against [b, w] at export. With encoder `attention` the features of items enter with
the tokens; with the others their means stand beside the encoded history.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recall_lib.config import Features, Model, tower_input
from recall_lib.ids import ITEM_ID, PADDING
from recall_lib.model.batch import Batch
from recall_lib.model.encoders import AttentionEncoder, LstmEncoder, MeanEncoder, running_mean


class YouTubeDNN(nn.Module):
    """User tower and item vectors, for training and export alike."""

    def __init__(self, features: Features, model: Model, sizes: Mapping[str, int], window_size: int) -> None:
        """`sizes`: ids of each feature, 0 and 1 included, the items' under `item_id`; `window_size`: the longest history."""
        super().__init__()
        self.settings = model
        item_dim = features.item_id.dim
        self.item_table = self._table(sizes[ITEM_ID], item_dim)
        self.encoder: MeanEncoder | LstmEncoder | AttentionEncoder
        if model.encoder == "mean":
            self.encoder = MeanEncoder(item_dim)
        elif model.encoder == "lstm":
            self.encoder = LstmEncoder(item_dim, model.encoder_dim)
        else:
            self.encoder = AttentionEncoder(features, model, window_size)
        self.user_features = [feature.name for feature in features.user]
        self.item_features = [feature.name for feature in features.item]
        # The prefix keeps a feature's name apart from ModuleDict's own attributes (`type`, `keys`).
        self.tables = nn.ModuleDict(
            {f"user_{f.name}": self._table(sizes[f.name], f.dim) for f in features.user}
            | {f"bag_{f.name}": self._table(sizes[f.name], f.dim) for f in features.item}
        )
        width = tower_input(features, model)
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
        """Output of the tower's last layer, [T, d]; of norm 1 (or 0) where the model is trained on the cosine."""
        parts = [self._encoded(batch)]
        parts += [F.embedding(batch.user[name], self._weight("user", name), padding_idx=PADDING) for name in self.user_features]
        if self.settings.encoder != "attention":
            parts += [self._bag(name, batch) for name in self.item_features]
        if self.settings.example_age:
            # Days span minutes to years: the logarithm keeps hours apart and months in range, and 0 stays 0.
            parts.append(torch.log1p(batch.example_age.clamp(min=0))[:, None])
        user = self.tower(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return user if self.settings.temperature is None else F.normalize(user, dim=1)

    def _encoded(self, batch: Batch) -> Tensor:
        table = self.item_table.weight
        if self.settings.encoder != "attention":
            return self.encoder(table, batch)
        tokens = F.embedding(batch.history, table, padding_idx=PADDING)
        features = [self._of_tokens(name, batch, "mean") for name in self.item_features]
        return self.encoder(torch.cat([tokens, *features], dim=2) if features else tokens, batch)

    def _bag(self, name: str, batch: Batch) -> Tensor:
        """The mean of an item feature's values over the tokens that each target sees, [T, dim]; zeros where there are none."""
        values, offsets = batch.item[name]
        if batch.at is None:
            first = F.pad(offsets, (0, 1), value=len(values))[F.pad(batch.length.cumsum(0)[:-1], (1, 0))]
            return F.embedding_bag(values, self._weight("bag", name), first, mode="mean", padding_idx=PADDING)
        counts = torch.diff(offsets, append=offsets.new_tensor([len(values)]))
        sums = self._of_tokens(name, batch, "sum")
        return batch.seen(running_mean(sums, _spread(counts.to(sums.dtype)[:, None], batch).squeeze(2)))

    def _of_tokens(self, name: str, batch: Batch, mode: str) -> Tensor:
        """The mean or sum of an item feature's values of each token, [S, L, dim]."""
        values, offsets = batch.item[name]
        return _spread(F.embedding_bag(values, self._weight("bag", name), offsets, mode=mode, padding_idx=PADDING), batch)

    def candidates(self, items: Tensor | slice) -> Tensor:
        """Weights that user representations are multiplied with, ids [...] or a slice -> [..., d]."""
        weights = self.item_weights
        rows = weights[items] if isinstance(items, slice) else F.embedding(items, weights, padding_idx=PADDING)
        return rows if self.settings.temperature is None else F.normalize(rows, dim=-1) / self.settings.temperature

    def scores(self, user: Tensor, items: Tensor) -> Tensor:
        """Logits of user representations [T, d] with their own candidates, ids [T, k] -> [T, k]."""
        found = torch.einsum("bd,bkd->bk", user, self.candidates(items))
        return found if self.item_bias is None else found + self.item_bias[items]

    def shared_scores(self, user: Tensor, items: Tensor | slice) -> Tensor:
        """Logits of user representations [T, d] with the same candidates, ids [m] or a slice -> [T, m]."""
        found = user @ self.candidates(items).T
        return found if self.item_bias is None else found + self.item_bias[items]

    def user_vectors(self, batch: Batch) -> Tensor:
        """Exported user vectors, float32 [T, e]: their inner product with `item_vectors` is the score (SPEC 5.1).

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


def _spread(tokens: Tensor, batch: Batch) -> Tensor:
    """Rows of all tokens, history after history, [tokens, d] -> [S, L, d], zeros after a history's end."""
    spread = tokens.new_zeros(*batch.history.shape, tokens.shape[1])
    return spread.masked_scatter(batch.inside[:, :, None], tokens)
