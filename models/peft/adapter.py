"""Bottleneck adapters at the feed-forward network of every block (arXiv 1902.00751, 2205.13535)."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from models.peft.base import Method, stages_of, width_of
from utils.errors import UserError


class Adapter(Method):
    """y + scale * up(gelu(down(y))): serial on what leaves the feed-forward network, or parallel to it."""

    def __init__(
        self,
        model: nn.Module,
        dim: int = 64,
        place: Literal["serial", "parallel"] = "serial",
        scale: float = 1.0,
        dropout: float = 0.0,
    ):
        super().__init__()
        if dim < 1:
            raise UserError(f"dim: {dim}; use at least 1")
        self.branches = nn.ModuleList()
        for stage in stages_of(model):
            for block in stage.blocks:
                branch = Branch(width_of(stage), dim, place == "parallel", scale, dropout)
                self.hook(block.mlp, branch.add)  # type: ignore[arg-type]
                self.branches.append(branch)


class Branch(nn.Module):
    """One adapter; nothing at the start, as `up` is zero."""

    def __init__(self, width: int, dim: int, parallel: bool, scale: float, dropout: float):
        super().__init__()
        self.down, self.up = nn.Linear(width, dim), nn.Linear(dim, width)
        self.parallel, self.scale, self.dropout = parallel, scale, dropout
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def add(self, mlp: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        x = inputs[0] if self.parallel else output
        return output + self.scale * self.up(F.dropout(F.gelu(self.down(x)), self.dropout, self.training))
