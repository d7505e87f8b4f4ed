"""Point-PN: a cloud to a fixed number of tokens in stages of sampling, grouping and shared residual layers.

B clouds, N points, G groups, K points a group, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from utils.errors import UserError

WAVELENGTH, STRETCH = 1000.0, 100.0  # of the position code of a neighbour
Scaling = Literal["axis", "cloud"]


class ResidualMlp(nn.Module):
    """relu(x + bn(linear(relu(bn(linear(x))))))."""

    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU())
        self.second = nn.Sequential(nn.Linear(hidden, dim), nn.BatchNorm1d(dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(self.first(x)) + x)


class Stage(nn.Module):
    """Around farthest points: neighbours beside their centre, a code of where they lie, layers, maximum."""

    def __init__(self, dim: int, hidden: int, depth: int, group_size: int, scaling: Scaling, skip_near_origin: bool):
        super().__init__()
        self.group_size, self.scaling, self.skip_near_origin = group_size, scaling, skip_near_origin
        self.blocks = nn.Sequential(*(ResidualMlp(dim, hidden) for _ in range(depth)))

    def forward(self, points: Tensor, features: Tensor, num_group: int) -> tuple[Tensor, Tensor]:
        """(B, N, 3), (B, N, C) -> centres (B, G, 3), features (B, G, 2 C)."""
        centers = ops.farthest_point_sample(points, num_group, skip_near_origin=self.skip_near_origin)
        center, middle = ops.gather_points(points, centers), ops.gather_points(features, centers)
        _, index = ops.knn(center, points, self.group_size)
        offset = self.scale(ops.group_points(points, index) - center[:, :, None])  # (B, G, K, 3)
        beside = middle[:, :, None].expand(-1, -1, self.group_size, -1)
        x = torch.cat([ops.group_points(features, index), beside], dim=-1)  # (B, G, K, 2 C)
        x = x + wave_code(offset, x.shape[-1]).to(x.dtype)
        return center, self.blocks(x.flatten(0, 2)).unflatten(0, x.shape[:3]).amax(dim=2)

    def scale(self, offset: Tensor) -> Tensor:
        """axis: each axis of a group by its largest distance. cloud: by the deviation within the cloud."""
        if self.scaling == "axis":
            return offset / offset.abs().amax(dim=2, keepdim=True).clamp(min=1e-12)
        return offset / (offset.flatten(1).std(dim=1)[:, None, None, None] + 1e-5)


def wave_code(offset: Tensor, dim: int) -> Tensor:
    """(..., 3) -> (..., dim): sines, then cosines of every axis at dim // 6 frequencies; what is left over is zero."""
    number = dim // 6
    wave = torch.arange(number, device=offset.device, dtype=offset.dtype)
    angle = STRETCH * offset[..., None] / WAVELENGTH ** (wave / max(number, 1))  # (..., 3, number)
    code = torch.cat([angle.sin(), angle.cos()], dim=-1).flatten(-2)
    return F.pad(code, (0, dim - 6 * number))


class PointPN(nn.Module):
    """Every stage halves the number of points, counted back from `num_group`, and doubles the width up to `dim`."""

    def __init__(
        self,
        dim: int = 768,
        num_group: int = 128,
        group_size: int = 64,
        depths: Sequence[int] = (2, 1, 1),
        last_hidden: int = 32,  # inner width of the last stage; elsewhere half the width
        scaling: Scaling = "axis",
        skip_near_origin: bool = True,
    ):
        super().__init__()
        width = dim >> len(depths)
        if width << len(depths) != dim:
            raise UserError(f"tower: width {dim} cannot be halved {len(depths)} times; use another tower")
        self.counts = [num_group << left for left in reversed(range(len(depths)))]
        self.embed = nn.Sequential(nn.Linear(3, width, bias=False), nn.BatchNorm1d(width), nn.ReLU())
        widths = [width << (stage + 1) for stage in range(len(depths))]
        hiddens = [*(each // 2 for each in widths[:-1]), last_hidden]
        self.stages = nn.ModuleList(
            Stage(each, hidden, depth, group_size, scaling, skip_near_origin)
            for each, hidden, depth in zip(widths, hiddens, depths)
        )

    def forward(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 3) -> centres (B, G, 3), tokens (B, G, dim)."""
        features = self.embed(points.flatten(0, 1)).unflatten(0, points.shape[:2])
        for stage, count in zip(self.stages, self.counts):
            points, features = stage(points, features, count)
        return points, features
