"""Carrying features from few points to many, as PointNet++ does on the way back up.

B clouds, N points, G centres, C channels of the features, D of what the points have themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.layers.rows import Rows


class FeaturePropagation(nn.Module):
    """Interpolate between the three nearest centres (inverse squared distances), join the points' own channels, MLP."""

    def __init__(self, channels: int, widths: Sequence[int], own_channels: int = 0):
        super().__init__()
        sizes = (own_channels + channels, *widths)
        layers = [(nn.Linear(i, o), nn.BatchNorm1d(o), nn.ReLU()) for i, o in pairwise(sizes)]
        self.mlp = Rows(*(module for layer in layers for module in layer))
        self.own_channels = own_channels

    def forward(self, points: Tensor, centers: Tensor, features: Tensor, own: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B, G, 3), (B, G, C) and own (B, N, D) -> (B, N, widths[-1])."""
        distances, indices = ops.three_nn(points, centers)
        weights = ops.three_nn_weights(distances, "inverse_squared")
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        of_own, of_features = first.weight.split([self.own_channels, features.shape[-1]], dim=1)
        # interpolation and a linear layer commute: apply the layer to the few centres, not to the many points
        x = ops.three_interpolate(F.linear(features, of_features, first.bias), indices, weights)
        if own is not None:
            x = x + F.linear(own, of_own)
        return self.mlp[1:](x)


class TokenPropagation(nn.Module):
    """Tokens of a scale out of its own (skip connection) and those of the coarser one: fuse, then residual blocks."""

    def __init__(self, skip_dim: int, coarse_dim: int, dim: int, depth: int):
        super().__init__()
        self.fuse = nn.Sequential(nn.Linear(skip_dim + coarse_dim, dim), nn.BatchNorm1d(dim), nn.GELU())
        self.blocks = nn.ModuleList(ResidualMlp(dim) for _ in range(depth))

    def forward(self, center: Tensor, coarse_center: Tensor, skip: Tensor, coarse: Tensor) -> Tensor:
        """Centres (B, N, 3) and (B, G, 3), their tokens (B, N, skip_dim) and (B, G, coarse_dim) -> (B, N, dim)."""
        distances, indices = ops.three_nn(center, coarse_center)
        carried = ops.three_interpolate(coarse, indices, ops.three_nn_weights(distances, "inverse_squared"))
        x = self.fuse(torch.cat([skip.to(carried.dtype), carried], dim=-1).flatten(0, 1))
        for block in self.blocks:
            x = block(x)
        return x.unflatten(0, center.shape[:2])


class ResidualMlp(nn.Module):
    """gelu(x + net2(net1(x))) of rows (R, C)."""

    def __init__(self, dim: int):
        super().__init__()
        self.net1 = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim), nn.GELU())
        self.net2 = nn.Sequential(nn.Linear(dim, dim), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.net2(self.net1(x)))
