"""PCT: transformer on the points of a cloud (arXiv 2012.09688), in its three forms.

naive  embedding: point, attention: naive      plain self-attention
SPCT   embedding: point, attention: offset     what changes a point is its offset from what attention finds
PCT    embedding: neighbor, attention: offset  besides, the embedding looks at neighbours, twice

B clouds, N points, M tokens (N, or the centres of the neighbour embedding), C channels, S parts or classes.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.layers.category import category_features, join_features
from models.layers.offset_attention import (
    AttentionLayer,
    ColumnAttention,
    NeighborEmbedding,
    SelfAttention,
    first_points,
    groups,
)
from models.layers.rows import Rows, linear_norm
from utils.errors import UserError

AttentionKind = Literal["naive", "offset"]
Embedding = Literal["point", "neighbor"]
SLOPE = 0.2


class PCTEncoder(nn.Module):
    """Embedding, attention layers in sequence, the outputs of all of them fused.

    num_groups: centres of the two neighbour embeddings; null: every point is a centre, as segmentation needs it.
    """

    def __init__(
        self,
        extra_channels: int,
        dim: int,
        depth: int,
        attention: AttentionKind,
        embedding: Embedding,
        num_groups: list[int] | None,
        num_neighbors: int,
        fuse_dim: int,
        tie_qk: bool,
    ):
        super().__init__()
        if dim % 4 or dim < 4:
            raise UserError(f"dim: {dim}; use a multiple of 4")
        if num_groups is not None and (len(num_groups) != 2 or num_groups[1] > num_groups[0] or num_groups[1] < 1):
            raise UserError(f"num_groups: {num_groups}; name two numbers of centres, the second not above the first")
        self.extra_channels, self.num_groups, self.num_neighbors = extra_channels, num_groups, num_neighbors
        width = dim // 4 if embedding == "neighbor" else dim
        self.embed = Rows(*linear_norm(3 + extra_channels, width, bias=False), *linear_norm(width, width, bias=False))
        if embedding == "neighbor":
            self.groups = nn.ModuleList([NeighborEmbedding(width, 2 * width), NeighborEmbedding(2 * width, dim)])
            self.lift = Rows(*linear_norm(dim, dim, bias=False), *linear_norm(dim, dim, bias=False))
        kind, offset = (ColumnAttention, True) if attention == "offset" else (SelfAttention, False)
        self.layers = nn.ModuleList(AttentionLayer(dim, kind(dim, tie_qk), offset) for _ in range(depth))
        fused = dim * (depth + (embedding == "neighbor"))
        self.fuse = linear_norm(fused, fuse_dim, bias=False, slope=SLOPE)

    def forward(self, points: Tensor, features: Tensor | None) -> Tensor:
        """(B, N, 3), (B, N, F) -> (B, M, fuse_dim)."""
        x = self.embed(join_features(points, features, self.extra_channels))
        skip = []
        if hasattr(self, "groups"):
            x = self.embed_neighbors(points, x)
            skip, x = [x], self.lift(x)
        outputs = []
        for layer in self.layers:
            x = layer(x)
            outputs.append(x)
        return self.fuse(torch.cat(outputs + skip, dim=-1))

    def embed_neighbors(self, points: Tensor, x: Tensor) -> Tensor:
        """Two steps. Farthest points of farthest points are the first of them, so one sampling does for both."""
        self._check_counts(points.shape[1])
        if self.num_groups is None:
            centers = first_points(points, points.shape[1])
            neighbors = groups(points, centers, self.num_neighbors)
            for step in self.groups:
                x = step(x, centers, neighbors)
            return x
        first, second = self.num_groups
        centers = ops.farthest_point_sample(points.detach(), first)
        x = self.groups[0](x, centers, groups(points, centers, self.num_neighbors))
        points = ops.gather_points(points, centers)
        centers = first_points(points, second)
        return self.groups[1](x, centers, groups(points, centers, self.num_neighbors))

    def _check_counts(self, num_points: int) -> None:
        first = (self.num_groups or [num_points])[0]
        if first > num_points:
            raise UserError(f"num_groups: {first} centres are more than the {num_points} points there are; use fewer")
        if self.num_neighbors > first:
            raise UserError(f"num_neighbors: {self.num_neighbors} is more than the {first} points there are; use fewer")


class PCTModel(nn.Module):
    """What classifier and segmenter share."""

    def __init__(self, encoder: PCTEncoder, fuse_dim: int):
        super().__init__()
        self.encoder = encoder
        self.extra_channels, self.num_features = encoder.extra_channels, fuse_dim

    def forward_features(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) -> fused tokens (B, M, fuse_dim)."""
        return self.encoder(points, features)

    def encode(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, fuse_dim): the maximum over the tokens."""
        return self.forward_features(points, features).amax(dim=1)

    def key_map(self, key: str) -> str | None:
        """Official keys in our words; a tied key layer is stored twice there and is the query layer here."""
        for pattern, ours in OFFICIAL:
            key = re.sub(pattern, ours, key)
        key = re.sub(r"^(?:pt_last\.)?sa(\d)\.", lambda found: f"encoder.layers.{int(found[1]) - 1}.", key)
        tied = self.encoder.layers and getattr(self.encoder.layers[0].attention, "key", 0) is None
        return None if tied and ".attention.key." in key else key


class PCTClassifier(PCTModel):
    """Maximum over the tokens, then an MLP. `extra_channels`: what a point has besides coordinates; normals are 3."""

    def __init__(
        self,
        num_classes: int,
        extra_channels: int = 0,
        dim: int = 256,
        depth: int = 4,
        attention: AttentionKind = "offset",
        embedding: Embedding = "neighbor",
        num_groups: list[int] | None = None,  # default 512, 256
        num_neighbors: int = 32,
        fuse_dim: int = 1024,
        head_dropout: float = 0.5,
        tie_qk: bool = True,
    ):
        counts = [512, 256] if num_groups is None else num_groups
        encoder = PCTEncoder(extra_channels, dim, depth, attention, embedding, counts, num_neighbors, fuse_dim, tie_qk)
        super().__init__(encoder, fuse_dim)
        half, quarter = fuse_dim // 2, fuse_dim // 4
        self.head = nn.Sequential(
            *linear_norm(fuse_dim, half, bias=False),
            nn.Dropout(head_dropout),
            *linear_norm(half, quarter),
            nn.Dropout(head_dropout),
            nn.Linear(quarter, num_classes),
        )

    def forward(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) and, where there are extra channels, (B, N, F) -> logits (B, num_classes)."""
        return self.head(self.encode(points, features))


