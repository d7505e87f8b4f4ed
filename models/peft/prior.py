"""The point-prior prompt of Point-PEFT: what a memory bank of the training set holds near a cloud.

B clouds, M stored clouds, k retrieved ones, C channels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.peft.base import HEAD
from utils.errors import UserError

Pooling = Literal["max", "mean_max"]


def retrieve(feature: Tensor, bank: Tensor, k: int, temperature: float = 1.0, skip: int = 0) -> Tensor:
    """(B, C) and a bank (C, M) of unit columns -> [the feature, the weighted mean of the k nearest columns, these
    columns by falling similarity]: (B, k + 2, C). skip: so many nearest are left out."""
    similarity, index = (F.normalize(feature, dim=-1) @ bank).topk(k + skip, dim=-1)
    similarity, index = similarity[:, skip:], index[:, skip:]
    columns = bank.T[index]  # (B, k, C)
    mean = (similarity / temperature).softmax(dim=-1)[:, None] @ columns
    return torch.cat([feature[:, None], mean, columns], dim=1)


class Extractor(nn.Module):
    """The backbone as it was when the adaptation was applied: never trained, always in evaluation mode."""

    def __init__(
        self,
        model: nn.Module,
        pooling: Pooling,
        num_groups: int | Sequence[int] | None,
        group_sizes: int | Sequence[int] | None,
    ):
        super().__init__()
        head = model.head
        model.head = nn.Identity()
        try:
            self.backbone = copy.deepcopy(model).eval().requires_grad_(False)
        finally:
            model.head = head
        self.pooling = pooling
        for name, value in (("num_group", num_groups), ("group_size", group_sizes)):
            self._set(name, value)

    def _set(self, name: str, value: int | Sequence[int] | None) -> None:
        """num_group of a model with one scale, num_groups of one with several."""
        if value is None:
            return
        several, values = not isinstance(value, int), (value,) if isinstance(value, int) else tuple(value)
        if several == hasattr(self.backbone, name):
            raise UserError(f"query_{name}s: {value}; give {'one number' if several else 'one number a scale'}")
        if several and len(values) != len(getattr(self.backbone, f"{name}s")):
            raise UserError(
                f"query_{name}s: {value}; the backbone has {len(getattr(self.backbone, f'{name}s'))} scales"
            )
        setattr(self.backbone, f"{name}s" if several else name, values if several else value)

    @property
    def groups(self) -> list:
        """Numbers and sizes of the groups, as plain values."""
        names = ("num_group", "group_size") if hasattr(self.backbone, "num_group") else ("num_groups", "group_sizes")
        values = [getattr(self.backbone, name) for name in names]
        return [list(value) if isinstance(value, tuple) else value for value in values]

    def share(self, model: nn.Module) -> None:
        """Use the model's own frozen parameters instead of copies of them."""
        frozen = {name: p for name, p in model.named_parameters() if not p.requires_grad}
        for name in [name for name, _ in self.backbone.named_parameters()]:
            if name in frozen and not name.startswith(HEAD):
                parent, _, last = name.rpartition(".")
                setattr(self.backbone.get_submodule(parent), last, frozen[name])

    def train(self, mode: bool = True) -> Extractor:
        return super().train(False)

    def encode(self, points: Tensor) -> Tensor:
        return self(points)

    @torch.no_grad()
    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, C)."""
        tokens = self.backbone.forward_features(points).float()  # type: ignore[operator]
        highest = tokens.amax(dim=1)
        return highest + tokens.mean(dim=1) if self.pooling == "mean_max" else highest
