"""SampleNet: a network that imagines M points for a task and projects them onto the cloud (arXiv 1912.03663).

Training: free points, softly projected, so that the task's gradient reaches the network. Evaluation: points of the
cloud itself. B clouds, N points, M chosen points, K neighbours, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch import Tensor

from extensions import ops
from models.layers.point_mlp import Init, dense_stack, init_glorot, pooled
from models.samplers.base import Sampled, Sampler, check_enough
from models.samplers.losses import simplification_loss
from models.samplers.matching import match
from models.samplers.projection import SoftProjection
from utils.random import BatchRandom


class SampleNet(Sampler):
    """Defaults: the published registration sampler. What the other two published samplers do otherwise:

    classification: norm_output, layout points, bn_eps 1e-3, min_sigma 0, init glorot, projection_group_size 7, alpha
    30, lmbda 1. reconstruction: mlp 64 128 128 256, head 256 256, norm_head false, layout points, min_sigma 1e-4, floor
    temperature, projection_group_size 16, alpha 0.01, lmbda 1e-4, gamma 0, delta 1/64.

    layout: the last layer gives all x, all y, all z ("coordinates"), or point after point ("points").
    project: false trains the task on the free points themselves (S-NET); evaluation matches all the same.
    match: false leaves evaluation with the free points. complete: false leaves repeated points in.
    """

    def __init__(
        self,
        num_out: int = 64,
        bottleneck: int = 128,
        projection_group_size: int = 8,
        mlp: Sequence[int] = (64, 64, 64, 128),
        head: Sequence[int] = (256, 256, 256),
        norm_head: bool = True,
        norm_output: bool = False,
        layout: Literal["coordinates", "points"] = "coordinates",
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
        init: Init = "torch",
        project: bool = True,
        init_temperature: float = 1.0,
        learn_temperature: bool = True,
        min_sigma: float = 1e-2,
        floor: Literal["sigma", "temperature"] = "sigma",
        match: bool = True,
        complete: bool = True,
        alpha: float = 0.01,
        lmbda: float = 0.01,
        gamma: float = 1.0,
        delta: float = 0.0,
    ):
        super().__init__(num_out)
        norms: dict[str, Any] = {"bn_eps": bn_eps, "bn_momentum": bn_momentum}
        self.mlp = dense_stack([3, *mlp, bottleneck], **norms)
        self.head = dense_stack(
            [bottleneck, *head, 3 * num_out], norm=norm_head, norm_last=norm_output, relu_last=False, **norms
        )
        # without a projection there is no temperature to learn
        self.project = SoftProjection(
            projection_group_size, init_temperature, learn_temperature and project, min_sigma, floor
        )
        self.projects, self.matches, self.complete, self.layout = project, match, complete, layout
        self.alpha, self.lmbda, self.gamma, self.delta = alpha, lmbda, gamma, delta
        if init == "glorot":
            self.apply(init_glorot)

    def simplify(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> free points (B, M, 3)."""
        vector = self.head(pooled(self.mlp, points)).float()  # (B, 3M)
        return vector.unflatten(1, (-1, 3)) if self.layout == "points" else vector.unflatten(1, (3, -1)).mT.contiguous()

    def forward(self, points: Tensor, rng: BatchRandom | None = None) -> Sampled:
        check_enough(self.num_out, points)
        simplified = self.simplify(points)
        if not self.training:
            return self.select(simplified, points, self.num_out)
        chosen = self.project(simplified, points) if self.projects else simplified
        return Sampled(simplified, chosen, None, self.losses(simplified, points))

    def losses(self, simplified: Tensor, points: Tensor) -> dict[str, Tensor]:
        """What is added to the task's loss: alpha * simplification + lmbda * projection, and the terms."""
        simplification = self.simplification(simplified, points.float())
        if not self.projects:
            return {"loss": self.alpha * simplification, "simplification": simplification}
        sigma = self.project.sigma
        loss = self.alpha * simplification + self.lmbda * sigma
        return {"loss": loss, "simplification": simplification, "projection": sigma}

    def simplification(self, simplified: Tensor, points: Tensor) -> Tensor:
        return simplification_loss(simplified, points, self.gamma, self.delta)

    def select(self, simplified: Tensor, points: Tensor, num_out: int) -> Sampled:
        """Points of the cloud that stand for the free ones."""
        if not self.matches:
            return Sampled(simplified, simplified[:, :num_out], None, {})
        indices = match(simplified, points, num_out, self.complete)
        return Sampled(simplified, ops.gather_points(points, indices), indices, {})

    @staticmethod
    def key_map(key: str) -> str | None:
        """Names of the official registration code in ours: conv1..5, bn1..5, fc1..4, bn_fc1..3, project._temperature;
        and of the reconstruction's sampler, which is an autoencoder by its names."""
        if key.startswith("decoder."):
            return "head." + key.removeprefix("decoder.")
        name, _, rest = key.partition(".")
        for official, ours, part in (
            ("conv", "mlp", "linear"), ("bn_fc", "head", "norm"), ("bn", "mlp", "norm"), ("fc", "head", "linear"),
        ):  # fmt: skip
            number = name.removeprefix(official)
            if number != name and number.isdecimal():
                return f"{ours}.{int(number) - 1}.{part}.{rest}"
        return "project.temperature" if key == "project._temperature" else key
