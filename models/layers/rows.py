"""Layers that see every point alone: they work on rows, whatever the points are arranged in."""

from __future__ import annotations

from torch import Tensor, nn

from extensions import features


class Rows(nn.Sequential):
    """Layers for (..., C): BatchNorm takes its statistics over all positions, and a ReLU behind it is part of its pass
    where that can be."""

    def forward(self, x: Tensor) -> Tensor:
        rows, rest = x.flatten(0, -2), list(self)
        while rest:
            layer = rest.pop(0)
            if rest and type(rest[0]) is nn.ReLU and features.fits(layer, rows):
                rest.pop(0)
                rows = features.norm_relu(rows, layer)
            else:
                rows = layer(rows)
        return rows.unflatten(0, x.shape[:-1])


def linear_norm(inputs: int, outputs: int, bias: bool = True, slope: float = 0.0) -> Rows:
    """Linear, BatchNorm, ReLU, or a leaky one where there is a slope."""
    activation = nn.LeakyReLU(slope) if slope else nn.ReLU()
    return Rows(nn.Linear(inputs, outputs, bias), nn.BatchNorm1d(outputs), activation)
