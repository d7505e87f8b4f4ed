"""The layers of PCT: attention among all points of a cloud, and groups of neighbours in feature space.

B clouds, N points, M centres, K neighbours, C channels. An attention is any module (B, N, C) -> (B, N, C).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from extensions.features import group_max
from models.layers.attention.dense import dense_attention
from models.layers.rows import Rows, linear_norm

TINY = 1e-9  # added to the sums that the columns of an attention matrix are divided by


class SelfAttention(nn.Module):
    """softmax(q k / sqrt(d)) v with queries a quarter as wide as the values. tie_qk: one layer makes both q and k."""

    def __init__(self, dim: int, tie_qk: bool = True):
        super().__init__()
        self.query = nn.Linear(dim, dim // 4, bias=False)
        self.key = None if tie_qk else nn.Linear(dim, dim // 4, bias=False)
        self.value = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        return self.attend(*self.query_and_key(x), self.value(x))

    def query_and_key(self, x: Tensor) -> tuple[Tensor, Tensor]:
        query = self.query(x)
        return query, query if self.key is None else self.key(x)

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return dense_attention(query[:, None], key[:, None], value[:, None])[:, 0]


class ColumnAttention(SelfAttention):
    """Scores are not scaled; after the softmax over rows each column is divided by its sum, and columns weigh."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        weights = (query @ key.mT).softmax(dim=-1)  # (B, N, N), rows sum to 1
        # a column of ones gives the columns' sums; values in front, so that no gradient has to be transposed
        found = F.pad(value.to(weights.dtype), (0, 1), value=1.0).mT @ weights  # (B, C + 1, N)
        return (found[:, :-1] / (found[:, -1:] + TINY)).mT


class AttentionLayer(nn.Module):
    """x + relu(norm(linear(y))): y is what attention finds, or the offset of x from it."""

    def __init__(self, dim: int, attention: nn.Module, offset: bool):
        super().__init__()
        self.attention, self.offset = attention, offset
        self.change = linear_norm(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        found = self.attention(x)
        return x + self.change(x - found if self.offset else found)


class NeighborEmbedding(nn.Module):
    """Neighbours as [feature - feature of the centre, feature of the centre] through two layers, then the maximum."""

    def __init__(self, dim: int, out_dim: int):
        super().__init__()
        self.mlp = Rows(*linear_norm(2 * dim, out_dim, bias=False), *linear_norm(out_dim, out_dim, bias=False))

    def forward(self, features: Tensor, centers: Tensor, neighbors: Tensor) -> Tensor:
        """(B, N, C), indices (B, M) and (B, M, K) -> (B, M, out_dim)."""
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        of_offset, of_center = first.weight.chunk(2, dim=1)
        # the layer is linear in both features: it sees every point once, not once a neighbour
        points = F.linear(features, of_offset)
        shared = F.linear(ops.gather_points(features, centers), of_center - of_offset)  # (B, M, out_dim)
        return group_max(self.mlp[1:](ops.gather_points(points, neighbors) + shared[:, :, None]))


def groups(xyz: Tensor, centers: Tensor, num_neighbors: int) -> Tensor:
    """Indices (B, M, K) of the points nearest to the centres (B, M)."""
    xyz = xyz.detach()
    return ops.knn(ops.gather_points(xyz, centers), xyz, num_neighbors)[1]


def first_points(like: Tensor, number: int) -> Tensor:
    """Indices (B, number) of the first points."""
    return torch.arange(number, device=like.device).expand(len(like), -1)
