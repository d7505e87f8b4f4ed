"""Layers that see every point alone: they work on rows, whatever the points are arranged in."""

from __future__ import annotations

from torch import Tensor, nn


def on_rows(layers: nn.Module, x: Tensor) -> Tensor:
    """(..., C) -> (..., C'): BatchNorm takes its statistics over all positions."""
    return layers(x.flatten(0, -2)).unflatten(0, x.shape[:-1])


def linear_norm(inputs: int, outputs: int, bias: bool = True, slope: float = 0.0) -> nn.Sequential:
    """Linear, BatchNorm, ReLU, or a leaky one where there is a slope."""
    activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return nn.Sequential(nn.Linear(inputs, outputs, bias), nn.BatchNorm1d(outputs), activation)
