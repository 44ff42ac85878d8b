"""Windows as tensors: the input of the towers and losses."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy.typing as npt
import torch
from torch import Tensor

from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Shared, Windows


@dataclass(frozen=True)
class Batch:
    """T targets in S histories; see `samples.windows.Windows`.

    Attributes:
        history: item ids of all histories, one after the other, int64 [tokens].
        length: tokens in each history, int64 [S].
        item: for each item feature (values int64 [total], counts int64 [tokens]): all tokens' values, and each token's count.
        user: for each user feature of one value, ids int64 [T].
        lists: for each user feature of several values and each further sequence (ids int64 [total], counts int64 [T]): all
            targets' ids, and each target's count.
        numbers: for each numeric feature of users, float32 [T]; NaN where unknown.
        item_numbers: for each numeric feature of items, float32 [tokens].
        example_age: days, float32 [T].
        target: item ids, int64 [T].
        negatives: item ids, int64 [T, negatives_per_positive], padded with 0.
        weight: of each target in the loss, float32 [T]; None: 1.
        shared: each target's history, and how many of its tokens the target sees, int64 [T] both; None: T = S, and each target
            sees all tokens of its own history.
    """

    history: Tensor
    length: Tensor
    item: dict[str, tuple[Tensor, Tensor]]
    user: dict[str, Tensor]
    example_age: Tensor
    target: Tensor
    negatives: Tensor
    lists: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    numbers: dict[str, Tensor] = field(default_factory=dict)
    item_numbers: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    shared: Shared[Tensor] | None = None

    @classmethod
    def of(cls, windows: Windows, device: torch.device | str = "cpu") -> Batch:
        """Copy windows to a device."""

        def tensor(array: object) -> Tensor:
            return torch.as_tensor(array, device=device)

        def tensors(arrays: dict[str, npt.NDArray]) -> dict[str, Tensor]:
            return {name: tensor(array) for name, array in arrays.items()}

        def counted(ragged: dict[str, Ragged]) -> dict[str, tuple[Tensor, Tensor]]:
            return {name: (tensor(lists.values).long(), tensor(lists.lengths)) for name, lists in ragged.items()}

        return cls(
            history=tensor(windows.history.values),
            length=tensor(windows.history.lengths),
            item=counted(windows.item),
            user=tensors(windows.user),
            lists=counted(windows.lists),
            numbers=tensors(windows.numbers),
            item_numbers=tensors(windows.item_numbers),
            example_age=tensor(windows.example_age),
            target=tensor(windows.target),
            negatives=tensor(windows.negatives),
            weight=None if windows.weight is None else tensor(windows.weight),
            shared=None if windows.shared is None else Shared(*map(tensor, windows.shared)),
        )

    def __len__(self) -> int:
        """Number of targets, T."""
        return len(self.target)

    def padded(self, rows: Tensor) -> Tensor:
        """One row per token, [tokens, d] -> [S, L, d], padded with zeros to the length L of the longest history."""
        longest = max(1, int(self.length.max())) if len(self.length) else 1
        inside = torch.arange(longest, device=rows.device) < self.length[:, None]
        place = inside.flatten().nonzero()[:, 0]
        padded = rows.new_zeros(len(self.length) * longest, rows.shape[1]).index_copy(0, place, rows)
        return padded.view(len(self.length), longest, -1)

    def seen(self, states: Tensor) -> Tensor:
        """States after each token, [S, L, d] -> each target's state after its last seen token, [T, d]; zeros without one."""
        own = Shared(torch.arange(len(self.length), device=self.length.device), self.length)
        history, seen = self.shared or own
        return torch.where(seen[:, None] > 0, states[history, (seen - 1).clamp(min=0)], 0.0)

    def mean_seen(self, rows: Tensor, counts: Tensor | None = None) -> Tensor:
        """The mean of the rows of the tokens that a target sees, [tokens, d] -> [T, d]; zeros without one.

        Args:
            rows: each is a sum of `counts` rows, int64 [tokens]; None: of one.
        """
        counts = torch.ones_like(self.history) if counts is None else counts
        so_far = self.padded(torch.cat([rows, counts[:, None].to(rows.dtype)], dim=1)).cumsum(dim=1)
        return self.seen(so_far[:, :, :-1] / so_far[:, :, -1:].clamp(min=1))
