"""YouTubeDNN (Covington et al. 2016): a user tower over history and features, and one vector per item.

F (fun-rec) has encoder `mean`, scores items with the history's own table, and exports vectors for cosine. P (Paddle) has
encoder `lstm` and separate item weights and biases, and exports [1, u] and [b, w]. With model.item_rows `own`, the encoder
`attention` reads item features with the tokens; with the other encoders, the features' means over the history are concatenated
to the encoded history.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recall_lib.config import Features, Model, Number, tower_input
from recall_lib.model.batch import Batch
from recall_lib.model.encoders import AttentionEncoder, LstmEncoder, MeanEncoder, mean_of_lists, mean_seen, rows_of
from recall_lib.samples.ids import ITEM_ID, PADDING

# Names of the buffers that hold what is known of each item.
_LISTS, _NUMBER = ("values", "offsets"), ("value",)


class YouTubeDNN(nn.Module):
    """User tower and item vectors, for both training and export."""

    def __init__(
        self,
        features: Features,
        model: Model,
        sizes: Mapping[str, int],
        window_size: int,
        content: Mapping[str, Sequence[Tensor]] | None = None,
        *,
        sparse: bool = False,
    ) -> None:
        """A model with random weights.

        Args:
            features: the features' names and widths.
            model: the settings.
            sizes: number of ids of each feature, 0 and 1 included; the number of items is under `item_id`.
            window_size: tokens of the longest history.
            content: unless model.item_rows is `own`, for each item feature with ids (values int [total], offsets int64
                [n + 1]), where item i has values[offsets[i]:offsets[i + 1]]; for each numeric one (values float32 [n],).
            sparse: the tables' gradients are sparse tensors of the rows that a batch looks up; needs model.item_rows `own`.
        """
        super().__init__()
        self.settings, self.sparse = model, sparse
        item_dim = features.item_id.dim
        self.item_table = None if model.item_rows == "content" else self._table(sizes[ITEM_ID], item_dim)
        self.encoder = _encoder(features, model, window_size)
        self.features = features
        self.content = nn.Module()
        if model.item_rows != "own":
            assert content is not None
            for name, buffers in content_buffers(features).items():
                for buffer, tensor in zip(buffers, content[name], strict=True):
                    self.content.register_buffer(buffer, tensor)
        # The prefix avoids clashes between a feature's name and ModuleDict's own attributes (`type`, `keys`).
        self.tables = nn.ModuleDict(
            {f"user_{f.name}": self._table(sizes[f.name], f.dim) for f in (*features.target_ids, *features.sequences)}
            | {f"bag_{f.name}": self._table(sizes[f.name], f.dim) for f in features.token_ids}
        )
        self.sequence_encoders = nn.ModuleDict(
            {f"of_{s.name}": _plain_encoder(s.dim, model, s.window_size) for s in features.sequences if s.pooling == "encoder"}
        )
        numbers_in_rows = sum(n.width for n in features.token_numbers) if model.item_rows != "own" else 0
        self.numbers_to_row = nn.Linear(numbers_in_rows, item_dim) if numbers_in_rows else None
        self.tower, width = _tower(features, model)
        separate = model.item_output == "separate"
        self.output_table = self._table(sizes[ITEM_ID], width) if separate else None
        self.item_bias = nn.Parameter(torch.zeros(sizes[ITEM_ID])) if model.item_bias else None
        if model.recency:
            self.register_buffer("mean_user", torch.zeros(width))

    def _table(self, size: int, dim: int) -> nn.Embedding:
        table = nn.Embedding(size, dim, padding_idx=PADDING)
        nn.init.normal_(table.weight, std=self.settings.embedding_std)
        with torch.no_grad():
            table.weight[PADDING] = 0
        return table

    def rows_of_features(self) -> dict[str, str]:
        """{name of each parameter with one row per id: the feature of these ids}."""
        found = {f"tables.user_{f.name}.weight": f.name for f in (*self.features.target_ids, *self.features.sequences)}
        found |= {f"tables.bag_{f.name}.weight": f.name for f in self.features.token_ids}
        found |= dict.fromkeys(("item_table.weight", "output_table.weight", "item_bias"), ITEM_ID)
        own = {name for name, _ in self.named_parameters()}
        return {name: feature for name, feature in found.items() if name in own}

    def _weight(self, kind: str, name: str) -> Tensor:
        return self.tables.get_parameter(f"{kind}_{name}.weight")

    def item_rows(self) -> Tensor:
        """The item embeddings that histories are read with, [n, dim]."""
        parts = [] if self.item_table is None else [self.item_table.weight]
        if self.settings.item_rows == "own":
            return parts[0]
        buffers = {
            name: [self.content.get_buffer(buffer) for buffer in own] for name, own in content_buffers(self.features).items()
        }
        for feature in self.features.token_ids:
            values, offsets = buffers[feature.name]
            table = self._weight("bag", feature.name)
            parts.append(F.embedding_bag(values, table, offsets, mode="mean", include_last_offset=True))
        if self.numbers_to_row:
            numbers = [number_inputs(number, *buffers[number.name]) for number in self.features.token_numbers]
            parts.append(self.numbers_to_row(torch.cat(numbers, dim=1)))
        return sum(parts[1:], parts[0])

    @property
    def item_weights(self) -> Tensor:
        """The weights that items are scored with, [n, d]: `item_rows` (F) or a table of their own (P)."""
        return self.item_rows() if self.output_table is None else self.output_table.weight

    def user_representation(self, batch: Batch) -> Tensor:
        """Output of the tower's last layer, [T, d]; with model.temperature (training on the cosine) its norm is 1 or 0."""
        parts = [self._encoded(batch), *self._of_target(batch)]
        if self.settings.encoder != "attention" and self.settings.item_rows == "own":
            for feature in self.features.token_ids:
                table = self._weight("bag", feature.name)
                parts.append(mean_seen(table, *batch.item[feature.name], batch, sparse=self.sparse))
            for number in self.features.token_numbers:
                parts.append(batch.mean_seen(number_inputs(number, batch.item_numbers[number.name])))
        if self.settings.example_age:
            # Ages span minutes to years: the logarithm separates hours and keeps months in range, and 0 stays 0.
            parts.append(torch.log1p(batch.example_age.clamp(min=0))[:, None])
        user = self.tower(torch.cat(parts, dim=1) if len(parts) > 1 else parts[0])
        return user if self.settings.temperature is None else F.normalize(user, dim=1)

    def _of_target(self, batch: Batch) -> list[Tensor]:
        """What is known of the targets' users and times, and of their further sequences, [T, width] each."""
        parts = []
        for feature in self.features.target_ids:
            table = self._weight("user", feature.name)
            if feature.multi:
                parts.append(mean_of_lists(table, *batch.lists[feature.name], sparse=self.sparse))
            else:
                parts.append(rows_of(table, batch.user[feature.name], sparse=self.sparse))
        parts += [number_inputs(number, batch.numbers[number.name]) for number in self.features.target_numbers]
        for sequence in self.features.sequences:
            table, (tokens, counts) = self._weight("user", sequence.name), batch.lists[sequence.name]
            if sequence.pooling == "mean":
                parts.append(mean_of_lists(table, tokens, counts, sparse=self.sparse))
            else:
                encoder = self.sequence_encoders.get_submodule(f"of_{sequence.name}")
                own = replace(batch, history=tokens, length=counts, shared=None)
                parts.append(self._encode(encoder, table, own))
        return parts

    def _encoded(self, batch: Batch) -> Tensor:
        return self._encode(self.encoder, self.item_rows(), batch, of_tokens=self._of_tokens(batch))

    def _of_tokens(self, batch: Batch) -> list[Tensor]:
        """What the attention encoder reads with each token, [tokens, width] each."""
        if self.settings.encoder != "attention" or self.settings.item_rows != "own":
            return []
        parts = []
        for feature in self.features.token_ids:
            values, counts = batch.item[feature.name]
            table, starts = self._weight("bag", feature.name), counts.cumsum(0) - counts
            parts.append(F.embedding_bag(values, table, starts, mode="mean", sparse=self.sparse))
        return parts + [number_inputs(number, batch.item_numbers[number.name]) for number in self.features.token_numbers]

    def _encode(self, encoder: nn.Module, table: Tensor, batch: Batch, of_tokens: Sequence[Tensor] = ()) -> Tensor:
        """The batch's histories, read with a table's rows, [T, width]."""
        if not isinstance(encoder, AttentionEncoder):
            return encoder(table, batch, sparse=self.sparse)
        tokens = [rows_of(table, batch.history, sparse=self.sparse), *of_tokens]
        return encoder(torch.cat(tokens, dim=1) if len(tokens) > 1 else tokens[0], batch)

    def candidates(self, items: Tensor | slice) -> Tensor:
        """The weights that user representations are multiplied with, ids [...] or a slice -> [..., d]."""
        weights = self.item_weights
        rows = weights[items] if isinstance(items, slice) else rows_of(weights, items, sparse=self.sparse)
        return rows if self.settings.temperature is None else F.normalize(rows, dim=-1) / self.settings.temperature

    def scores(self, user: Tensor, items: Tensor) -> Tensor:
        """Logits of user representations [T, d] with candidates of each one's own, ids [T, k] -> [T, k]."""
        found = (user[:, None] * self.candidates(items)).sum(dim=2)
        return found if self.item_bias is None else found + rows_of(self.item_bias[:, None], items, sparse=False)[..., 0]

    def shared_scores(self, user: Tensor, items: Tensor | slice) -> Tensor:
        """Logits of user representations [T, d] with the same candidates, ids [m] or a slice -> [T, m]."""
        found = user @ self.candidates(items).T
        return found if self.item_bias is None else found + self.item_bias[items]

    def user_vectors(self, batch: Batch) -> Tensor:
        """Exported user vectors, float32 [T, e]; their inner product with `item_vectors` is the score (SPEC 5.1).

        With `item_bias` or `recency` a vector is [1, u] and e = d + 1; else e = d. With similarity `cosine` its norm is 1 or 0.
        """
        user = self.user_representation(batch)
        if self.settings.has_bias:
            user = torch.cat([torch.ones_like(user[:, :1]), user], dim=1)
        return F.normalize(user) if self.settings.similarity == "cosine" else user

    def item_vectors(self, *, of_day: bool = False) -> Tensor:
        """Exported item vectors, float32 [n, e], one row per id; rows 0 and 1 are never recommended. With a bias: [b, w].

        Args:
            of_day: with `recency`, prepare the vectors for a prior of the day, which is then added to the first column. The
                items' biases are dropped, the mean user's scores are subtracted (both follow the clicks of the whole log), and
                scores are multiplied by `weight`.
        """
        items = self.candidates(slice(None))
        bias = items.new_zeros(len(items)) if self.item_bias is None else self.item_bias
        if of_day and self.settings.recency:
            items = items * self.settings.recency.weight
            bias = -(items @ self.get_buffer("mean_user"))
        if self.settings.has_bias:
            items = torch.cat([bias[:, None], items], dim=1)
        return F.normalize(items) if self.settings.similarity == "cosine" else items


