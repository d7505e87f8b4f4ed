"""Part and semantic segmentation on Point-MAE's encoder.

B clouds, N points, G patches, C channels of a token, W = C times the number of layers that are looked at, S parts.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import AttentionKind
from models.layers.category import category_features
from models.layers.propagation import FeaturePropagation
from models.layers.rows import Rows
from models.point_mae import Init, PatchModel, PointEncoder, PointMAEClassifier
from utils.errors import UserError
from utils.schema import Whole


class PointMAESegmenter(PatchModel):
    """Tokens of several layers, carried to every point, joined with the whole cloud's features and its category."""

    def __init__(
        self,
        num_parts: int,
        num_categories: int = 0,  # 0: the category of a cloud is not told to the network
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 128,
        group_size: int = 32,
        patch_width: int = 256,
        layers: list[Whole] | None = None,  # blocks whose outputs are used; default the ends of the thirds: 3, 7, 11
        local_dim: int = 1024,
        head_dim: int = 512,
        head_dropout: float = 0.5,
        skip_near_origin: bool = True,
        init: Init = "trunc_normal",
        attention: AttentionKind | None = None,
    ):
        encoder = PointEncoder(embed_dim, depth, num_heads, drop_path_rate, patch_width, init, attention)
        super().__init__(encoder, num_group, group_size, skip_near_origin)
        self.num_features, self.num_parts = embed_dim, num_parts
        self.layers = thirds(depth) if layers is None else layers
        if not self.layers or not all(0 <= layer < depth for layer in self.layers):
            raise UserError(f"layers: {self.layers}; name blocks from 0 to {depth - 1}")
        channels = embed_dim * len(self.layers)
        self.head = PartHead(channels, num_parts, num_categories, 4 * embed_dim, local_dim, head_dim, head_dropout)

    def forward(self, points: Tensor, category: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B,) -> logits of every point (B, N, S)."""
        neighborhood, center = self.group(points)
        features = self.layer_features(neighborhood, center)  # (B, G, W)
        return self.head(points, center, features, category)

    def layer_features(self, neighborhood: Tensor, center: Tensor) -> Tensor:
        """Tokens after each of `layers`, all through the same norm, side by side (B, G, W)."""
        x, position = self.encoder.embed(neighborhood), self.encoder.pos_embed(center)
        transformer, found = self.encoder.transformer, {}
        for index in range(len(transformer.blocks)):
            x = transformer.run(index, x, position)
            if index in self.layers:
                found[index] = transformer.norm(x)
        return torch.cat([found[index] for index in self.layers], dim=-1)

    @staticmethod
    def key_map(key: str) -> str | None:
        """Official segmentation networks, and the encoder of pre-trainers and classifiers."""
        for official, ours in OFFICIAL_HEAD:
            if key.startswith(official):
                return ours + key.removeprefix(official)
        renamed = PointMAEClassifier.key_map(key)
        return None if renamed is None or is_of_classifier(renamed) else renamed


class PartHead(nn.Module):
    """Features of every point beside those of the whole cloud -> logits."""

    def __init__(
        self,
        channels: int,
        num_parts: int,
        num_categories: int,
        hidden: int,
        local_dim: int,
        head_dim: int,
        dropout: float,
        label_dim: int = 64,
    ):
        super().__init__()
        self.num_categories, self.local_dim = num_categories, local_dim
        self.propagation = FeaturePropagation(channels, (hidden, local_dim), own_channels=3)
        if num_categories:
            self.label = nn.Sequential(
                nn.Linear(num_categories, label_dim, bias=False), nn.BatchNorm1d(label_dim), nn.LeakyReLU(0.2)
            )
        joined, half = local_dim + 2 * channels + (label_dim if num_categories else 0), head_dim // 2
        self.mlp = Rows(
            *(nn.Linear(joined, head_dim), nn.BatchNorm1d(head_dim), nn.ReLU(), nn.Dropout(dropout)),
            *(nn.Linear(head_dim, half), nn.BatchNorm1d(half), nn.ReLU(), nn.Linear(half, num_parts)),
        )

    def forward(self, points: Tensor, center: Tensor, features: Tensor, category: Tensor | None) -> Tensor:
        """(B, N, 3), (B, G, 3), (B, G, W), (B,) -> (B, N, S)."""
        local = self.propagation(points, center, features, own=points)  # (B, N, local_dim)
        told = [category_features(self.label, category, self.num_categories)] if self.num_categories else []
        whole = torch.cat([features.amax(dim=1), features.mean(dim=1), *told], dim=-1)
        first = self.mlp[0]
        assert isinstance(first, nn.Linear)
        of_local, of_whole = first.weight.split([self.local_dim, whole.shape[-1]], dim=1)
        # what all points of a cloud share goes through the layer once a cloud
        x = F.linear(local, of_local) + F.linear(whole, of_whole, first.bias)[:, None]
        return self.mlp[1:](x)


def thirds(depth: int) -> list[int]:
    """The last block of each third: 3, 7, 11 of 12."""
    return sorted({max(depth * third // 3 - 1, 0) for third in (1, 2, 3)})


OFFICIAL_HEAD = (
    ("propagation_0.mlp_convs.0.", "head.propagation.mlp.0."),
    ("propagation_0.mlp_bns.0.", "head.propagation.mlp.1."),
    ("propagation_0.mlp_convs.1.", "head.propagation.mlp.3."),
    ("propagation_0.mlp_bns.1.", "head.propagation.mlp.4."),
    ("label_conv.", "head.label."),
    ("convs1.", "head.mlp.0."),
    ("bns1.", "head.mlp.1."),
    ("convs2.", "head.mlp.4."),
    ("bns2.", "head.mlp.5."),
    ("convs3.", "head.mlp.7."),
)


def is_of_classifier(key: str) -> bool:
    """Class token, its position, and a head that is a plain sequence of layers."""
    return key.startswith("cls_") or key.removeprefix("head.")[:1].isdigit()
