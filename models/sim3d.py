"""The networks of 3DSimAttention: classifiers over neighbourhoods or points, and a segmenter.

B clouds, N points, G neighbourhoods, K points a neighbourhood, C channels, S parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.layers.attention import AttentionKind
from models.layers.attention.sim import SimAttention
from models.layers.category import category_features
from models.layers.neighbourhood import nearest_l1
from models.samplers.ass import adaptive_sparse_sample
from utils.errors import UserError

EPS = 1e-3  # of the published LayerNorm

Init = Literal["glorot", "torch"]


class AttentionLayer(nn.Module):
    """norm(attention(x) + skip(x)); skip is a layer with ReLU, or nothing ("identity")."""

    def __init__(
        self,
        dim: int,
        out_dim: int,
        num_heads: int = 8,
        attention: AttentionKind | None = None,
        skip: Literal["linear", "identity"] = "linear",
    ):
        super().__init__()
        if skip == "identity" and dim != out_dim:
            raise UserError(f"skip: 'identity' keeps the {dim} channels, but {out_dim} are asked for; use 'linear'")
        self.attention = (attention or SimAttention)(dim, num_heads, out_dim=out_dim)
        self.skip = nn.Sequential(nn.Linear(dim, out_dim), nn.ReLU()) if skip == "linear" else nn.Identity()
        self.norm = nn.LayerNorm(out_dim, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, out_dim)."""
        return self.norm(self.attention(x) + self.skip(x))


class SimNetwork(nn.Module):
    """Attention layers, one after the other. What all networks here share."""

    def __init__(self, in_dim: int, depth: int, embed_dim: int, num_heads: int, attention: AttentionKind | None):
        super().__init__()
        self.num_features = embed_dim
        self.layers = nn.ModuleList(
            AttentionLayer(embed_dim if i else in_dim, embed_dim, num_heads, attention) for i in range(depth)
        )

    def tokens(self, points: Tensor) -> Tensor:
        """What the first layer reads, (B, N, in_dim)."""
        return points

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, N or G, C)."""
        x = self.tokens(points)
        for layer in self.layers:
            x = layer(x)
        return x

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, C): the maximum over the tokens."""
        return self.forward_features(points).amax(dim=1)

    def _start(self, init: Init) -> None:
        if init == "glorot":
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)


class SimPointClassifier(SimNetwork):
    """Point-wise: every point is a token from the first layer on."""

    def __init__(
        self,
        num_classes: int,
        depth: int = 4,
        embed_dim: int = 64,
        num_heads: int = 8,
        attention: AttentionKind | None = None,  # default sim
        init: Init = "glorot",
    ):
        super().__init__(3, depth, embed_dim, num_heads, attention)
        self.head = nn.Linear(embed_dim, num_classes)
        self._start(init)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> logits (B, num_classes)."""
        return self.head(self.encode(points))


class SimNeighbourhoodClassifier(SimNetwork):
    """Neighbourhood-wise: the points around each sampled one become a token.

    relative: points relative to their centre, and the centre beside them; upstream reads plain coordinates.
    """

    def __init__(
        self,
        num_classes: int,
        depth: int = 4,
        embed_dim: int = 64,
        num_heads: int = 8,
        token_dim: int = 32,
        num_group: int = 72,
        group_size: int = 32,
        sampling: Literal["fps", "ass"] = "fps",
        relative: bool = False,
        attention: AttentionKind | None = None,  # default sim
        init: Init = "glorot",
    ):
        super().__init__(token_dim, depth, embed_dim, num_heads, attention)
        self.num_group, self.group_size, self.sampling, self.relative = num_group, group_size, sampling, relative
        self.pool = NeighbourhoodPool(6 if relative else 3, token_dim)
        self.head = nn.Linear(embed_dim, num_classes)
        self._start(init)

    def tokens(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, G, token_dim)."""
        if self.sampling == "ass":
            center = adaptive_sparse_sample(points, self.num_group)[0]
        else:
            center = ops.gather_points(points, ops.farthest_point_sample(points, self.num_group, start="mean"))
        members = ops.gather_points(points, nearest_l1(center, points, self.group_size))  # (B, G, K, 3)
        if self.relative:
            around = center[:, :, None].expand_as(members)
            members = torch.cat([members - around, around], dim=-1)
        return self.pool(members)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> logits (B, num_classes)."""
        return self.head(self.encode(points))


class NeighbourhoodPool(nn.Module):
    """Members of a neighbourhood to a token: a layer, the maximum, a layer."""

    def __init__(self, in_channels: int, dim: int):
        super().__init__()
        self.first = nn.Linear(in_channels, 2 * dim)
        self.second = nn.Linear(2 * dim, dim)

    def forward(self, members: Tensor) -> Tensor:
        """(B, G, K, in_channels) -> (B, G, dim)."""
        return F.relu(self.second(F.relu(self.first(members)).amax(dim=2)))


class SimSegmenter(SimNetwork):
    """Point-wise: a label for every point.

    num_categories: the category of a cloud is told to the head; pooled: the maximum over all points stands beside every
    point. Upstream has neither.
    """

    def __init__(
        self,
        num_parts: int,
        num_categories: int = 0,
        pooled: bool = False,
        depth: int = 4,
        embed_dim: int = 64,
        num_heads: int = 8,
        attention: AttentionKind | None = None,  # default sim
        init: Init = "glorot",
    ):
        super().__init__(3, depth, embed_dim, num_heads, attention)
        self.num_parts, self.num_categories = num_parts, num_categories
        self.head = nn.Linear(embed_dim, num_parts)
        self.whole = nn.Linear(embed_dim, num_parts, bias=False) if pooled else None
        self.label = nn.Linear(num_categories, num_parts, bias=False) if num_categories else None
        self._start(init)

    def forward(self, points: Tensor, category: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B,) -> logits of every point (B, N, S)."""
        x = self.forward_features(points)
        return self.head(x) + sum(self._of_cloud(x, category), start=x.new_zeros(()))

    def _of_cloud(self, x: Tensor, category: Tensor | None) -> Iterator[Tensor]:
        """What all points of a cloud share, (B, 1, S) each."""
        if self.whole is not None:
            yield self.whole(x.amax(dim=1))[:, None]
        if self.label is not None:
            yield category_features(self.label, category, self.num_categories)[:, None]
