"""Point Transformer of Engel et al. (arXiv 2011.00931), in the form of qq456cvb/Point-Transformers ("Nico").

Learned scores sort points: the best of each of several sorting networks become local tokens, in the order of their
scores; they attend to global tokens around farthest points, and all of them in sequence are classified.

B clouds, N points, M centres, K points kept by a sorting network, C channels.
"""

from __future__ import annotations

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from extensions.features import group_max
from models.layers.attention.dense import check_heads, dense_attention
from models.layers.category import join_features
from models.layers.rows import Rows, linear_norm
from models.point_transformer import mlp
from utils.errors import UserError

RADII, SIZES = (0.1, 0.2, 0.4), (16, 32, 128)
WIDTHS = ((32, 32, 64), (64, 64, 128), (64, 96, 128))
GROUPED = sum(widths[-1] for widths in WIDTHS)


class PostNormAttention(nn.Module):
    """norm(s + linear(s)) of s = norm(x + attention to a context)."""

    def __init__(self, dim: int, context_dim: int, num_heads: int):
        super().__init__()
        self.num_heads = num_heads
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(context_dim, dim, bias=False)
        self.value = nn.Linear(context_dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.norm1, self.norm2 = nn.LayerNorm(dim, eps=1e-6), nn.LayerNorm(dim, eps=1e-6)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """(B, N, C), (B, M, context_dim) -> (B, N, C)."""
        query, key, value = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for y in (self.query(x), self.key(context), self.value(context))
        )
        x = self.norm1(x + dense_attention(query, key, value).transpose(1, 2).flatten(2))
        return self.norm2(x + self.proj(x))


class Scale(nn.Module):
    """The points within a radius of each centre through three layers, then the maximum."""

    def __init__(self, dim: int, radius: float, size: int, widths: tuple[int, ...]):
        super().__init__()
        self.radius, self.size = radius, size
        sizes = (dim + 3, *widths)
        self.mlp = Rows(*(layer for i, o in zip(sizes, widths) for layer in linear_norm(i, o)))

    def forward(self, features: Tensor, points: Tensor, center: Tensor) -> Tensor:
        """(B, N, C), (B, N, 3), (B, M, 3) -> (B, M, widths[-1])."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        neighbors = ops.ball_query(center.detach(), points.detach(), self.radius, self.size)
        of_features, of_offset = first.weight.split([features.shape[-1], 3], dim=1)
        # a point is in several groups: its features go through the layer once
        x = ops.gather_points(F.linear(features, of_features, first.bias), neighbors)
        x = x + F.linear(ops.group_points(points, neighbors, center), of_offset)
        return group_max(self.mlp[1:](x))


class MultiScale(nn.Module):
    """Three radii around each centre, side by side, through an MLP."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.scales = nn.ModuleList(Scale(dim, *options) for options in zip(RADII, SIZES, WIDTHS))
        self.join = mlp([GROUPED, 256, 256, out_dim])

    def forward(self, features: Tensor, points: Tensor, center: Tensor) -> Tensor:
        """(B, N, C), (B, N, 3), (B, M, 3) -> (B, M, out_dim)."""
        return self.join(torch.cat([scale(features, points, center) for scale in self.scales], dim=-1))


