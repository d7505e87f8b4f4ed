"""Stacks of linear layers for points and for vectors: Linear, BatchNorm where wanted, ReLU."""

from __future__ import annotations

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
        x = self.linear(x)
        if self.norm is not None:
            x = self.norm(x.flatten(0, -2)).view_as(x)
        return x.relu() if self.relu else x


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
    for place, (before, after) in enumerate(zip(widths, widths[1:])):
        last = place == len(widths) - 2
        has_norm = norm_last if last and norm_last is not None else norm
        layers.append(Dense(before, after, has_norm, relu_last or not last, bn_eps, bn_momentum))
    return nn.Sequential(*layers)


def init_glorot(module: nn.Module) -> None:
    """Uniform Glorot weights and zero biases, as the TensorFlow programs start."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        nn.init.zeros_(module.bias)
