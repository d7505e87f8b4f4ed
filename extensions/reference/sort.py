"""The order of numbers."""

import torch
from torch import Tensor


@torch.no_grad()
def sort_order(keys: Tensor) -> Tensor:
    """Indices (..., n) that sort the last dimension ascending; equal numbers keep their order, NaN comes last."""
    return keys.sort(dim=-1, stable=True).indices