class SortNet(nn.Module):
    """Scores every point; the best K, in the order of their scores, with what lies around them."""

    def __init__(self, dim: int, in_channels: int, num_kept: int):
        super().__init__()
        if dim <= 1 + in_channels:
            raise UserError(f"local_dim: {dim}; use more than the {1 + in_channels} channels of score and point")
        self.num_kept = num_kept
        self.score = mlp([dim, 256, 64, 1])
        self.around = MultiScale(dim, dim - 1 - in_channels)

    def forward(self, features: Tensor, points: Tensor, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, C), (B, N, 3), (B, N, 3 + F) -> tokens (B, K, C) and the indices kept (B, K)."""
        score = self.score(features)  # (B, N, 1)
        kept = score[..., 0].float().topk(self.num_kept, dim=1).indices
        around = self.around(features, points, ops.gather_points(points, kept))
        own = [ops.gather_points(score, kept), ops.gather_points(inputs, kept)]
        return torch.cat([around, *(part.to(around.dtype) for part in own)], dim=-1), kept


class SortNetClassifier(nn.Module):
    """`extra_channels`: what a point has besides coordinates; normals are 3."""

    def __init__(
        self,
        num_classes: int,
        extra_channels: int = 0,
        local_dim: int = 256,
        global_dim: int = 512,
        num_sortnets: int = 4,
        num_kept: int = 64,
        num_global: int = 128,
        num_heads: int = 4,
        cross_heads: int = 8,
        token_dim: int = 64,
    ):
        super().__init__()
        check_heads(local_dim, num_heads, "local_dim")
        check_heads(global_dim, num_heads, "global_dim")
        check_heads(local_dim, cross_heads, "local_dim", "cross_heads")
        self.extra_channels, self.num_kept, self.num_global = extra_channels, num_kept, num_global
        self.num_features = token_dim
        channels = 3 + extra_channels
        self.local_embed, self.global_embed = (mlp([channels, 64, 256, dim]) for dim in (local_dim, global_dim))
        self.local_attention = PostNormAttention(local_dim, local_dim, num_heads)
        self.global_attention = PostNormAttention(global_dim, global_dim, num_heads)
        self.sortnets = nn.ModuleList(SortNet(local_dim, channels, num_kept) for _ in range(num_sortnets))
        self.around = MultiScale(global_dim, global_dim)
        self.cross_attention = PostNormAttention(local_dim, global_dim, cross_heads)
        self.reduce = mlp([local_dim, 256, 256, token_dim])
        self.head = mlp([num_sortnets * num_kept * token_dim, 1024, 256, 64, num_classes])

    def forward(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) and, where there are extra channels, (B, N, F) -> logits (B, num_classes)."""
        return self.head(self.forward_features(points, features).flatten(1))

    def forward_features(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) -> tokens of the kept points (B, num_sortnets * K, token_dim)."""
        for name, number in (("num_kept", self.num_kept), ("num_global", self.num_global)):
            if number > points.shape[1]:
                raise UserError(f"{name}: {number} is more than the {points.shape[1]} points there are; use fewer")
        inputs = join_features(points, features, self.extra_channels)
        local = self.local_embed(inputs)
        local = self.local_attention(local, local)
        tokens = torch.cat([sortnet(local, points, inputs)[0] for sortnet in self.sortnets], dim=1)
        return self.reduce(self.cross_attention(tokens, self.global_tokens(points, inputs)))

    def global_tokens(self, points: Tensor, inputs: Tensor) -> Tensor:
        """(B, M, global_dim)."""
        x = self.global_embed(inputs)
        x = self.global_attention(x, x)
        chosen = ops.farthest_point_sample(points.detach(), self.num_global)
        return self.around(x, points, ops.gather_points(points, chosen))

    def encode(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, token_dim): the mean of the tokens."""
        return self.forward_features(points, features).mean(dim=1)

    @staticmethod
    def key_map(key: str) -> str | None:
        for pattern, ours in OFFICIAL:
            key = re.sub(pattern, ours, key)
        layer = re.search(r"\.(conv|bn)_blocks\.(\d)\.(\d)\.", key)
        if layer:
            place = 3 * int(layer[3]) + (layer[1] == "bn")
            key = key.replace(layer[0], f".scales.{layer[2]}.mlp.{place}.")
        return key


OFFICIAL = (
    (r"^fc\.", "reduce."),
    (r"^fc_cls\.", "head."),
    (r"^lg_att\.", "cross_attention."),
    (r"^lfg\.sortnets\.(\d+)\.fc\.", r"sortnets.\1.score."),
    (r"^lfg\.sortnets\.(\d+)\.fc_agg\.", r"sortnets.\1.around.join."),
    (r"^lfg\.sortnets\.(\d+)\.sa\.", r"sortnets.\1.around."),
    (r"^lfg\.fc\.", "local_embed."),
    (r"^lfg\.att\.", "local_attention."),
    (r"^gfg\.fc\.", "global_embed."),
    (r"^gfg\.att\.", "global_attention."),
    (r"^gfg\.fc_agg\.", "around.join."),
    (r"^gfg\.sa\.", "around."),
    (r"^((?:cross|local|global)_attention)\.w_qs\.", r"\1.query."),
    (r"^((?:cross|local|global)_attention)\.w_ks\.", r"\1.key."),
    (r"^((?:cross|local|global)_attention)\.w_vs\.", r"\1.value."),
    (r"^((?:cross|local|global)_attention)\.fc\.", r"\1.proj."),
    (r"^((?:cross|local|global)_attention)\.layer_norm(\d)\.", r"\1.norm\2."),
)
