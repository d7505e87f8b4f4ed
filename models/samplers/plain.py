"""Samplers without parameters: a random subset, farthest points."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from extensions import ops
from models.samplers.base import Sampled, Sampler, check_enough, draws
from utils.random import BatchRandom


class RandomSampler(Sampler):
    """A random subset, another one for every cloud; in eval mode the same one at every call."""

    def forward(self, points: Tensor, rng: BatchRandom | None = None) -> Sampled:
        check_enough(self.num_out, points)
        rng = draws(self.training, points, rng)
        indices = rng.uniform(*points.shape[:2]).to(points.device).argsort(dim=1)[:, : self.num_out]
        return exact(points, indices)


class FPSSampler(Sampler):
    """Farthest point sampling.

    start: "first" point of the cloud, a "random" one (in eval mode always the same), or the "mean" of the cloud, which
    makes the sample independent of the order of the points. skip_near_origin: as in `ops.farthest_point_sample`.
    """

    def __init__(
        self, num_out: int, start: Literal["first", "random", "mean"] = "first", skip_near_origin: bool = False
    ):
        super().__init__(num_out)
        self.start, self.skip_near_origin = start, skip_near_origin

    def forward(self, points: Tensor, rng: BatchRandom | None = None) -> Sampled:
        check_enough(self.num_out, points)
        if self.start == "random":
            rng = draws(self.training, points, rng)
            first = (rng.uniform(len(points)).to(points.device) * points.shape[1]).long().clamp(max=points.shape[1] - 1)
            # the cloud turned so that its own start stands at place 0
            turn = (torch.arange(points.shape[1], device=points.device) + first[:, None]) % points.shape[1]
            indices = turn.gather(1, self._farthest(ops.gather_points(points, turn), 0))
        else:
            indices = self._farthest(points, "mean" if self.start == "mean" else 0)
        return exact(points, indices)

    def _farthest(self, points: Tensor, start: int | str) -> Tensor:
        return ops.farthest_point_sample(
            points.detach(), self.num_out, start=start, skip_near_origin=self.skip_near_origin
        )


def exact(points: Tensor, indices: Tensor) -> Sampled:
    """The points at these places, and nothing learned."""
    chosen = ops.gather_points(points, indices)
    return Sampled(chosen, chosen, indices, {})
