"""A plain writing of the published Point-M2AE (padding excluded): one sampling a scale, clouds packed one by one in
Python, a dense mask rebuilt in every block, interpolation from a sorted distance matrix.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.masking import RandomMask
from tools.bench.plain import PlainBlocks, PlainEmbed, positions
from utils.random import BatchRandom


class PlainPropagation(nn.Module):
    """Fuse skip connection and interpolated tokens, one residual block; channels first inside."""

    def __init__(self, skip: int, coarse: int, dim: int):
        super().__init__()
        self.fuse = nn.ModuleDict({"net": nn.Sequential(*_conv(skip + coarse, dim), nn.GELU())})
        block = nn.ModuleDict(
            {"net1": nn.Sequential(*_conv(dim, dim), nn.GELU()), "net2": nn.Sequential(*_conv(dim, dim))}
        )
        self.extraction = nn.ModuleDict({"operation": nn.ModuleList([block])})

    def forward(self, center: Tensor, coarse_center: Tensor, skip: Tensor, coarse: Tensor) -> Tensor:
        distance = -2 * center @ coarse_center.transpose(1, 2)
        distance = distance + center.square().sum(-1)[:, :, None] + coarse_center.square().sum(-1)[:, None]
        distance, index = distance.sort(dim=-1)
        weight = 1.0 / (distance[:, :, :3] + 1e-8)
        weight = weight / weight.sum(dim=2, keepdim=True)
        batch = torch.arange(len(center), device=center.device)[:, None, None]
        carried = (coarse[batch, index[:, :, :3]] * weight[..., None]).sum(dim=2)
        x = self.fuse["net"](torch.cat([skip, carried], dim=-1).permute(0, 2, 1))
        block = self.extraction["operation"][0]  # type: ignore[index]
        return F.gelu(block["net2"](block["net1"](x)) + x).permute(0, 2, 1)


class PlainHierarchy(nn.Module):
    def __init__(self, dims: Sequence[int], depths: Sequence[int], heads: int, rates: Sequence[float]):
        super().__init__()
        channels = (3, *dims[:-1])
        self.token_embed = nn.ModuleList(PlainEmbed(c, d) for c, d in zip(channels, dims))
        self.encoder_pos_embeds = nn.ModuleList(positions(dim, dim) for dim in dims)
        self.encoder_blocks = nn.ModuleList(
            PlainBlocks(dim, depth, heads, rates[sum(depths[:i]) :]) for i, (dim, depth) in enumerate(zip(dims, depths))
        )
        self.encoder_norms = nn.ModuleList(nn.LayerNorm(dim) for dim in dims)

    def forward(self, groups: list, masks: list[Tensor]) -> list[Tensor]:
        """Full token arrays (B, G, C), zero where hidden."""
        outputs, tokens = [], torch.empty(0)
        for i, (neighborhood, center, index) in enumerate(groups):
            b, g, k, _ = neighborhood.shape
            if i > 0:
                flat = (index + torch.arange(b, device=index.device)[:, None, None] * tokens.shape[1]).reshape(-1)
                neighborhood = tokens.reshape(b * tokens.shape[1], -1)[flat, :].reshape(b, g, k, -1)
            tokens = self.token_embed[i](neighborhood.flatten(0, 1)).reshape(b, g, -1)
            seen = ~masks[i]
            longest = int(seen.sum(1).max())
            packed, place = tokens.new_zeros(b, longest, tokens.shape[2]), center.new_zeros(b, longest, 3)
            padding = tokens.new_ones(b, longest, longest)
            for j in range(b):
                number = int(seen[j].sum())
                packed[j, :number], place[j, :number] = tokens[j][seen[j]], center[j][seen[j]]
                padding[j, :number, :number] = 0
            packed = self.encoder_blocks[i](packed, self.encoder_pos_embeds[i](place), padding)
            valid = padding.diagonal(dim1=1, dim2=2) == 0
            tokens = tokens.clone()
            tokens[seen] = packed[valid]
            full = torch.zeros_like(tokens)
            full[seen] = self.encoder_norms[i](packed)[valid]
            outputs.append(full)
        return outputs


class PlainM2AE(nn.Module):
    """The published pre-trainer with its published sizes and parameter names."""

    def __init__(self, dims: Sequence[int] = (96, 192, 384), depths: Sequence[int] = (5, 5, 5), heads: int = 6):
        super().__init__()
        self.num_groups, self.group_sizes = (512, 256, 64), (16, 8, 8)
        self.h_encoder = PlainHierarchy(dims, depths, heads, torch.linspace(0, 0.1, sum(depths)).tolist())
        self.mask_token = nn.Parameter(torch.zeros(1, dims[2]))
        self.h_decoder = nn.ModuleList([PlainBlocks(dims[2], 1, heads, [0.0]), PlainBlocks(dims[1], 1, heads, [0.1])])
        self.decoder_pos_embeds = nn.ModuleList([positions(dims[2], dims[2]), positions(dims[1], dims[1])])
        self.token_prop = nn.ModuleList([PlainPropagation(dims[1], dims[2], dims[1])])
        self.decoder_norm = nn.LayerNorm(dims[1])
        self.rec_head = nn.Conv1d(dims[1], 3 * self.group_sizes[0], 1)

    def forward(self, points: Tensor, rng: BatchRandom) -> Tensor:
        groups, finer = [], points
        for number, size in zip(self.num_groups, self.group_sizes):
            groups.append(ops.group(finer, number, size, skip_near_origin=True))
            finer = groups[-1][1]
        masks = _back_project(RandomMask(0.8)(finer, rng), groups)
        _, middle, coarse = self.h_encoder(groups, masks)
        b, _, c = coarse.shape
        missing = self.mask_token.expand(b, int(masks[2][0].sum()), -1)
        x = torch.cat([coarse[~masks[2]].reshape(b, -1, c), missing], dim=1)
        place = torch.cat([finer[~masks[2]].reshape(b, -1, 3), finer[masks[2]].reshape(b, -1, 3)], dim=1)
        x = self.h_decoder[0](x, self.decoder_pos_embeds[0](place))
        center = groups[1][1]
        x = self.token_prop[0](center, place, middle, x)
        x = self.h_decoder[1](x, self.decoder_pos_embeds[1](center))
        x = self.decoder_norm(x)[masks[1]]
        rebuilt = self.rec_head(x.unsqueeze(-1)).squeeze(-1).reshape(len(x), -1, 3)
        return ops.chamfer_distance(rebuilt, groups[1][0][masks[1]])


def _back_project(mask: Tensor, groups: list) -> list[Tensor]:
    masks = [mask]
    for i in (2, 1):
        b, finer = len(mask), groups[i - 1][1].shape[1]
        hidden = torch.ones(b, finer, dtype=torch.bool, device=mask.device)
        for j in range(b):
            hidden[j, groups[i][2][j][~masks[0][j]].flatten()] = False
        masks.insert(0, hidden)
    return masks


def _conv(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs)]
