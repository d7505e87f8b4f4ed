"""Patches to tokens: a mini-PointNet on every patch.

B clouds, G patches, K points a patch, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Point MLP, max over the patch, the maximum joined to every point, a second point MLP, max again.

    width: features of a point after the first MLP; the published networks have 256.
    """

    def __init__(self, embed_dim: int = 384, width: int = 256):
        super().__init__()
        half, double = width // 2, width * 2
        self.first = nn.Sequential(nn.Linear(3, half), nn.BatchNorm1d(half), nn.ReLU(), nn.Linear(half, width))
        self.second = nn.Sequential(
            nn.Linear(double, double), nn.BatchNorm1d(double), nn.ReLU(), nn.Linear(double, embed_dim)
        )

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(B, G, K, 3) -> (B, G, C)."""
        batch, num_group, size, _ = neighborhood.shape
        x = self.first(neighborhood.reshape(-1, 3))  # (B*G*K, width)
        x = self._join_maximum(x.unflatten(0, (-1, size)))  # (B*G*K, 2 * width)
        x = self.second[1:](x)  # (B*G*K, C)
        return x.reshape(batch, num_group, size, -1).amax(dim=2)

    def _join_maximum(self, x: Tensor) -> Tensor:
        """Linear(concat(max over patch, x)) with the weight split, so that nothing is repeated or concatenated."""
        joint = self.second[0]
        assert isinstance(joint, nn.Linear)
        of_maximum, of_point = joint.weight.split(x.shape[-1], dim=1)
        patch = F.linear(x.amax(dim=1), of_maximum, joint.bias)  # (B*G, 2 * width)
        return (F.linear(x, of_point) + patch[:, None]).flatten(0, 1)
