"""Any2Point: a point cloud through the frozen transformer of another modality (arXiv 2404.07989).

A trained tokenizer makes 3D tokens; virtual projection gives them the tower's own position codes; a guided adapter
stands behind every frozen block. B clouds, N points, G tokens, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from models.any2point.adapter import GuidedAdapter, LocalAttention
from models.any2point.cells import Cells, cells_of
from models.any2point.projection import ANGLES, ImageProjection, LineProjection, Projection, voxels
from models.any2point.tokenizer import PointPN, Scaling
from models.any2point.towers import freeze, tower_key, vision_tower
from models.layers.tower import Tower, TowerBlock
from models.layers.transformer import mlp_head
from utils.errors import UserError

Compat = Literal["wrap", "scramble", "empty_cells"]
FROZEN = ("tower.blocks.", "tower.norm_pre.", "tower.position")


class Any2Point(nn.Module):
    """Classifier on [maximum over the tokens, class token]. Trained: all but the blocks and the position table.

    group_size: neighbours of a centre in the tokenizer. depths: its layers, stage by stage; last_hidden: inner width of
    the last ones. scaling: of their offsets, within a group or over the cloud.
    camera: distance from the origin, for towers of images. direction: of the line, for a text.
    voxel_size, cell_size: of the cubes, and of the cells of a view in pixels or positions.
    positions: the codes are added before each block, once before the first, or both.
    cell_pooling: what a view's cells tell; a voxel always gives mean + maximum.
    compat: published behaviour, each explained in `projection` and `adapter`.
    """

    def __init__(
        self,
        num_classes: int,
        tower: Tower | None = None,  # default: a DINOv2 ViT-B/14 without weights
        num_group: int = 128,
        group_size: int = 64,
        depths: Sequence[int] = (2, 1, 1),
        last_hidden: int = 32,
        scaling: Scaling = "axis",
        skip_near_origin: bool = True,
        camera: float = 1.8,
        direction: Sequence[float] = (-1.0, 0.0, 1.0),
        voxel_size: float = 0.16,
        cell_size: float = 26.0,
        positions: Literal["each", "once", "both"] = "each",
        adapter_dim: int = 8,
        adapter_dropout: float = 0.1,
        adapter_scale: float = 0.3,
        local_dim: int = 12,
        local_heads: int = 6,
        view_weight: float = 0.7,
        cell_pooling: Literal["mean", "mean_max"] = "mean",
        pooling: Literal["max_cls", "cls_max"] = "max_cls",
        head_dim: int = 256,
        head_dropout: float = 0.5,
        head_bias: bool = False,
        compat: Sequence[Compat] = (),
    ):
        super().__init__()
        for name, value in (("voxel_size", voxel_size), ("cell_size", cell_size), ("camera", camera)):
            if value <= 0:
                raise UserError(f"{name}: {value}; use more than 0")
        self.tower = vision_tower() if tower is None else tower
        self.filled = () if self.tower.source is None else ("tower.",)  # what of the model has weights already
        freeze(self.tower.blocks)
        freeze(self.tower.norm_pre)
        dim, grid = self.tower.embed_dim, self.tower.grid
        self.num_features, self.voxel_size, self.positions, self.pooling = dim, voxel_size, positions, pooling
        self.tokenizer = PointPN(dim, num_group, group_size, depths, last_hidden, scaling, skip_near_origin)
        wrap = "wrap" in compat
        self.projection: Projection = (
            LineProjection(len(self.tower.codes), direction, cell_size, wrap)
            if grid is None
            else ImageProjection(grid, self.tower.patch, camera, cell_size, wrap, "scramble" in compat)
        )
        count_empty = self.projection.num_cells if "empty_cells" in compat else None
        join_max = cell_pooling == "mean_max"
        self.cls_pos = nn.Parameter(torch.empty(1, 1, dim))
        self.local = nn.ModuleList(LocalAttention(dim, local_dim, local_heads) for _ in ANGLES)
        self.adapters = nn.ModuleList(
            GuidedAdapter(
                dim, len(ANGLES), adapter_dim, adapter_dropout, adapter_scale, view_weight, join_max, count_empty
            )
            for _ in self.tower.blocks
        )
        self.head = mlp_head(2 * dim, head_dim, num_classes, head_dropout, bias=head_bias)
        nn.init.trunc_normal_(self.cls_pos, std=0.02)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> logits (B, num_classes)."""
        return self.classify(self._tokens(points))

    def classify(self, tokens: Tensor) -> Tensor:
        """Class token and tokens (B, 1 + G, C) -> logits."""
        parts = [tokens[:, 1:].amax(dim=1), tokens[:, 0]]
        return self.head(torch.cat(parts if self.pooling == "max_cls" else parts[::-1], dim=-1))

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> tokens (B, G, C), without the class token."""
        return self._tokens(points)[:, 1:]

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, C): mean plus maximum over the tokens."""
        tokens = self.forward_features(points)
        return tokens.mean(dim=1) + tokens.amax(dim=1)

    def _tokens(self, points: Tensor) -> Tensor:
        center, tokens = self.tokenizer(points)
        places = self.projection.coordinates(center.float())
        codes = self.projection.codes(places, self.tower.codes.float())
        return self.transform(tokens, codes, *self.neighbours(center.float(), places))

    def neighbours(self, center: Tensor, places: Tensor) -> tuple[Cells, Cells]:
        """Which tokens (B, G, 3) share a cell of each view, and which a voxel."""
        return cells_of(self.projection.cells(places)), cells_of(voxels(center, self.voxel_size))

    def transform(self, tokens: Tensor, codes: Tensor, views: Cells, voxel: Cells) -> Tensor:
        """Tokens and their position codes (B, G, C) -> class token and tokens behind the last block (B, 1 + G, C)."""
        batch = len(tokens)
        x = torch.cat([self.tower.cls_token.to(tokens.dtype).expand(batch, -1, -1), tokens], dim=1)
        position = torch.cat([self.cls_pos.expand(batch, -1, -1), codes], dim=1)
        if self.positions != "each":
            x = x + position
        x = self.tower.norm_pre(x)
        for block, adapter in zip(self.tower.blocks, self.adapters):
            if self.positions != "once":
                x = x + position
            assert isinstance(block, TowerBlock)
            x = block.attend(x)
            x = adapter(x, block.feed(x), self.local, views, voxel)
        return self.tower.norm(x)

    def trained_state(self) -> dict[str, Tensor]:
        """What the tower's own file does not give back."""
        return {key: value for key, value in self.state_dict().items() if not key.startswith(FROZEN)}

    def frozen_state(self) -> dict[str, Tensor]:
        """What it does."""
        return {key: value for key, value in self.state_dict().items() if key.startswith(FROZEN)}

    @property
    def frozen_from(self) -> str | None:
        """The file or the name of the tower's weights."""
        return self.tower.source

    @staticmethod
    def key_map(key: str) -> str | None:
        """Ours, the official code's, and files that hold a tower alone."""
        key = key.removeprefix("encoder.")
        for pattern, ours in OFFICIAL:
            if re.match(pattern, key):
                return re.sub(pattern, ours, key)
        if OWN.match(key):
            return key
        of_tower = tower_key(key)
        return of_tower and f"tower.{of_tower}"


