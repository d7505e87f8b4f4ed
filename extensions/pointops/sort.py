"""Sorting."""

from torch import Tensor

from extensions.library import operators
from utils.errors import UserError


def sort_order(keys: Tensor) -> Tensor:
    """Indices (..., n), int64, that sort the last dimension of floating point numbers ascending.

    Equal numbers keep their order (-0 equals 0), NaN comes last. Not differentiable.
    """
    if not keys.is_floating_point() or keys.ndim == 0:
        raise UserError(
            f"sort_order: keys must be (..., n) floating point numbers, got {keys.dtype} {tuple(keys.shape)}"
        )
    return operators.sort_order(keys.detach())
