"""PointNet (arXiv 1612.00593): a network for every point, a maximum, a network for the cloud. Classifier with or
without the networks that align the input (T-Nets), and an autoencoder. The task networks of SampleNet.

B clouds, N points, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.layers.extra import WithLosses
from models.layers.point_mlp import Init, dense_stack, init_glorot, pooled


class AlignNet(nn.Module):
    """A T-Net: (B, N, K) -> the matrix (B, K, K) that points are multiplied with, at first the identity."""

    def __init__(self, channels: int, bn_eps: float, bn_momentum: float):
        super().__init__()
        norms: dict[str, Any] = {"bn_eps": bn_eps, "bn_momentum": bn_momentum}
        self.mlp = dense_stack([channels, 64, 128, 1024], **norms)
        self.head = dense_stack([1024, 512, 256], **norms)
        self.matrix = nn.Linear(256, channels**2)

    def reset(self) -> None:
        """Start with the identity."""
        nn.init.zeros_(self.matrix.weight)
        nn.init.zeros_(self.matrix.bias)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.matrix(self.head(pooled(self.mlp, x))).float()
        matrix = flat.unflatten(1, (x.shape[2], x.shape[2]))
        return matrix + torch.eye(x.shape[2], device=x.device)


class PointNetClassifier(nn.Module):
    """transforms: with T-Nets for coordinates and features; while training they bring along a loss that keeps the
    matrix of the features orthogonal, transform_weight * half the squared deviation, summed over the batch."""

    def __init__(
        self,
        num_classes: int,
        transforms: bool = False,
        mlp: Sequence[int] = (64, 64, 64, 128, 1024),
        head: Sequence[int] = (512, 256),
        dropout: float = 0.3,
        transform_weight: float = 1e-3,
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.1,
        init: Init = "glorot",
    ):
        super().__init__()
        norms: dict[str, Any] = {"bn_eps": bn_eps, "bn_momentum": bn_momentum}
        self.num_features, self.transform_weight = mlp[-1], transform_weight
        self.mlp = dense_stack([3, *mlp], **norms)
        self.hidden = dense_stack([mlp[-1], *head], **norms)
        self.head = nn.Linear(head[-1], num_classes)
        self.dropout, self.drop_everywhere = nn.Dropout(dropout), transforms
        self.align_points = AlignNet(3, bn_eps, bn_momentum) if transforms else None
        self.align_features = AlignNet(mlp[1], bn_eps, bn_momentum) if transforms else None
        if init == "glorot":
            self.apply(init_glorot)
        for net in (self.align_points, self.align_features):
            if net is not None:
                net.reset()

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> features of the points (B, N, C)."""
        x, rest, _ = self.align(points)
        return rest(x)

    def align(self, points: Tensor) -> tuple[Tensor, nn.Sequential, Tensor | None]:
        """What the layers that are left go on from, those layers, and the matrix of the features (B, K, K)."""
        if self.align_points is None or self.align_features is None:
            return points, self.mlp, None
        x = self.mlp[:2](apply_matrix(points, self.align_points(points)))
        matrix = self.align_features(x)
        return apply_matrix(x, matrix), self.mlp[2:], matrix

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> maximum over the points (B, C)."""
        x, rest, _ = self.align(points)
        return pooled(rest, x)

    def retrieval_vector(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> what stands before the last layer (B, head[-1])."""
        return self._vector(self.encode(points))

    def _vector(self, x: Tensor) -> Tensor:
        for place, layer in enumerate(self.hidden):
            x = layer(x)
            # the vanilla network drops once, before the last layer
            x = self.dropout(x) if self.drop_everywhere or place == len(self.hidden) - 1 else x
        return x

    def forward(self, points: Tensor) -> Tensor | WithLosses:
        """(B, N, 3) -> logits (B, num_classes); while training with T-Nets together with their loss."""
        out = self.with_losses(points)
        return out if self.training and out.losses else out.answers[0]

    def with_losses(self, points: Tensor) -> WithLosses:
        """Logits and the loss of the T-Nets, whatever the mode."""
        x, rest, matrix = self.align(points)
        logits = self.head(self._vector(pooled(rest, x)))
        return WithLosses((logits,), {} if matrix is None else self._regulariser(matrix))

    def _regulariser(self, matrix: Tensor) -> dict[str, Tensor]:
        with torch.autocast(matrix.device.type, enabled=False):
            deviation = matrix @ matrix.mT - torch.eye(matrix.shape[1], device=matrix.device)
        loss = self.transform_weight * deviation.square().sum() / 2
        return {"loss": loss, "transform": loss}


def apply_matrix(x: Tensor, matrix: Tensor) -> Tensor:
    """(B, N, K) times (B, K, K), points as rows."""
    return x @ matrix.to(x.dtype)


class PointNetAutoEncoder(nn.Module):
    """Any number of points -> one vector -> `num_points` points."""

    def __init__(
        self,
        num_points: int = 2048,
        mlp: Sequence[int] = (64, 128, 128, 256),
        bottleneck: int = 128,
        decoder: Sequence[int] = (256, 256),
        bn_eps: float = 1e-5,
        bn_momentum: float = 0.1,
    ):
        super().__init__()
        self.num_features = bottleneck
        self.mlp = dense_stack([3, *mlp, bottleneck], bn_eps=bn_eps, bn_momentum=bn_momentum)
        self.decoder = dense_stack([bottleneck, *decoder, 3 * num_points], norm=False, relu_last=False)

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> features of the points (B, N, C)."""
        return self.mlp(points)

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> the code (B, C)."""
        return pooled(self.mlp, points)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> reconstruction (B, num_points, 3)."""
        return self.decoder(self.encode(points)).float().unflatten(1, (-1, 3))
