"""Carrying features from few points to many: interpolation between the three nearest, and layers on top of it.

B clouds, N points, M points that carry features, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops


def interpolate(points: Tensor, known: Tensor, features: Tensor) -> Tensor:
    """Features (B, M, C) at `known` (B, M, 3) -> at `points` (B, N, 3), weighted by the inverse squared distance."""
    distances, indices = ops.three_nn(points, known)
    weights = ops.three_nn_weights(distances, "inverse_squared")
    return ops.three_interpolate(features, indices, weights)


class PointMlp(nn.Sequential):
    """Linear, BatchNorm, ReLU for every width, on (..., C)."""

    def __init__(self, in_channels: int, widths: Sequence[int]):
        layers: list[nn.Module] = []
        for width in widths:
            layers += [nn.Linear(in_channels, width), nn.BatchNorm1d(width), nn.ReLU()]
            in_channels = width
        super().__init__(*layers)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


class FeaturePropagation(nn.Module):
    """Interpolated features joined to what the points have themselves, then an MLP."""

    def __init__(self, in_channels: int, widths: Sequence[int]):
        super().__init__()
        self.mlp = PointMlp(in_channels, widths)

    def forward(self, points: Tensor, known: Tensor, own: Tensor | None, features: Tensor) -> Tensor:
        """points (B, N, 3), known (B, M, 3), own (B, N, D) or none, features (B, M, C) -> (B, N, widths[-1])."""
        carried = interpolate(points, known, features)
        return self.mlp(carried if own is None else torch.cat([own.to(carried.dtype), carried], dim=-1))


class TokenPropagation(nn.Module):
    """Tokens of a scale from its own (skip connection) and those of the coarser one: fuse, then residual blocks."""

    def __init__(self, skip_dim: int, coarse_dim: int, dim: int, depth: int):
        super().__init__()
        self.fuse = nn.Sequential(nn.Linear(skip_dim + coarse_dim, dim), nn.BatchNorm1d(dim), nn.GELU())
        self.blocks = nn.ModuleList(ResidualMlp(dim) for _ in range(depth))

    def forward(self, center: Tensor, coarse_center: Tensor, skip: Tensor, coarse: Tensor) -> Tensor:
        """Centres (B, G, 3) and (B, M, 3); tokens (B, G, skip_dim) and (B, M, coarse_dim) -> (B, G, dim)."""
        carried = interpolate(center, coarse_center, coarse)
        x = self.fuse(torch.cat([skip.to(carried.dtype), carried], dim=-1).flatten(0, 1))
        for block in self.blocks:
            x = block(x)
        return x.unflatten(0, center.shape[:2])


class ResidualMlp(nn.Module):
    """gelu(x + net2(net1(x))) on rows (R, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.net1 = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.GELU())
        self.net2 = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.net2(self.net1(x)))
