"""Stacks of linear layers for points and for vectors: Linear, BatchNorm where wanted, ReLU."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from extensions import features

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
        x = self.linear(x)
        if self.fuses(x):
            return self.norm_relu(x)
        x = self.normed(x)
        return x.relu_() if self.relu else x

    def fuses(self, x: Tensor) -> bool:
        """Whether norm and ReLU are one pass over what the linear layer gives."""
        return self.relu and self.norm is not None and features.fits(self.norm, x.flatten(0, -2))

    def norm_relu(self, x: Tensor) -> Tensor:
        assert self.norm is not None
        return features.norm_relu(x.flatten(0, -2), self.norm).view_as(x)

    def normed(self, x: Tensor) -> Tensor:
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
    """Maximum over the points (B, N, C) -> (B, C') of what a stack makes of them. A last ReLU that would be a pass of
    its own comes after the maximum, which changes nothing but works on N times fewer numbers."""
    *first, last = stack
    assert isinstance(last, Dense) and last.relu
    for layer in first:
        x = layer(x)
    x = last.linear(x)
    if last.fuses(x):
        return features.group_max(last.norm_relu(x))
    return features.group_max(last.normed(x)).relu()


def init_glorot(module: nn.Module) -> None:
    """Uniform Glorot weights and zero biases, as the TensorFlow programs start."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
