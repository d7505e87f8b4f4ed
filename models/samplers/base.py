"""What every sampler returns, and what a person may rely on.

B clouds, N points, M chosen points.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from utils.errors import UserError
from utils.random import BatchRandom


class Sampled(NamedTuple):
    """simplified: points as the sampler imagined them (for plain samplers the chosen ones). points: what the task gets.
    indices: their places in the cloud, None where they are mixtures of points (learned samplers while training).
    losses: the terms, and `loss`, their weighted sum, to be added to the task's loss; empty where nothing is learned.
    """

    simplified: Tensor  # (B, M, 3)
    points: Tensor  # (B, M, 3)
    indices: Tensor | None  # (B, M)
    losses: dict[str, Tensor]

    @property
    def loss(self) -> Tensor:
        """The weighted sum; zero where nothing is learned."""
        return self.losses.get("loss", self.points.new_zeros(()))


class Sampler(nn.Module):
    """forward(points (B, N, 3), rng) -> Sampled. train() and eval() alone switch between soft and exact points.

    sizes: the nested samples a task is trained on, smallest first; empty for samplers that make one sample.
    """

    sizes: tuple[int, ...] = ()
    summed = False  # over the nested samples the task's loss is summed, else averaged

    def __init__(self, num_out: int):
        super().__init__()
        if num_out < 1:
            raise UserError(f"num_out: {num_out}; a sample has at least 1 point")
        self.num_out = num_out

    def forward(self, points: Tensor, rng: BatchRandom | None = None) -> Sampled:
        """Abstract."""
        raise NotImplementedError


def check_enough(num_out: int, points: Tensor) -> None:
    """A sample has at most as many points as the cloud."""
    if points.ndim != 3 or points.shape[2] != 3:
        raise UserError(f"sampler: points must be (B, N, 3), got {tuple(points.shape)}")
    if num_out > points.shape[1]:
        raise UserError(f"sampler: num_out {num_out} is more than the {points.shape[1]} points of a cloud")


def draws(training: bool, points: Tensor, rng: BatchRandom | None) -> BatchRandom:
    """The source of random numbers: the one given; else from torch's own state, or always the same for evaluation."""
    if rng is not None:
        return rng
    if training:
        return BatchRandom(int(torch.randint(2**31, ())), points.device)
    return BatchRandom(0, points.device, rank=0, world=1)