class PCTSegmenter(PCTModel):
    """Every point is a token: its own features beside the maximum and mean of the cloud and its category.

    The published network is embedding: point, dim: 128. With embedding: neighbor every point is a centre.
    """

    def __init__(
        self,
        num_parts: int,
        num_categories: int = 0,  # 0: the category of a cloud is not told to the network
        extra_channels: int = 0,
        dim: int = 128,
        depth: int = 4,
        attention: AttentionKind = "offset",
        embedding: Embedding = "point",
        num_neighbors: int = 32,
        fuse_dim: int = 1024,
        label_dim: int = 64,
        head_dims: list[int] | None = None,  # default 512, 256
        head_dropout: float = 0.5,
        tie_qk: bool = True,
    ):
        encoder = PCTEncoder(extra_channels, dim, depth, attention, embedding, None, num_neighbors, fuse_dim, tie_qk)
        super().__init__(encoder, fuse_dim)
        self.num_parts, self.num_categories = num_parts, num_categories
        self.head = PointHead(fuse_dim, num_parts, num_categories, label_dim, head_dims or [512, 256], head_dropout)

    def forward(self, points: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B,) and, where there are extra channels, (B, N, F) -> logits of every point (B, N, S)."""
        return self.head(self.encoder(points, features), category)


class PointHead(nn.Module):
    """Features of every point beside those of the whole cloud -> logits."""

    def __init__(
        self, dim: int, num_parts: int, num_categories: int, label_dim: int, head_dims: list[int], dropout: float
    ):
        super().__init__()
        self.num_categories = num_categories
        if num_categories:
            self.label = linear_norm(num_categories, label_dim, bias=False, slope=SLOPE)
        joined, (first, second) = 3 * dim + (label_dim if num_categories else 0), head_dims
        self.mlp = Rows(
            *linear_norm(joined, first), nn.Dropout(dropout), *linear_norm(first, second), nn.Linear(second, num_parts)
        )

    def forward(self, tokens: Tensor, category: Tensor | None) -> Tensor:
        """(B, N, C), (B,) -> (B, N, S)."""
        told = [category_features(self.label, category, self.num_categories)] if self.num_categories else []
        whole = torch.cat([tokens.amax(dim=1), tokens.mean(dim=1), *told], dim=-1)
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        of_point, of_whole = first.weight.split([tokens.shape[-1], whole.shape[-1]], dim=1)
        # what all points of a cloud share goes through the layer once a cloud
        x = F.linear(tokens, of_point) + F.linear(whole, of_whole, first.bias)[:, None]
        return self.mlp[1:](x)


OFFICIAL = (
    (r"^(conv|bn)([12])\.", lambda found: f"encoder.embed.{3 * int(found[2]) - 3 + (found[1] == 'bn')}."),
    (r"^pt_last\.(conv|bn)([12])\.", lambda found: f"encoder.lift.{3 * int(found[2]) - 3 + (found[1] == 'bn')}."),
    (
        r"^gather_local_(\d)\.(conv|bn)([12])\.",
        lambda found: f"encoder.groups.{found[1]}.mlp.{3 * int(found[3]) - 3 + (found[2] == 'bn')}.",
    ),
    (r"\.q_conv\.", ".attention.query."),
    (r"\.k_conv\.", ".attention.key."),
    (r"\.v_conv\.", ".attention.value."),
    (r"\.trans_conv\.", ".change.0."),
    (r"\.after_norm\.", ".change.1."),
    (r"^conv_fuse\.", "encoder.fuse."),
    (r"^linear1\.", "head.0."),
    (r"^bn6\.", "head.1."),
    (r"^linear2\.", "head.4."),
    (r"^bn7\.", "head.5."),
    (r"^linear3\.", "head.8."),
    (r"^label_conv\.", "head.label."),
    (r"^convs1\.", "head.mlp.0."),
    (r"^bns1\.", "head.mlp.1."),
    (r"^convs2\.", "head.mlp.4."),
    (r"^bns2\.", "head.mlp.5."),
    (r"^convs3\.", "head.mlp.7."),
)
