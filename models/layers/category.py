"""What a network is told besides coordinates: the category of a cloud, further channels of its points."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError


def category_features(label: nn.Module, category: Tensor | None, num_categories: int) -> Tensor:
    """Categories (B,) through the small network `label`: (B, its width)."""
    return label(one_hot(category, num_categories, next(label.parameters())))


def one_hot(category: Tensor | None, num_categories: int, like: Tensor) -> Tensor:
    """Categories (B,) as rows (B, num_categories) of the type of `like`."""
    if category is None:
        raise UserError(f"category: this network knows {num_categories} categories and needs that of a cloud")
    return F.one_hot(category, num_categories).type_as(like)


def join_features(points: Tensor, features: Tensor | None, extra_channels: int) -> Tensor:
    """(B, N, 3) and further channels (B, N, F) side by side; F must be what the network was made for."""
    found = 0 if features is None else features.shape[-1]
    if found != extra_channels:
        raise UserError(
            f"model.extra_channels: {extra_channels}, but the points come with {found} channels besides coordinates; "
            "set it to that number, or let the data give them (normals: true where a data set has the option)"
        )
    return points if features is None else torch.cat([points, features.to(points.dtype)], dim=-1)