def content_buffers(features: Features) -> dict[str, list[str]]:
    """{item feature: the names of the buffers that hold it} of a model whose item_rows are not `own`."""
    lists = {f.name: [f"{f.name}_{part}" for part in _LISTS] for f in features.token_ids}
    return lists | {n.name: [f"{n.name}_{part}" for part in _NUMBER] for n in features.token_numbers}


def number_inputs(number: Number, values: Tensor) -> Tensor:
    """A feature's numbers [B], NaN where unknown -> [B, width]: with their square and root, and whether they are unknown."""
    unknown = values.isnan()
    known = values.masked_fill(unknown, 0.0)
    powers = [known, known.square(), known.sqrt()] if number.form == "quantiles" else [known]
    return torch.stack([*powers, unknown.to(values.dtype)], dim=1)


def _encoder(features: Features, model: Model, window_size: int) -> MeanEncoder | LstmEncoder | AttentionEncoder:
    item_dim = features.item_id.dim
    if model.encoder == "attention" and model.item_rows == "own":
        beside = sum(f.dim for f in features.token_ids) + sum(n.width for n in features.token_numbers)
        return AttentionEncoder(item_dim + beside, model, window_size)
    return _plain_encoder(item_dim, model, window_size)


def _plain_encoder(dim: int, model: Model, window_size: int) -> MeanEncoder | LstmEncoder | AttentionEncoder:
    """An encoder of tokens that are rows of one table, of width `dim`."""
    if model.encoder == "mean":
        return MeanEncoder(dim)
    if model.encoder == "lstm":
        return LstmEncoder(dim, model.encoder_dim)
    return AttentionEncoder(dim, model, window_size)


def _tower(features: Features, model: Model) -> tuple[nn.Sequential, int]:
    """The layers that make a user's vector, and its width."""
    width = tower_input(features, model)
    layers: list[nn.Module] = []
    for size in model.tower:
        layers += [nn.Linear(width, size), nn.ReLU()]
        width = size
    return nn.Sequential(*(layers if model.output_activation == "relu" else layers[:-1])), width
