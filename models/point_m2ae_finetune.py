"""The classifier and the part segmenter on the encoder of Point-M2AE. Nothing is hidden; tokens see their surroundings.

B clouds, N points, G groups of a scale, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import AttentionKind
from models.layers.category import category_features
from models.layers.propagation import FeaturePropagation
from models.layers.rows import Rows
from models.layers.transformer import Init, mlp_head
from models.masked import backbone_key
from models.point_m2ae_encoder import HierarchicalEncoder, HierarchicalModel, rename

LABEL_DIM = 64  # channels that tell a segmenter the category of a cloud


class PointM2AEClassifier(HierarchicalModel):
    """The tokens of the coarsest scale, pooled, then an MLP.

    pooling: "sum", mean + maximum over the tokens, is the official ModelNet40 network; "mean_max", [mean, maximum],
    that of Point-PEFT; "concat" the same in the official ScanObjectNN network, whose maximum leaves out the first token
    as if it were a class token.
    """

    def __init__(
        self,
        num_classes: int,
        pooling: Literal["sum", "concat", "mean_max"] = "sum",
        num_groups: Sequence[int] = (512, 256, 64),
        group_sizes: Sequence[int] = (16, 8, 8),
        embed_dims: Sequence[int] = (96, 192, 384),
        depths: Sequence[int] = (5, 5, 5),
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        patch_width: int = 256,
        local_radius: Sequence[float] = (0.32, 0.64, 1.28),
        head_dim: int = 256,
        head_dropout: float = 0.5,
        skip_near_origin: bool = True,
        init: Init = "trunc_normal",
        attention: AttentionKind | None = None,
    ):
        encoder = HierarchicalEncoder(
            embed_dims,
            depths,
            num_heads,
            drop_path_rate,
            patch_width,
            init,
            local_radius,
            norms=False,
            attention=attention,
        )
        super().__init__(encoder, num_groups, group_sizes, skip_near_origin)
        self.num_features, self.pooling = embed_dims[-1], pooling
        self.norm = nn.LayerNorm(embed_dims[-1])
        width = embed_dims[-1] * (1 if pooling == "sum" else 2)
        self.head = mlp_head(width, head_dim, num_classes, head_dropout)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> logits (B, num_classes)."""
        return self.head(self.pool(self.forward_features(points)))

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> tokens of the coarsest scale (B, G, C)."""
        return self.norm(super().forward_features(points))

    def pool(self, tokens: Tensor) -> Tensor:
        """(B, G, C) -> what the head reads, (B, C) or (B, 2 C)."""
        if self.pooling == "sum":
            return tokens.mean(dim=1) + tokens.amax(dim=1)
        first = 1 if self.pooling == "concat" else 0
        return torch.cat([tokens.mean(dim=1), tokens[:, first:].amax(dim=1)], dim=-1)

    @staticmethod
    def key_map(key: str) -> str | None:
        """As `rename`; what only a pre-trainer has is left out."""
        renamed = backbone_key(rename(key))
        if renamed is None or of_pretrainer(renamed) or renamed.startswith("encoder.norms."):
            return None
        return renamed


class PointM2AESegmenter(HierarchicalModel):
    """Tokens of every scale carried to every point, joined with the whole cloud's features and its category."""

    def __init__(
        self,
        num_parts: int,
        num_categories: int = 0,  # 0: the category of a cloud is not told to the network
        num_groups: Sequence[int] = (512, 256, 64),
        group_sizes: Sequence[int] = (16, 8, 8),
        embed_dims: Sequence[int] = (96, 192, 384),
        depths: Sequence[int] = (5, 5, 5),
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        patch_width: int = 256,
        local_radius: Sequence[float] = (0.32, 0.64, 1.28),
        propagation_dims: Sequence[int] = (1536, 1024),
        head_dims: Sequence[int] = (1024, 512, 256),
        head_dropout: float = 0.5,
        skip_near_origin: bool = True,
        init: Init = "trunc_normal",
        attention: AttentionKind | None = None,
    ):
        encoder = HierarchicalEncoder(
            embed_dims, depths, num_heads, drop_path_rate, patch_width, init, local_radius, attention=attention
        )
        super().__init__(encoder, num_groups, group_sizes, skip_near_origin)
        self.num_features, self.num_parts = embed_dims[-1], num_parts
        self.head = HierarchicalPartHead(
            embed_dims, num_parts, num_categories, propagation_dims, head_dims, head_dropout
        )

    def forward(self, points: Tensor, category: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B,) -> logits of every point (B, N, num_parts)."""
        scales = self.group(points)
        return self.head(points, [scale.center for scale in scales], self.encoder(scales), category)

    @staticmethod
    def key_map(key: str) -> str | None:
        """Official segmenters, and the encoder of pre-trainers and classifiers."""
        key = re.sub(r"^propagations\.(\d)\.mlp_(convs|bns)\.(\d)", _propagation_layer, key)
        for official, ours in OFFICIAL_HEAD:
            if key.startswith(official):
                return ours + key.removeprefix(official)
        renamed = backbone_key(rename(key))
        if renamed is None or of_pretrainer(renamed):
            return None
        of_classifier = renamed.startswith("norm.") or renamed.removeprefix("head.")[:1].isdigit()
        return None if of_classifier else renamed


class HierarchicalPartHead(nn.Module):
    """Features of every point, out of all scales, beside those of the whole cloud -> logits."""

    def __init__(
        self,
        embed_dims: Sequence[int],
        num_parts: int,
        num_categories: int,
        propagation_dims: Sequence[int],
        head_dims: Sequence[int],
        dropout: float,
    ):
        super().__init__()
        self.num_categories = num_categories
        self.propagations = nn.ModuleList(FeaturePropagation(d, propagation_dims, own_channels=3) for d in embed_dims)
        if num_categories:
            self.label = nn.Sequential(
                nn.Linear(num_categories, LABEL_DIM, bias=False), nn.BatchNorm1d(LABEL_DIM), nn.LeakyReLU(0.2)
            )
        channels = len(embed_dims) * propagation_dims[-1]
        widths = (2 * channels + (LABEL_DIM if num_categories else 0), *head_dims)
        layers: list[nn.Module] = []
        for i, (inputs, outputs) in enumerate(zip(widths, head_dims)):
            layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
            layers += [nn.Dropout(dropout)] if i == 0 else []
        self.mlp = Rows(*layers, nn.Linear(widths[-1], num_parts))

    def forward(
        self, points: Tensor, centers: Sequence[Tensor], tokens: Sequence[Tensor], category: Tensor | None
    ) -> Tensor:
        """(B, N, 3), centres (B, G, 3) and tokens (B, G, C) of every scale, (B,) -> (B, N, num_parts)."""
        carried = [
            propagation(points, center, features, own=points)
            for propagation, center, features in zip(self.propagations, centers, tokens)
        ]
        local = torch.cat(carried, dim=-1)  # (B, N, channels)
        told = [category_features(self.label, category, self.num_categories)] if self.num_categories else []
        whole = torch.cat([local.amax(dim=1) + local.mean(dim=1), *told], dim=-1)
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        of_whole, of_local = first.weight.split([whole.shape[-1], local.shape[-1]], dim=1)
        # what all points of a cloud share goes through the layer once a cloud
        x = F.linear(local, of_local) + F.linear(whole, of_whole, first.bias)[:, None]
        return self.mlp[1:](x)


def of_pretrainer(key: str) -> bool:
    """Our name of a tensor that only a pre-trainer has."""
    return key.startswith(("decoder.", "mask_token")) or key in ("head.weight", "head.bias")


def _propagation_layer(found: re.Match) -> str:
    """Upstream lists convolutions and norms apart; here each convolution has its norm and a ReLU behind it."""
    scale, kind, layer = found.groups()
    return f"head.propagations.{scale}.mlp.{3 * int(layer) + (kind == 'bns')}"


OFFICIAL_HEAD = (
    ("label_conv.", "head.label."),
    ("convs1.", "head.mlp.0."),
    ("bns1.", "head.mlp.1."),
    ("convs2.", "head.mlp.4."),
    ("bns2.", "head.mlp.5."),
    ("convs3.", "head.mlp.7."),
    ("bns3.", "head.mlp.8."),
    ("convs4.", "head.mlp.10."),
)
