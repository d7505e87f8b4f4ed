"""Small residual networks beside large frozen ones."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.tower import quick_gelu


class Bottleneck(nn.Module):
    """up(quickgelu(down(x))), dropout between; residual: plus x. Not nothing at the start, as published."""

    def __init__(self, dim: int, hidden: int, dropout: float = 0.0, residual: bool = True):
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        self.dropout, self.residual = dropout, residual
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(F.dropout(quick_gelu(self.down(x)), self.dropout, self.training))
        return x + y if self.residual else y