OWN = re.compile(r"(tower|tokenizer|local|adapters|head\.\d+)\.|cls_pos$")
BLOCK = r"(?:res)?blocks\.(\d+)\."
OFFICIAL = (
    (BLOCK + r"adapter\.ln1\.", r"adapters.\1.bottleneck.down."),
    (BLOCK + r"adapter\.ln2\.", r"adapters.\1.bottleneck.up."),
    (BLOCK + r"out_transform_3d\.0\.", r"adapters.\1.voxel_norm."),
    (BLOCK + r"out_transform_[12]d\.(\d+)\.0\.", r"adapters.\1.view_norms.\2."),
    (r"attn1\.(\d+)\.", r"local.\1."),
    (r"norm3\.(\d+)\.", r"local.\1.norm."),
    (r"patch_embed\.EncP\.raw_point_embed\.net\.", "tokenizer.embed."),
    (r"patch_embed\.EncP\.LGA_list\.(\d+)\.linear2\.(\d+)\.net1\.", r"tokenizer.stages.\1.blocks.\2.first."),
    (r"patch_embed\.EncP\.LGA_list\.(\d+)\.linear2\.(\d+)\.net2\.", r"tokenizer.stages.\1.blocks.\2.second."),
    (r"prediction\.head\.0\.0\.", "head.0."),
    (r"prediction\.head\.0\.1\.", "head.1."),
    (r"prediction\.head\.2\.0\.", "head.4."),
    (r"prediction\.head\.2\.1\.", "head.5."),
    (r"prediction\.head\.4\.0\.", "head.8."),
    (r"cls_head_finetune\.", "head."),
)
