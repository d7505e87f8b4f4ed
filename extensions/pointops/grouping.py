"""Gathering points by index, and the groups a point transformer is fed with."""

import torch
from torch import Tensor

from extensions import reference
from extensions.library import operators
from utils.errors import UserError

from .check import check_clouds, check_count, check_indices, check_same_device


def gather_points(points: Tensor, indices: Tensor) -> Tensor:
    """Rows of `points` (B, N, C) at int64 `indices` (B, ...): (B, ..., C), any dtype, differentiable in `points`."""
    if not isinstance(points, Tensor) or points.ndim != 3:
        raise UserError(f"gather_points: points must be (B, N, C), got {_describe(points)}")
    check_indices("gather_points", indices, "points", points)
    return reference.gather(points, indices)


def group_points(points: Tensor, indices: Tensor, center: Tensor | None = None) -> Tensor:
    """Neighbourhoods (B, G, K, C) of `points` (B, N, C) at `indices` (B, G, K), less `center` (B, G, C) if given."""
    grouped = gather_points(points, indices)
    if center is None:
        return grouped
    if grouped.ndim != 4 or center.shape != (*indices.shape[:2], points.shape[2]):
        raise UserError(
            f"group_points: center must be (B, G, C) for indices (B, G, K) {tuple(indices.shape)}, "
            f"got {tuple(center.shape)}"
        )
    check_same_device("group_points", "points", points, "center", center)
    return grouped - center[:, :, None]


def group(
    points: Tensor, num_group: int, group_size: int, *, skip_near_origin: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut clouds (B, N, 3) into groups: neighbourhoods (B, G, K, 3), centres (B, G, 3), indices (B, G, K).

    Centres are a farthest point sample from index 0, members their nearest points, nearest (the centre itself) first;
    coordinates are relative to the centre. Gradients reach `points`.
    """
    (points,) = check_clouds("group", points=points)
    num_group = check_count("group", "num_group", num_group, limit=points.shape[1])
    group_size = check_count("group", "group_size", group_size, limit=points.shape[1])
    if not (torch.is_grad_enabled() and points.requires_grad):
        return operators.group(points, num_group, group_size, skip_near_origin)
    center = gather_points(points, operators.farthest_point_sample(points, num_group, 0, skip_near_origin))
    indices = operators.knn(center.detach(), points.detach(), group_size)[1]
    return group_points(points, indices, center), center, indices


def _describe(value: object) -> str:
    return str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__
