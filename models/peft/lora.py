"""LoRA: a product of two thin matrices added to chosen weights (arXiv 2106.09685)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.peft.base import Method, stages_of
from utils.errors import UserError

TARGETS = {"qkv": "attn", "proj": "attn", "fc1": "mlp", "fc2": "mlp"}  # linear layers of a block and where they are


class LoRA(Method):
    """W + alpha / rank * up @ down for the layers named in `targets` (qkv, proj, fc1, fc2) of every block.

    alpha: None is the rank, so that the factor is 1. dropout: on what enters the thin matrices.
    """

    mergeable = True

    def __init__(
        self,
        model: nn.Module,
        rank: int = 32,
        alpha: float | None = None,
        targets: Sequence[str] = ("qkv",),
        dropout: float = 0.0,
    ):
        super().__init__()
        if rank < 1 or not targets:
            raise UserError(f"rank {rank} must be at least 1, and targets must name a layer")
        for name in targets:
            if name not in TARGETS:
                raise UserError(f"targets: '{name}' is no layer of a block; choose from {', '.join(TARGETS)}")
        self.deltas = nn.ModuleList()
        for stage in stages_of(model):
            for block in stage.blocks:
                for name in targets:
                    layer = getattr(getattr(block, TARGETS[name]), name)
                    delta = LowRank(layer, rank, (rank if alpha is None else alpha) / rank, dropout)
                    self.hook(layer, delta.add)
                    self.deltas.append(delta)

    def merge(self) -> None:
        for delta in self.deltas:
            assert isinstance(delta, LowRank)
            delta.merge()


class LowRank(nn.Module):
    """The change of one layer; nothing at the start, as `up` is zero."""

    def __init__(self, layer: nn.Linear, rank: int, scale: float, dropout: float):
        super().__init__()
        self.layer, self.scale, self.dropout = (layer,), scale, dropout  # in a tuple: not a part of this module
        self.down = nn.Parameter(layer.weight.new_empty(rank, layer.in_features))
        self.up = nn.Parameter(layer.weight.new_zeros(layer.out_features, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def add(self, layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = F.dropout(inputs[0], self.dropout, self.training)
        return output + self.scale * F.linear(F.linear(x, self.down), self.up)

    @torch.no_grad()
    def merge(self) -> None:
        self.layer[0].weight += self.scale * self.up @ self.down
