"""The teacher that follows the student: an exponential moving average of weights and of statistics."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def decay_at(epoch: int, start: float, end: float, ramp_epochs: int) -> float:
    """Rises linearly from `start` to `end`, which it has after `ramp_epochs`."""
    return start + (end - start) * epoch / ramp_epochs if epoch < ramp_epochs else end


@torch.no_grad()
def follow(average: nn.Module, model: nn.Module, decay: float, buffers: bool = True) -> None:
    """average = decay * average + (1 - decay) * model; whole numbers are cut off. buffers: else they are copied."""
    torch._foreach_lerp_(list(average.parameters()), list(model.parameters()), 1 - decay)
    for mean, value in zip(average.buffers(), model.buffers()):
        mean.copy_(_mixed(mean, value, decay) if buffers else value)


def _mixed(mean: Tensor, value: Tensor, decay: float) -> Tensor:
    return mean * decay + value * (1 - decay)  # a whole number is floating here, and cut off where it is copied to
