"""Pooling over groups of tokens that share a cell, and the BatchNorm over such groups. No size depends on the data.

B clouds, N tokens, C channels; every token carries the value of its cell.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from models.layers.sync_batchnorm import SumOverProcesses
from utils import dist


class Cells(NamedTuple):
    """Which tokens are together."""

    same: Tensor  # (..., N, N), true where two tokens share a cell
    first: Tensor  # (..., N), the first token of the cell
    share: Tensor  # (..., N), 1 / number of tokens in the cell

    def view(self, index: int) -> Cells:
        """One of the views of (B, V, ...)."""
        return Cells(*(part[:, index] for part in self))


def cells_of(ids: Tensor) -> Cells:
    """Equal numbers, equal cells: (..., N)."""
    same = ids[..., :, None] == ids[..., None, :]
    return Cells(same, same.int().argmax(dim=-1), 1 / same.sum(dim=-1))


def cell_mean(x: Tensor, cells: Cells) -> Tensor:
    """(B, N, C) -> mean over the token's cell."""
    return (cells.same.to(x.dtype) @ x) * cells.share.to(x.dtype)[..., None]


def cell_max(x: Tensor, cells: Cells) -> Tensor:
    """(B, N, C) -> maximum over the token's cell."""
    index = cells.first[..., None].expand_as(x)
    return torch.zeros_like(x).scatter_reduce(1, index, x, "amax", include_self=False).gather(1, index)


class CellNorm(nn.Module):
    """BatchNorm whose samples are the cells, at least in float32; over all processes where `over_processes` is set.

    Parameters and buffers are named as those of nn.BatchNorm1d.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, dim: int, eps: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.eps, self.momentum, self.over_processes = eps, momentum, False
        self.weight, self.bias = nn.Parameter(torch.ones(dim)), nn.Parameter(torch.zeros(dim))
        self.register_buffer("running_mean", torch.zeros(dim))
        self.register_buffer("running_var", torch.ones(dim))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor, cells: Cells, total: int | None = None) -> Tensor:
        """(B, N, C) of cell values. total: cells of a cloud if the empty ones shall count, as rows of zeros."""
        rows = x.to(torch.promote_types(x.dtype, torch.float32))
        mean, variance = (
            self._statistics(rows, cells.share.to(rows.dtype)[..., None], total)
            if self.training
            else (self.running_mean, self.running_var)
        )
        scale = torch.rsqrt(variance + self.eps) * self.weight
        return (rows * scale + (self.bias - mean * scale)).to(x.dtype)

    def _statistics(self, rows: Tensor, share: Tensor, total: int | None) -> tuple[Tensor, Tensor]:
        """Every cell counts once: its tokens count by their share."""
        cells = share.sum().reshape(1)
        sums = self._sum(torch.cat([(rows * share).sum((0, 1)), cells, torch.full_like(cells, len(rows))]))
        occupied, clouds = sums[-2], sums[-1]
        count = occupied if total is None else total * clouds
        mean = sums[:-2] / count
        squares = self._sum(((rows - mean).square() * share).sum((0, 1))) + (count - occupied) * mean.square()
        variance = squares / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            unbiased = variance * (count / (count - 1).clamp(min=1))
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        return mean, variance

    def _sum(self, x: Tensor) -> Tensor:
        return SumOverProcesses.apply(x) if self.over_processes and dist.world_size() > 1 else x
