"""Patches to tokens: a mini-PointNet on every patch.

B clouds, G patches, K points a patch, C channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
        return _maximum(x.unflatten(0, (-1, size))).unflatten(0, (batch, num_group))

    def _learning(self, points: Tensor, size: int) -> Tensor:
        x = self.first[:3](points)  # (B*G*K, inner)
        x = self._join_maximum(x, size)  # (B*G*K, outer)
        return self.second[1:](x)

    def _only_looks(self) -> bool:
        return not (self.training or torch.is_grad_enabled())

    def _looking(self, points: Tensor, size: int) -> Tensor:
        """Without gradient and with fixed statistics each BatchNorm is part of the layer before it."""
        first, last = self.first[0], self.second[3]
        assert isinstance(first, nn.Linear)
        x = F.linear(points, *_folded(first, self.first[1])).relu_()
        return last(self._join_maximum(x, size, self.second[1]).relu_())

    def _join_maximum(self, x: Tensor, size: int, norm: nn.Module | None = None) -> Tensor:
        """second[0](concat(max over patch of first[3](x), first[3](x))) with the weight split: nothing is repeated or
        concatenated, and as no non-linearity stands between the two layers, a point goes through their product."""
        local, joint = self.first[3], self.second[0]
        assert isinstance(local, nn.Linear) and isinstance(joint, nn.Linear)
        weight, bias = (joint.weight, joint.bias) if norm is None else _folded(joint, norm)
        of_maximum, of_point = weight.split(local.out_features, dim=1)
        maximum = _maximum(local(x).unflatten(0, (-1, size)))  # (B*G, width)
        patch = F.linear(maximum, of_maximum, bias + of_point @ local.bias)  # (B*G, outer)
        points = F.linear(x.unflatten(0, (-1, size)), of_point @ local.weight)  # (B*G, K, outer)
        return points.add_(patch[:, None]).flatten(0, 1)


def _folded(layer: nn.Linear, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the layer and the BatchNorm with fixed statistics behind it."""
    assert isinstance(norm, nn.modules.batchnorm._BatchNorm)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return layer.weight * scale[:, None], (layer.bias - norm.running_mean) * scale + norm.bias


def _maximum(x: Tensor) -> Tensor:
    """(R, K, C) -> (R, C). Where a gradient is wanted, the index of the maximum is kept for it instead of all of x."""
    return x.max(dim=1).values if x.requires_grad else x.amax(dim=1)
