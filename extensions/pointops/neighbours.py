"""Neighbours of points: the k nearest, and those in a ball.

Squared distances carry gradients to both clouds (through the chosen pairs); indices never do.
NaN: a distance that is not a number counts as the farthest of all.
"""

import torch
from torch import Tensor

from extensions.library import operators
from utils.errors import UserError

from .check import check_clouds, check_count, check_not_empty
from .grouping import gather_points


def knn(query: Tensor, points: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k nearest points (B, N, C) of every query (B, M, C): squared distances and int64 indices, both (B, M, k).

    Ascending, lowest index first among equal distances, so a query that is one of the points finds itself first
    (or its lowest duplicate). C may be anything: coordinates or features.
    """
    query, points = check_clouds("knn", channels=None, query=query, points=points)
    k = check_count("knn", "k", k, limit=points.shape[1])
    distances, indices = operators.knn(query, points, k)
    if torch.is_grad_enabled() and (query.requires_grad or points.requires_grad):
        distances = (query[:, :, None] - gather_points(points, indices)).square().sum(3)
    return distances, indices


def ball_query(query: Tensor, points: Tensor, radius: float, k: int) -> Tensor:
    """Indices (B, M, k) of the first k points, in index order, strictly closer than `radius` to each query.

    Fewer than k: the first one fills the rest. None: zeros, as pointnet2_ops does; `ball_query_count` tells.
    """
    return _ball_query("ball_query", query, points, radius, k)[0]


def ball_query_count(query: Tensor, points: Tensor, radius: float, k: int) -> tuple[Tensor, Tensor]:
    """As `ball_query`, and the number of points found (B, M), at most k."""
    return _ball_query("ball_query_count", query, points, radius, k)


def _ball_query(where: str, query: Tensor, points: Tensor, radius: float, k: int) -> tuple[Tensor, Tensor]:
    query, points = check_clouds(where, query=query, points=points)
    check_not_empty(where, points=points)
    if not radius > 0:
        raise UserError(f"{where}: radius must be above 0, got {radius}")
    return operators.ball_query(query, points, float(radius), check_count(where, "k", k))
