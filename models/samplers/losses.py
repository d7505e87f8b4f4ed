"""How well free points cover a cloud. B clouds, N points, M free points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from extensions import ops


def simplification_loss(simplified: Tensor, points: Tensor, gamma: float = 1.0, delta: float = 0.0) -> Tensor:
    """Squared distances: mean from the free points to the cloud, their maximum in every cloud, and, times
    gamma + delta * M, mean from the cloud to the free points."""
    forward, backward = ops.chamfer_distance(simplified, points, reduction="none")  # (B, M), (B, N)
    weight = gamma + delta * simplified.shape[1]
    return forward.mean() + forward.amax(dim=1).mean() + weight * backward.mean()


def nested_simplification_loss(
    simplified: Tensor, points: Tensor, sizes: Sequence[int], gamma: float, delta: float, summed: bool
) -> Tensor:
    """The same over the first points of several numbers, summed or averaged."""
    each = torch.stack([simplification_loss(simplified[:, :size], points, gamma, delta) for size in sizes])
    return each.sum() if summed else each.mean()
