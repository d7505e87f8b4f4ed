"""Neighbours by the sum of coordinate differences."""

from __future__ import annotations

import torch
from torch import Tensor

from extensions.pointops.check import check_clouds, check_count
from extensions.reference.points import blocks, smallest


@torch.no_grad()
def nearest_l1(query: Tensor, points: Tensor, k: int) -> Tensor:
    """Indices (B, M, k) of the k points (B, N, 3) nearest to every query (B, M, 3) in |dx| + |dy| + |dz|, ascending,
    lowest index first among equal ones. Holds a few MB at a time."""
    query, points = check_clouds("nearest_l1", query=query, points=points)
    k = check_count("nearest_l1", "k", k, limit=points.shape[1])
    found = []
    for clouds, rows in blocks(query, points):
        x, y, z = ((query[clouds, rows, None, axis] - points[clouds, None, :, axis]).abs_() for axis in range(3))
        found.append(smallest(x.add_(y).add_(z), k))
    return torch.cat([part.reshape(-1, k) for part in found]).view(*query.shape[:2], k)
