"""Patches to tokens: a mini-PointNet on every patch.

B clouds, G patches, K points a patch, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class PatchEmbed(nn.Module):
    """Point MLP, max over the patch, the maximum joined to every point, a second point MLP, max again."""

    def __init__(self, embed_dim: int = 384):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 256))
        self.second = nn.Sequential(nn.Linear(512, 512), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, embed_dim))

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(B, G, K, 3) -> (B, G, C)."""
        batch, num_group, size, _ = neighborhood.shape
        x = self.first(neighborhood.reshape(-1, 3))  # (B*G*K, 256)
        x = self._join_maximum(x.reshape(-1, size, 256))  # (B*G*K, 512)
        x = self.second[1:](x)  # (B*G*K, C)
        return x.reshape(batch, num_group, size, -1).amax(dim=2)

    def _join_maximum(self, x: Tensor) -> Tensor:
        """Linear(concat(max over patch, x)) with the weight split, so that nothing is repeated or concatenated."""
        joint = self.second[0]
        assert isinstance(joint, nn.Linear)
        of_maximum, of_point = joint.weight.split(x.shape[-1], dim=1)
        patch = F.linear(x.amax(dim=1), of_maximum, joint.bias)  # (B*G, 512)
        return (F.linear(x, of_point) + patch[:, None]).flatten(0, 1)
