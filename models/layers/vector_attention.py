"""The layers of Point Transformer: attention among neighbours, a weight for every channel; changing resolution.

B clouds, N points, M points of the next coarser level, K neighbours, C channels of a point, D of the attention.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from extensions.features import group_max
from models.layers.rows import Rows, linear_norm
from utils.errors import UserError


class Level(NamedTuple):
    """A resolution of the clouds. Everything that depends on coordinates alone is found once, for all layers."""

    xyz: Tensor  # (B, N, 3)
    neighbors: Tensor  # (B, N, K), the point itself first
    chosen: Tensor  # (B, M), the points that make the next level


def build_levels(points: Tensor, num_levels: int, num_neighbors: int, stride: int) -> list[Level]:
    """Every level keeps a share of 1 / stride of the points before, chosen by farthest point sampling from index 0.

    A sample of a sample is its beginning, so the points are sampled once. A level with fewer than `num_neighbors`
    points has all of them for neighbours.
    """
    num_points = points.shape[1]
    if num_neighbors > num_points:
        raise UserError(f"num_neighbors: {num_neighbors} is more than the {num_points} points there are; use fewer")
    sizes = [max(num_points // stride**level, 1) for level in range(num_levels + 1)]
    order = ops.farthest_point_sample(points.detach(), sizes[1])
    coarse = ops.gather_points(points, order)
    levels = []
    for index, (size, following) in enumerate(pairwise(sizes)):
        xyz = coarse[:, :size] if index else points
        neighbors = ops.knn(xyz.detach(), xyz.detach(), min(num_neighbors, size))[1]
        first = torch.arange(following, device=points.device).expand(len(points), -1)
        levels.append(Level(xyz, neighbors, first if index else order))
    return levels


class VectorAttention(nn.Module):
    """Each point looks at its K neighbours; each channel has its own softmax over them. Residual, without norm."""

    def __init__(self, dim: int, attention_dim: int = 512):
        super().__init__()
        self.scale = attention_dim**-0.5
        self.enter = nn.Linear(dim, attention_dim)
        self.leave = nn.Linear(attention_dim, dim)
        self.position = _two_layers(3, attention_dim)
        self.weigh = _two_layers(attention_dim, attention_dim)
        self.query = nn.Linear(attention_dim, attention_dim, bias=False)
        self.key = nn.Linear(attention_dim, attention_dim, bias=False)
        self.value = nn.Linear(attention_dim, attention_dim, bias=False)

    def forward(self, features: Tensor, xyz: Tensor, neighbors: Tensor) -> Tensor:
        """(B, N, C), (B, N, 3), (B, N, K) -> (B, N, C)."""
        weights, values = self.attend(self.enter(features), xyz, neighbors)
        return self.leave((weights * values).sum(dim=2)) + features

    def attend(self, x: Tensor, xyz: Tensor, neighbors: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, D) -> weights that sum to 1 over the neighbours, and values, both (B, N, K, D)."""
        position = self.position(xyz[:, :, None] - ops.gather_points(xyz, neighbors))  # from neighbour to centre
        difference = position - ops.gather_points(self.key(x), neighbors)
        difference += self.query(x)[:, :, None]
        weights = self.weigh(difference).mul_(self.scale).softmax(dim=2)
        return weights, ops.gather_points(self.value(x), neighbors) + position


class TransitionDown(nn.Module):
    """Chosen points collect their neighbours: offset and features through two layers, then the maximum."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.mlp = Rows(*linear_norm(3 + dim, out_dim), *linear_norm(out_dim, out_dim))

    def forward(self, features: Tensor, level: Level) -> Tensor:
        """(B, N, C) -> (B, M, out_dim)."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        center, neighbors = ops.gather_points(level.xyz, level.chosen), ops.gather_points(level.neighbors, level.chosen)
        offset = ops.group_points(level.xyz, neighbors, center)  # (B, M, K, 3)
        of_offset, of_features = first.weight.split([3, features.shape[-1]], dim=1)
        # a point is neighbour of several: its features go through the layer once
        x = ops.gather_points(F.linear(features, of_features, first.bias), neighbors) + F.linear(offset, of_offset)
        return group_max(self.mlp[1:](x))  # over (B, M, K, out_dim)


class TransitionUp(nn.Module):
    """Features of the coarser level, carried to the finer one by the three nearest points, plus its own."""

    def __init__(self, coarse_dim: int, dim: int):
        super().__init__()
        self.coarse, self.fine = linear_norm(coarse_dim, dim), linear_norm(dim, dim)

    def forward(self, coarse: Tensor, coarse_xyz: Tensor, fine: Tensor, xyz: Tensor) -> Tensor:
        """(B, M, coarse_dim), (B, M, 3), (B, N, dim), (B, N, 3) -> (B, N, dim)."""
        distances, indices = ops.three_nn(xyz, coarse_xyz)
        weights = ops.three_nn_weights(distances, "inverse_squared")
        return ops.three_interpolate(self.coarse(coarse), indices, weights) + self.fine(fine)


def _two_layers(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(inplace=True), nn.Linear(width, width))
