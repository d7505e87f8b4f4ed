"""Carrying features from few points to many: the nearest three, weighted."""

from typing import Literal, get_args

import torch
from torch import Tensor

from extensions.library import operators
from utils.errors import UserError

from .check import check_clouds, check_indices, check_not_empty, check_same_device
from .grouping import gather_points
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
    distances, indices = operators.three_nn(unknown, known)
    if torch.is_grad_enabled() and (unknown.requires_grad or known.requires_grad):
        found = known.shape[1]
        measured = (unknown[:, :, None] - gather_points(known, indices[..., :found])).square().sum(3)
        distances = torch.cat([measured, distances[..., found:]], 2)
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
    check_indices("three_interpolate", indices, "features", features)
    precision = torch.promote_types(torch.promote_types(features.dtype, weights.dtype), torch.float32)
    out = operators.three_interpolate(features.to(precision), indices, weights.to(precision))
    return out.to(features.dtype)
