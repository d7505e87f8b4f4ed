"""The geometry-aware adapter of Point-PEFT: tokens look at their neighbours, neighbourhoods speak to all tokens.

B clouds, R rows (tokens that can be neighbours), S neighbourhoods, K rows of each, G patch tokens, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from extensions.features import group_max
from models.layers.attention.dense import check_heads, dense_attention

TINY = 1e-8  # keeps the weight of a coincident centre finite


@dataclass(frozen=True)
class Neighbourhoods:
    """Which rows belong together, and how much each neighbourhood says to each patch token."""

    index: Tensor  # (B, S, K) rows
    center: Tensor  # (B, S) rows
    weights: Tensor  # (B, G, S), summing to one over S


def neighbourhoods(
    rows: Tensor, tokens: Tensor, number: int, size: int, skip_near_origin: bool = False
) -> Neighbourhoods:
    """Coordinates of the rows (B, R, 3) and of the patch tokens (B, G, 3). Gradients reach both through the weights."""
    with torch.no_grad():
        center = ops.farthest_point_sample(rows, min(number, rows.shape[1]), skip_near_origin=skip_near_origin)
        index = ops.knn(ops.gather_points(rows, center), rows, min(size, rows.shape[1]))[1]
    return Neighbourhoods(index, center, spreading(tokens, ops.gather_points(rows, center)))


def spreading(tokens: Tensor, center: Tensor) -> Tensor:
    """Inverse squared distances, normalised: (B, G, 3), (B, S, 3) -> (B, G, S). From coordinate differences, so that a
    token that is a centre is at distance 0."""
    inverse = 1 / ((tokens[:, :, None] - center[:, None]).square().sum(dim=-1) + TINY)
    return inverse / inverse.sum(dim=-1, keepdim=True)


class LocalAttention(nn.Module):
    """Multi-head self-attention in a narrow space, for rows (..., C)."""

    def __init__(self, width: int, inner: int, num_heads: int):
        super().__init__()
        check_heads(inner, num_heads, "inner_dim", "inner_heads")
        self.num_heads, self.inner = num_heads, inner
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.proj = nn.Linear(inner, width)

    def among(self, rows: Tensor, index: Tensor) -> Tensor:
        """Rows (B, R, C) attend to each other inside the neighbourhoods (B, S, K): (B, S, K, C)."""
        qkv = ops.gather_points(self.qkv(rows), index)  # (B, S, K, 3 inner): projected before they are gathered
        qkv = qkv.unflatten(-1, (3, self.num_heads, -1))
        query, key, value = qkv.permute(3, 0, 1, 4, 2, 5).flatten(1, 2).unbind(0)  # each (B S, H, K, inner / H)
        # scaled by the inner width, as published, instead of that of a head
        query = query * self.num_heads**-0.5
        out = dense_attention(query, key, value).transpose(1, 2).flatten(2)  # (B S, K, inner)
        return self.proj(out).unflatten(0, index.shape[:2])


class SharedAttention(nn.Module):
    """What all blocks of a stage share: a norm, and attention inside the neighbourhoods."""

    def __init__(self, width: int, inner: int, num_heads: int, pooling: Literal["max", "mean_max"]):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), LocalAttention(width, inner, num_heads)
        self.pooling = pooling

    def forward(self, rows: Tensor, index: Tensor, drop_path: nn.Module) -> Tensor:
        """(B, R, C), (B, S, K) -> one vector a neighbourhood (B, S, C)."""
        seen = self.attention.among(self.norm(rows), index)
        members = ops.gather_points(rows, index) + drop_path(seen.flatten(0, 1)).view(seen.shape)
        pooled = group_max(members)
        return pooled + members.mean(dim=2) if self.pooling == "mean_max" else pooled


def spread(
    rows: Tensor, tokens: Tensor, pooled: Tensor, norm: nn.Module, hoods: Neighbourhoods, center: float, scale: float
) -> Tensor:
    """tokens + scale * what the neighbourhoods say: gelu(norm(pooled)) + center * the row in the middle."""
    said = F.gelu(norm(pooled.flatten(0, 1))).view(pooled.shape)
    said = said + center * ops.gather_points(rows, hoods.center)  # (B, S, C)
    return tokens + scale * (hoods.weights.to(said.dtype) @ said)
