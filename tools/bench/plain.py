"""Plain writings of the published networks, for comparison: the same mathematics as the official code writes it.

Convolutions over repeated and concatenated features, boolean indexing, softmax by hand; parameter names are the
official ones, so that weights go over by the key maps of our models. `plain_m2ae` holds the hierarchical network.
B clouds, G groups, K members, L visible tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.layers.transformer import DropPath
from models.masking import RandomMask
from utils.random import BatchRandom


class PlainEmbed(nn.Module):
    """Groups (R, K, C) -> tokens (R, D)."""

    def __init__(self, channels: int, dim: int):
        super().__init__()
        first, width, second = (128, 256, 512) if channels == 3 else (channels, channels, dim)
        self.first_conv = nn.Sequential(
            nn.Conv1d(channels, first, 1), nn.BatchNorm1d(first), nn.ReLU(inplace=True), nn.Conv1d(first, width, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * width, second, 1), nn.BatchNorm1d(second), nn.ReLU(inplace=True), nn.Conv1d(second, dim, 1)
        )

    def forward(self, groups: Tensor) -> Tensor:
        x = self.first_conv(groups.transpose(2, 1))
        whole = x.max(dim=2, keepdim=True)[0]
        x = self.second_conv(torch.cat([whole.expand(-1, -1, x.shape[2]), x], dim=1))
        return x.max(dim=2)[0]


class PlainAttention(nn.Module):
    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=False), nn.Linear(dim, dim)

    def forward(self, x: Tensor, blocked: Tensor | None) -> Tensor:
        b, n, c = x.shape
        q, k, v = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        scores = (q @ k.transpose(-2, -1)) * (c // self.heads) ** -0.5
        if blocked is not None:
            scores = scores + blocked.unsqueeze(1).expand(-1, self.heads, -1, -1) * -100000.0
        return self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, n, c))


class PlainBlock(nn.Module):
    def __init__(self, dim: int, heads: int, rate: float):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(dim), PlainAttention(dim, heads), nn.LayerNorm(dim)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(dim, 4 * dim), "fc2": nn.Linear(4 * dim, dim)})
        self.drop_path = DropPath(rate)

    def forward(self, x: Tensor, blocked: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), blocked))
        return x + self.drop_path(self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x)))))


class PlainBlocks(nn.Module):
    def __init__(self, dim: int, depth: int, heads: int, rates: Sequence[float]):
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(dim, heads, rates[i]) for i in range(depth))

    def forward(self, x: Tensor, position: Tensor, blocked: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x + position, blocked)
        return x


class PlainEncoder(nn.Module):
    """Groups -> visible tokens -> blocks -> norm."""

    def __init__(self, dim: int, depth: int, heads: int):
        super().__init__()
        self.encoder, self.pos_embed = PlainEmbed(3, dim), positions(dim, 128)
        self.blocks = PlainBlocks(dim, depth, heads, torch.linspace(0, 0.1, depth).tolist())
        self.norm = nn.LayerNorm(dim)

    def forward(self, neighborhood: Tensor, center: Tensor, mask: Tensor) -> Tensor:
        b, g = center.shape[:2]
        tokens = self.encoder(neighborhood.flatten(0, 1)).reshape(b, g, -1)
        seen = tokens[~mask].reshape(b, -1, tokens.shape[2])
        return self.norm(self.blocks(seen, self.pos_embed(center[~mask].reshape(b, -1, 3))))


class PlainMAE(nn.Module):
    """The published pre-trainer."""

    def __init__(self, dim: int = 384, depth: int = 12, decoder_depth: int = 4, heads: int = 6, groups=(64, 32)):
        super().__init__()
        self.groups, self.mask = groups, RandomMask(0.6)
        self.MAE_encoder = PlainEncoder(dim, depth, heads)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.decoder_pos_embed = positions(dim, 128)
        rates = torch.linspace(0, 0.1, decoder_depth).tolist()
        self.MAE_decoder = nn.ModuleDict(
            {"blocks": PlainBlocks(dim, decoder_depth, heads, rates).blocks, "norm": nn.LayerNorm(dim)}
        )
        self.increase_dim = nn.Sequential(nn.Conv1d(dim, 3 * groups[1], 1))

    def forward(self, points: Tensor, rng: BatchRandom) -> Tensor:
        neighborhood, center, _ = ops.group(points, *self.groups, skip_near_origin=True)
        mask = self.mask(center, rng)
        seen = self.MAE_encoder(neighborhood, center, mask)
        b = len(seen)
        place = [self.decoder_pos_embed(center[which].reshape(b, -1, 3)) for which in (~mask, mask)]
        number = place[1].shape[1]
        x, position = torch.cat([seen, self.mask_token.expand(b, number, -1)], dim=1), torch.cat(place, dim=1)
        for block in self.MAE_decoder["blocks"].children():
            x = block(x + position, None)
        x = self.MAE_decoder["norm"](x[:, -number:])
        rebuilt = self.increase_dim(x.transpose(1, 2)).transpose(1, 2).reshape(b * number, -1, 3)
        return ops.chamfer_distance(rebuilt, neighborhood[mask].reshape(b * number, -1, 3))


class PlainClassifier(nn.Module):
    """The published classifier."""

    def __init__(self, classes: int = 40, dim: int = 384, depth: int = 12, heads: int = 6, groups=(64, 32)):
        super().__init__()
        self.groups = groups
        self.encoder, self.pos_embed = PlainEmbed(3, dim), positions(dim, 128)
        self.cls_token, self.cls_pos = nn.Parameter(torch.zeros(1, 1, dim)), nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = PlainBlocks(dim, depth, heads, torch.linspace(0, 0.1, depth).tolist())
        self.norm = nn.LayerNorm(dim)
        hidden = [layer for inputs in (2 * dim, 256) for layer in _hidden(inputs, 256)]
        self.cls_head_finetune = nn.Sequential(*hidden, nn.Linear(256, classes))

    def forward(self, points: Tensor) -> Tensor:
        neighborhood, center, _ = ops.group(points, *self.groups, skip_near_origin=True)
        b, g = center.shape[:2]
        tokens = self.encoder(neighborhood.flatten(0, 1)).reshape(b, g, -1)
        x = torch.cat([self.cls_token.expand(b, -1, -1), tokens], dim=1)
        position = torch.cat([self.cls_pos.expand(b, -1, -1), self.pos_embed(center)], dim=1)
        x = self.norm(self.blocks(x, position))
        return self.cls_head_finetune(torch.cat([x[:, 0], x[:, 1:].max(1)[0]], dim=-1))


def positions(dim: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, dim))


def _hidden(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU(), nn.Dropout(0.5)]


def same_weights(plain: nn.Module, ours: nn.Module) -> None:
    """Our weights under the official names."""
    weights, key_map = ours.state_dict(), ours.key_map
    assert callable(key_map)
    plain.load_state_dict(
        {key: weights[str(key_map(key))].reshape(value.shape) for key, value in plain.state_dict().items()}
    )
