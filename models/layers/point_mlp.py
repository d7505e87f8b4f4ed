"""Stacks of linear layers for points and for vectors: Linear, BatchNorm where wanted, ReLU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

Init = Literal["torch", "glorot"]


class Dense(nn.Module):
    """Linear, BatchNorm, ReLU on (..., C); statistics are taken over everything but C."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        norm: bool = True,
        relu: bool = True,
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
    ):
        super().__init__()
        self.linear = nn.Linear(in_channels, out_channels)
        self.norm = nn.BatchNorm1d(out_channels, eps=bn_eps, momentum=bn_momentum) if norm else None
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        x = self.normed(x)
        return x.relu_() if self.relu else x

    def normed(self, x: Tensor) -> Tensor:
        """Without the ReLU."""
        x = self.linear(x)
        return x if self.norm is None else self.norm(x.flatten(0, -2)).view_as(x)


def dense_stack(
    widths: Sequence[int],
    *,
    norm: bool = True,
    norm_last: bool | None = None,
    relu_last: bool = True,
    bn_eps: float = 1e-5,
    bn_momentum: float = 0.1,
) -> nn.Sequential:
    """Layers between consecutive widths; the last one may go without BatchNorm or ReLU."""
    layers = []
    for place, (before, after) in enumerate(itertools.pairwise(widths)):
        last = place == len(widths) - 2
        has_norm = norm_last if last and norm_last is not None else norm
        layers.append(Dense(before, after, has_norm, relu_last or not last, bn_eps, bn_momentum))
    return nn.Sequential(*layers)


def pooled(stack: nn.Sequential, x: Tensor) -> Tensor:
    """Maximum over the points (B, N, C) -> (B, C') of what a stack makes of them. Its last ReLU comes after the
    maximum, which changes nothing but works on N times fewer numbers."""
    *first, last = stack
    assert isinstance(last, Dense) and last.relu
    for layer in first:
        x = layer(x)
    x = last.normed(x)
    # where a gradient is wanted, the index of the maximum is kept for it instead of all of x
    return (x.max(dim=1).values if x.requires_grad else x.amax(dim=1)).relu()


def init_glorot(module: nn.Module) -> None:
    """Uniform Glorot weights and zero biases, as the TensorFlow programs start."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
