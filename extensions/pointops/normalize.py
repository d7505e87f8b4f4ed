"""The standard place of a cloud."""

from torch import Tensor

from extensions.library import operators

from .check import check_clouds, check_not_empty


def normalize(points: Tensor) -> Tensor:
    """(B, N, 3) clouds moved to mean 0 and scaled to largest radius 1. Equal points stay at 0. A cloud with a
    coordinate that is not finite becomes NaN as a whole. Not differentiable."""
    (points,) = check_clouds("normalize", points=points)
    check_not_empty("normalize", points=points)
    return operators.normalize(points)
