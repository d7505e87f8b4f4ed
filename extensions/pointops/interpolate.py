"""Carrying features from few points to many: the nearest three, weighted."""

from typing import Literal, get_args

import torch
from torch import Tensor

from utils.errors import UserError

from .check import check_clouds, check_not_empty, check_same_device
from .grouping import gather_points
from .neighbours import knn
from .numeric import safe_sqrt

Weighting = Literal["inverse_distance", "inverse_squared"]
TINY = 1e-8  # keeps the weight of a coincident point finite


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """The three nearest of `known` (B, m, 3) for every point of `unknown` (B, n, 3).

    Returns squared distances and indices, both (B, n, 3), ascending, lowest index first among equals. With fewer than
    three known points the missing places have distance inf and index 0, hence no weight.
    """
    unknown, known = check_clouds("three_nn", unknown=unknown, known=known)
    check_not_empty("three_nn", known=known)
    distances, indices = knn(unknown, known, min(3, known.shape[1]))
    missing = 3 - indices.shape[2]
    if missing:
        distances = torch.nn.functional.pad(distances, (0, missing), value=torch.inf)
        indices = torch.nn.functional.pad(indices, (0, missing))
    return distances, indices


def three_nn_weights(distances: Tensor, kind: Weighting) -> Tensor:
    """Weights (B, n, 3), summing to one, for squared distances (B, n, 3).

    Two weightings are in use and differ by per cents: "inverse_distance", 1 / (d + 1e-8), is that of PointNet++'s
    CUDA layers; "inverse_squared", 1 / (d^2 + 1e-8), that of the layers written in plain PyTorch.
    """
    if kind not in get_args(Weighting):
        raise UserError(f"three_nn_weights: kind must be one of {get_args(Weighting)}, got {kind!r}")
    inverse = 1 / ((safe_sqrt(distances) if kind == "inverse_distance" else distances) + TINY)
    return inverse / inverse.sum(-1, keepdim=True)


def three_interpolate(features: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums of rows: features (B, m, C), indices and weights (B, n, K) -> (B, n, C), in the features' dtype.

    Differentiable in features and weights.
    """
    if indices.ndim != 3 or weights.shape != indices.shape:
        raise UserError(
            f"three_interpolate: indices and weights must both be (B, n, 3), "
            f"got {tuple(indices.shape)} and {tuple(weights.shape)}"
        )
    check_same_device("three_interpolate", "indices", indices, "weights", weights)
    return (gather_points(features, indices) * weights.unsqueeze(3)).sum(2).to(features.dtype)
