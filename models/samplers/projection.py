"""Soft projection: every free point becomes a weighted mean of its nearest points, sharper as the temperature falls.

B clouds, N points, M free points, K neighbours, C features.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from extensions import ops
from utils.errors import UserError


class SoftProjection(nn.Module):
    """w = softmax(-squared distance / sigma) over the K nearest points; sigma follows a learned temperature t.

    floor says how sigma is kept from vanishing: "sigma": max(t^2, min_sigma), whatever the sign of t; "temperature":
    max(t, sqrt(min_sigma))^2, so that t gets no gradient once it is small or negative. min_sigma 0: t^2.
    """

    def __init__(
        self,
        group_size: int = 8,
        init_temperature: float = 1.0,
        learn_temperature: bool = True,
        min_sigma: float = 1e-4,
        floor: Literal["sigma", "temperature"] = "sigma",
    ):
        super().__init__()
        if group_size < 1 or min_sigma < 0:
            raise UserError(f"group_size {group_size} must be at least 1, min_sigma {min_sigma} at least 0")
        self.group_size, self.min_sigma, self.floor = group_size, min_sigma, floor
        self.temperature = nn.Parameter(torch.tensor(float(init_temperature)), requires_grad=learn_temperature)

    @property
    def sigma(self) -> Tensor:
        """Also the projection loss: small where projected points lie close to single points."""
        if self.floor == "temperature":
            return self.temperature.float().clamp(min=math.sqrt(self.min_sigma)).square()
        return self.temperature.float().square().clamp(min=self.min_sigma)

    def weights(self, query: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax weights of the neighbours of every free point (B, M, 3), and their places; both (B, M, K)."""
        if self.group_size > points.shape[1]:
            raise UserError(f"projection_group_size: {self.group_size}, but a cloud has {points.shape[1]} points")
        indices = ops.knn(query.detach().float(), points.detach().float(), self.group_size)[1]
        return (-self.distances(query, points, indices)).softmax(dim=-1), indices

    def distances(self, query: Tensor, points: Tensor, indices: Tensor) -> Tensor:
        """Squared distances to the points at indices (B, M, K), in units of sigma."""
        away = ops.gather_points(points.float(), indices) - query.float()[:, :, None]
        return away.square().sum(-1) / self.sigma

    def forward(self, query: Tensor, points: Tensor) -> Tensor:
        """(B, M, 3), (B, N, 3) -> projected points (B, M, 3)."""
        weights, indices = self.weights(query, points)
        return mix(points, weights, indices)

    def propagate(self, query: Tensor, points: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
        """Projected points (B, M, 3), and features (B, N, C) carried along with the same weights (B, M, C)."""
        weights, indices = self.weights(query, points)
        return mix(points, weights, indices), mix(features, weights, indices)


def mix(values: Tensor, weights: Tensor, indices: Tensor) -> Tensor:
    """Weighted means of the rows of (B, N, C) at indices (B, M, K)."""
    return (weights[..., None] * ops.gather_points(values.float(), indices)).sum(dim=-2)
