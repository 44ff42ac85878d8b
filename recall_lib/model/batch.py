"""Windows as tensors: what the towers and losses are given."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from recall_lib.runs import Windows


@dataclass(frozen=True)
class Batch:
    """B windows.

    Attributes:
        history: item ids, int64 [B, W], padded with 0 after the end.
        length: tokens in each history, int64 [B].
        bags: per item feature (values int64 [total], offsets int64 [B]): window i's values start at offsets[i].
        user: per user feature, ids int64 [B].
        example_age: days, float32 [B].
        target: item ids, int64 [B].
        negatives: item ids, int64 [B, negatives_per_positive], padded with 0.
    """

    history: Tensor
    length: Tensor
    bags: dict[str, tuple[Tensor, Tensor]]
    user: dict[str, Tensor]
    example_age: Tensor
    target: Tensor
    negatives: Tensor

    @classmethod
    def of(cls, windows: Windows, device: torch.device | str = "cpu") -> Batch:
        """The windows on a device."""

        def tensor(array: object) -> Tensor:
            return torch.as_tensor(array, device=device)

        return cls(
            history=tensor(windows.history),
            length=tensor(windows.length),
            bags={n: (tensor(bag.values).long(), tensor(bag.offsets[:-1])) for n, bag in windows.bags.items()},
            user={name: tensor(ids) for name, ids in windows.user.items()},
            example_age=tensor(windows.example_age),
            target=tensor(windows.target),
            negatives=tensor(windows.negatives),
        )

    def __len__(self) -> int:
        """Number of windows, B."""
        return len(self.length)
