"""Windows as tensors: what the towers and losses are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recall_lib.samples.windows import Shared, Windows


@dataclass(frozen=True)
class Batch:
    """T targets in S histories; see `samples.windows.Windows`.

    Attributes:
        history: item ids of all histories, one after the other, int64 [tokens].
        length: tokens in each history, int64 [S].
        item: per item feature (values int64 [total], counts int64 [tokens]): all tokens' values, and how many each has.
        user: per user feature, ids int64 [T].
        example_age: days, float32 [T].
        target: item ids, int64 [T].
        negatives: item ids, int64 [T, negatives_per_positive], padded with 0.
        shared: the part of a history that each target sees; None: T = S, target i sees all of history i.
    """

    history: Tensor
    length: Tensor
    item: dict[str, tuple[Tensor, Tensor]]
    user: dict[str, Tensor]
    example_age: Tensor
    target: Tensor
    negatives: Tensor
    shared: Shared[Tensor] | None = None

    @classmethod
    def of(cls, windows: Windows, device: torch.device | str = "cpu") -> Batch:
        """The windows on a device."""

        def tensor(array: object) -> Tensor:
            return torch.as_tensor(array, device=device)

        return cls(
            history=tensor(windows.history.values),
            length=tensor(windows.history.lengths),
            item={name: (tensor(lists.values).long(), tensor(lists.lengths)) for name, lists in windows.item.items()},
            user={name: tensor(ids) for name, ids in windows.user.items()},
            example_age=tensor(windows.example_age),
            target=tensor(windows.target),
            negatives=tensor(windows.negatives),
            shared=None if windows.shared is None else Shared(*map(tensor, windows.shared)),
        )

    def __len__(self) -> int:
        """Number of targets, T."""
        return len(self.target)

    def padded(self, rows: Tensor) -> Tensor:
        """A row a token, [tokens, d] -> [S, L, d] with zeros after a history's end, L that of the longest."""
        longest = max(1, int(self.length.max())) if len(self.length) else 1
        inside = torch.arange(longest, device=rows.device) < self.length[:, None]
        place = inside.flatten().nonzero()[:, 0]
        padded = rows.new_zeros(len(self.length) * longest, rows.shape[1]).index_copy(0, place, rows)
        return padded.view(len(self.length), longest, -1)

    def seen(self, states: Tensor) -> Tensor:
        """Of states after each token, [S, L, d], the one after the last token that a target sees; zeros where it sees none."""
        own = Shared(torch.arange(len(self.length), device=self.length.device), self.length)
        history, seen = self.shared or own
        return torch.where(seen[:, None] > 0, states[history, (seen - 1).clamp(min=0)], 0.0)
