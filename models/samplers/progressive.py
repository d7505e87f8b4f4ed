"""SampleNet-Progressive: one network orders a cloud so that every prefix is a sample.

B clouds, N points, M free points, S nested sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from torch import Tensor

from models.layers.point_mlp import Init
from models.samplers.base import Sampled, check_enough
from models.samplers.losses import nested_simplification_loss
from models.samplers.matching import match
from models.samplers.samplenet import SampleNet
from utils.errors import UserError
from utils.random import BatchRandom


class ProgressiveSampleNet(SampleNet):
    """Trained on the nested prefixes `sizes` (default: powers of two from 8 to num_out) of its num_out free points.

    eval_size: how many points evaluation gets; default num_out. reduction: the task's and the simplification loss are
    summed over the sizes (published for classification, gamma 0.5, delta 1/30) or averaged (for reconstruction, gamma
    0, delta 1/64). Everything else is as in SampleNet.
    """

    def __init__(
        self,
        num_out: int = 1024,
        sizes: Sequence[int] | None = None,
        eval_size: int | None = None,
        reduction: Literal["sum", "mean"] = "sum",
        bottleneck: int = 128,
        projection_group_size: int = 7,
        mlp: Sequence[int] = (64, 64, 64, 128),
        head: Sequence[int] = (256, 256, 256),
        norm_head: bool = True,
        norm_output: bool = True,
        layout: Literal["coordinates", "points"] = "points",
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
        init: Init = "glorot",
        init_temperature: float = 1.0,
        learn_temperature: bool = True,
        min_sigma: float = 1e-4,
        floor: Literal["sigma", "temperature"] = "sigma",
        alpha: float = 30.0,
        lmbda: float = 1.0,
        gamma: float = 0.5,
        delta: float = 1 / 30,
    ):
        super().__init__(
            num_out, bottleneck, projection_group_size, mlp, head, norm_head, norm_output, layout, bn_eps, bn_momentum,
            init, True, init_temperature, learn_temperature, min_sigma, floor, True, True, alpha, lmbda, gamma, delta,
        )  # fmt: skip
        self.sizes = tuple(sizes) if sizes is not None else tuple(2**i for i in range(3, num_out.bit_length()))
        self.summed, self.eval_size = reduction == "sum", num_out if eval_size is None else eval_size
        if not self.sizes or sorted(set(self.sizes)) != list(self.sizes) or self.sizes[0] < 1:
            raise UserError(f"sizes: {list(self.sizes)} must ascend from at least 1")
        if max(self.sizes) > num_out or self.eval_size < 1:
            raise UserError(f"sizes up to {max(self.sizes)} and eval_size {self.eval_size} with num_out {num_out}")

    def forward(self, points: Tensor, rng: BatchRandom | None = None) -> Sampled:
        check_enough(max(self.sizes) if self.training else self.eval_size, points)
        simplified = self.simplify(points)
        if not self.training:
            return self.select(simplified, points, self.eval_size)
        return Sampled(simplified, self.project(simplified, points), None, self.losses(simplified, points))

    def simplification(self, simplified: Tensor, points: Tensor) -> Tensor:
        return nested_simplification_loss(simplified, points, self.sizes, self.gamma, self.delta, self.summed)

    def order(self, points: Tensor) -> Tensor:
        """Indices (B, N) of all points of the clouds (B, N, 3), best first: the first m of them are the sample of m."""
        return match(self.simplify(points), points, points.shape[1])
