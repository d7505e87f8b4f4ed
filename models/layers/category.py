"""What a segmentation network is told about the category of a cloud."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError


def category_features(label: nn.Module, category: Tensor | None, num_categories: int) -> Tensor:
    """Categories (B,) through the small network `label`: (B, its width)."""
    if category is None:
        raise UserError(f"category: this network knows {num_categories} categories and needs that of a cloud")
    one_hot = F.one_hot(category, num_categories)
    return label(one_hot.type_as(next(label.parameters())))
