"""Point Transformer with vector attention (arXiv 2012.09164), in the form of qq456cvb/Point-Transformers.

That form differs from the paper: every attention is 512 wide, has no norm and divides by the square root of its width.
`attention_dim: null` gives each attention the width of its level, as the paper has it.

B clouds, N points, M points of the coarsest level, C channels, S parts or classes.
"""

from __future__ import annotations

import re
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.category import join_features, one_hot
from models.layers.vector_attention import Level, TransitionDown, TransitionUp, VectorAttention, build_levels
from utils.errors import UserError


class PointTransformerEncoder(nn.Module):
    """A block at full resolution, then levels of a `stride`-th of the points and twice the channels, a block each."""

    def __init__(
        self,
        extra_channels: int,
        num_categories: int,
        embed_dim: int,
        num_levels: int,
        attention_dim: int | None,
        num_neighbors: int,
        stride: int,
    ):
        super().__init__()
        for name, value, least in (("num_levels", num_levels, 1), ("stride", stride, 2)):
            if value < least:
                raise UserError(f"{name}: {value}; use at least {least}")
        self.extra_channels, self.num_categories = extra_channels, num_categories
        self.num_neighbors, self.stride = num_neighbors, stride
        self.dims = [embed_dim * 2**level for level in range(num_levels + 1)]
        self.embed = nn.Sequential(
            nn.Linear(3 + extra_channels + num_categories, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim)
        )
        self.first = VectorAttention(embed_dim, attention_dim or embed_dim)
        self.downs = nn.ModuleList(TransitionDown(dim // 2, dim) for dim in self.dims[1:])
        self.blocks = nn.ModuleList(VectorAttention(dim, attention_dim or dim) for dim in self.dims[1:])

    def forward(
        self, points: Tensor, features: Tensor | None, category: Tensor | None
    ) -> tuple[list[Level], list[Tensor]]:
        """(B, N, 3), (B, N, F), (B,) -> levels and their features, fine to coarse."""
        levels = build_levels(points, len(self.dims), self.num_neighbors, self.stride)
        outputs = [self.first(self.enter(points, features, category), levels[0].xyz, levels[0].neighbors)]
        for down, block, level, coarser in zip(self.downs, self.blocks, levels, levels[1:]):
            outputs.append(block(down(outputs[-1], level), coarser.xyz, coarser.neighbors))
        return levels, outputs

    def enter(self, points: Tensor, features: Tensor | None, category: Tensor | None) -> Tensor:
        """Coordinates, further channels and the category of the cloud, which is the same for all its points."""
        x, first = join_features(points, features, self.extra_channels), self.embed[0]
        assert isinstance(first, nn.Linear)
        of_points, of_category = first.weight.split([x.shape[-1], self.num_categories], dim=1)
        x = F.linear(x, of_points, first.bias)  # (B, N, C)
        if category is not None and self.num_categories:
            x = x + F.linear(one_hot(category, self.num_categories, of_category), of_category)[:, None]
        return self.embed[1:](x)


class PointTransformerModel(nn.Module):
    """What classifier and segmenter share."""

    def __init__(self, encoder: PointTransformerEncoder):
        super().__init__()
        self.encoder = encoder
        self.extra_channels, self.num_features = encoder.extra_channels, encoder.dims[-1]

    def forward_features(
        self, points: Tensor, features: Tensor | None = None, category: Tensor | None = None
    ) -> Tensor:
        """(B, N, 3) -> features of the coarsest level (B, M, C)."""
        return self.encoder(points, features, category)[1][-1]

    def encode(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, C): the mean of the coarsest level."""
        return self.forward_features(points, features).mean(dim=1)


class PointTransformerClassifier(PointTransformerModel):
    """Mean of the coarsest level, then an MLP. `extra_channels`: channels besides coordinates; normals are 3."""

    def __init__(
        self,
        num_classes: int,
        extra_channels: int = 0,
        embed_dim: int = 32,
        num_levels: int = 4,
        attention_dim: int | None = 512,
        num_neighbors: int = 16,
        stride: int = 4,
        head_dims: list[int] | None = None,  # default 256, 64
    ):
        super().__init__(
            PointTransformerEncoder(extra_channels, 0, embed_dim, num_levels, attention_dim, num_neighbors, stride)
        )
        self.head = mlp([self.num_features, *(head_dims or (256, 64)), num_classes])

    def forward(self, points: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3) and, where there are extra channels, (B, N, F) -> logits (B, num_classes)."""
        return self.head(self.encode(points, features))

    @staticmethod
    def key_map(key: str) -> str | None:
        return rename(key, (("fc2.", "head."),))


class PointTransformerSegmenter(PointTransformerModel):
    """A decoder carries the features back up, level by level, with a block at each."""

    def __init__(
        self,
        num_parts: int,
        num_categories: int = 0,  # 0: the category of a cloud is not told to the network
        extra_channels: int = 0,
        embed_dim: int = 32,
        num_levels: int = 4,
        attention_dim: int | None = 512,
        num_neighbors: int = 16,
        stride: int = 4,
        bottleneck_dim: int = 512,
        head_dims: list[int] | None = None,  # default 64, 64
    ):
        encoder = PointTransformerEncoder(
            extra_channels, num_categories, embed_dim, num_levels, attention_dim, num_neighbors, stride
        )
        super().__init__(encoder)
        self.num_parts, self.num_categories = num_parts, num_categories
        coarsest, finer = encoder.dims[-1], encoder.dims[-2::-1]
        self.bottleneck_mlp = mlp([coarsest, bottleneck_dim, bottleneck_dim, coarsest])
        self.bottleneck = VectorAttention(coarsest, attention_dim or coarsest)
        self.ups = nn.ModuleList(TransitionUp(2 * dim, dim) for dim in finer)
        self.blocks = nn.ModuleList(VectorAttention(dim, attention_dim or dim) for dim in finer)
        self.head = mlp([embed_dim, *(head_dims or (64, 64)), num_parts])

    def forward(self, points: Tensor, category: Tensor | None = None, features: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B,) and, where there are extra channels, (B, N, F) -> logits of every point (B, N, S)."""
        if self.num_categories and category is None:
            raise UserError(f"category: this network knows {self.num_categories} categories and needs that of a cloud")
        levels, outputs = self.encoder(points, features, category)
        coarse = levels[-1]
        x = self.bottleneck(self.bottleneck_mlp(outputs[-1]), coarse.xyz, coarse.neighbors)
        for up, block, level, skip in zip(self.ups, self.blocks, levels[-2::-1], outputs[-2::-1]):
            x = block(up(x, coarse.xyz, skip, level.xyz), level.xyz, level.neighbors)
            coarse = level
        return self.head(x)

    @staticmethod
    def key_map(key: str) -> str | None:
        return rename(key, OFFICIAL_DECODER)


def mlp(dims: list[int]) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = [nn.Linear(dims[0], dims[1])]
    for inputs, outputs in pairwise(dims[1:]):
        layers += [nn.ReLU(), nn.Linear(inputs, outputs)]
    return nn.Sequential(*layers)


OFFICIAL_BACKBONE = (
    ("backbone.fc1.", "encoder.embed."),
    ("backbone.transformer1.", "encoder.first."),
    ("backbone.transition_downs.", "encoder.downs."),
    ("backbone.transformers.", "encoder.blocks."),
)
OFFICIAL_DECODER = (
    ("fc2.", "bottleneck_mlp."),
    ("transformer2.", "bottleneck."),
    ("transition_ups.", "ups."),
    ("transformers.", "blocks."),
    ("fc3.", "head."),
)
OFFICIAL_LAYERS = (
    (r"^((?:encoder\.)?(?:first|bottleneck|blocks\.\d+)\.)fc1\.", r"\1enter."),
    (r"^((?:encoder\.)?(?:first|bottleneck|blocks\.\d+)\.)fc2\.", r"\1leave."),
    (r"\.fc_delta\.", ".position."),
    (r"\.fc_gamma\.", ".weigh."),
    (r"\.w_qs\.", ".query."),
    (r"\.w_ks\.", ".key."),
    (r"\.w_vs\.", ".value."),
    (r"\.sa\.mlp_convs\.0\.", ".mlp.0."),
    (r"\.sa\.mlp_bns\.0\.", ".mlp.1."),
    (r"\.sa\.mlp_convs\.1\.", ".mlp.3."),
    (r"\.sa\.mlp_bns\.1\.", ".mlp.4."),
    (r"^(ups\.\d+\.)fc1\.0\.", r"\1coarse.0."),
    (r"^(ups\.\d+\.)fc1\.2\.", r"\1coarse.1."),
    (r"^(ups\.\d+\.)fc2\.0\.", r"\1fine.0."),
    (r"^(ups\.\d+\.)fc2\.2\.", r"\1fine.1."),
)


def rename(key: str, of_model: tuple[tuple[str, str], ...]) -> str:
    """An official key in our words; ours pass unchanged."""
    for official, ours in (*OFFICIAL_BACKBONE, *of_model):
        if key.startswith(official):
            key = ours + key.removeprefix(official)
            break
    for pattern, ours in OFFICIAL_LAYERS:
        key = re.sub(pattern, ours, key)
    return key
