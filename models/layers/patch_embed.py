"""Patches to tokens: a mini-PointNet on every patch.

B clouds, G patches, K points a patch, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import features

Embed = Literal["all", "visible_only"]  # which patches a masked auto-encoder embeds


class PatchEmbed(nn.Module):
    """Point MLP, max over the patch, the maximum joined to every point, a second point MLP, max again.

    in_channels: 3 for coordinates, or the channels of finer tokens that a hierarchy merges.
    width: features of a point after the first MLP; the published networks have 256.
    hidden: inner widths of the two MLPs; published: half and twice the width.
    """

    def __init__(
        self,
        embed_dim: int = 384,
        width: int = 256,
        in_channels: int = 3,
        hidden: tuple[int, int] | None = None,
    ):
        super().__init__()
        inner, outer = hidden or (width // 2, width * 2)
        self.first = nn.Sequential(
            nn.Linear(in_channels, inner), nn.BatchNorm1d(inner), nn.ReLU(inplace=True), nn.Linear(inner, width)
        )
        self.second = nn.Sequential(
            nn.Linear(2 * width, outer), nn.BatchNorm1d(outer), nn.ReLU(inplace=True), nn.Linear(outer, embed_dim)
        )

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(B, G, K, in_channels) -> (B, G, C)."""
        batch, num_group, size, channels = neighborhood.shape
        points = neighborhood.reshape(-1, channels)  # (B*G*K, in_channels)
        x = self._looking(points, size) if self._only_looks() else self._learning(points, size)  # (B*G*K, C)
        return features.group_max(x.unflatten(0, (batch, num_group, size)))

    def _learning(self, points: Tensor, size: int) -> Tensor:
        x = self._lift(points).unflatten(0, (-1, size))  # (B*G, K, inner)
        return self._norm_relu_linear(*self._join_maximum(x))

    def _only_looks(self) -> bool:
        return not (self.training or torch.is_grad_enabled())

    def _looking(self, points: Tensor, size: int) -> Tensor:
        """Without gradient and with fixed statistics each BatchNorm is part of the layer before it."""
        first, last = self.first[0], self.second[3]
        assert isinstance(first, nn.Linear)
        x = F.linear(points, *_folded(first, self.first[1])).relu_()
        of_point, of_patch = self._join_maximum(x.unflatten(0, (-1, size)), self.second[1])
        return last(of_point.add_(of_patch[:, None]).flatten(0, 1).relu_())

    def _lift(self, points: Tensor) -> Tensor:
        """relu(norm(linear)) of (rows, in_channels) -> (rows, inner)."""
        linear, norm = self.first[0], self.first[1]
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else torch.float32
        coordinates = points.shape[1] == 3 and points.dtype == torch.float32 and not points.requires_grad
        if not (coordinates and dtype in features.TYPES and features.plain(linear) and features.fits(norm, points)):
            return self.first[:3](points)
        return features.lift_norm_relu(points, linear, norm, dtype)

    def _join_maximum(self, x: Tensor, norm: nn.Module | None = None) -> tuple[Tensor, Tensor]:
        """Of x (patches, K, inner) what every point (patches, K, outer) and what its patch (patches, outer) adds to
        second[0](concat(max over patch of first[3](x), first[3](x))). The weight is split: nothing is repeated or
        concatenated; as no non-linearity stands between the two layers, a point goes through their product."""
        local, joint = self.first[3], self.second[0]
        assert isinstance(local, nn.Linear) and isinstance(joint, nn.Linear)
        weight, bias = (joint.weight, joint.bias) if norm is None else _folded(joint, norm)
        of_maximum, of_point = weight.split(local.out_features, dim=1)
        maximum = features.group_max(local(x))  # (patches, width)
        patch = F.linear(maximum, of_maximum, bias + of_point @ local.bias)
        return F.linear(x, of_point @ local.weight), patch

    def _norm_relu_linear(self, points: Tensor, patch: Tensor) -> Tensor:
        """The rest of the second MLP: (patches, K, outer), (patches, outer) -> (patches * K, C)."""
        norm, linear = self.second[1], self.second[3]
        if features.fits(norm, points) and features.plain(linear):
            return features.norm_relu_linear(points, norm, linear, patch)
        return self.second[1:](points.add_(patch[:, None]).flatten(0, 1))


def _folded(layer: nn.Linear, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer and the BatchNorm with fixed statistics behind it."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return layer.weight * scale[:, None], (layer.bias - norm.running_mean) * scale + norm.bias
