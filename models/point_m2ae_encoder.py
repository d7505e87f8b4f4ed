"""What all networks of Point-M2AE share (arXiv 2205.14401): the encoder from fine to coarse, and the official names.

Patches of a cloud are merged to patches of patches. Scale 0 is the finest.
B clouds, N points, S scales, G groups of a scale, K members a group, L packed tokens, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from models.layers.attention import AttentionKind
from models.layers.hierarchy import (
    Packed,
    Scale,
    group_scales,
    key_bias,
    leaking_bias,
    put_back,
    radius_bias,
    take,
)
from models.layers.patch_embed import Embed, PatchEmbed
from models.layers.transformer import Blocks, Init, init_trunc_normal, position_embedding, rising_rates
from utils.errors import UserError


class HierarchicalEncoder(nn.Module):
    """Scale by scale: merge the members of every group to a token, then let the tokens of the scale see each other.

    local_radius: tokens see only those closer than this, a radius a scale; 0 is everybody. Not for masked clouds.
    padding_radius: upstream's slip in masked clouds, see PointM2AE.
    embed: "visible_only" embeds the visible groups of masked clouds alone, see PointM2AE.
    norms: a LayerNorm on what leaves each scale (not on what is merged further).
    """

    def __init__(
        self,
        embed_dims: Sequence[int],
        depths: Sequence[int],
        num_heads: int,
        drop_path_rate: float,
        patch_width: int,
        init: Init,
        local_radius: Sequence[float] = (),
        padding_radius: Sequence[float] = (),
        norms: bool = True,
        attention: AttentionKind | None = None,
        embed: Embed = "all",
    ):
        super().__init__()
        check_lengths(embed_dims=embed_dims, depths=depths, local_radius=local_radius, padding_radius=padding_radius)
        rates = iter(rising_rates(drop_path_rate, sum(depths)))
        self.local_radius, self.padding_radius, self.embed = tuple(local_radius), tuple(padding_radius), embed
        self.token_embed = nn.ModuleList([PatchEmbed(embed_dims[0], patch_width)])
        for finer, dim in pairwise(embed_dims):
            self.token_embed.append(PatchEmbed(dim, finer, in_channels=finer, hidden=(finer, dim)))
        self.pos_embed = nn.ModuleList(position_embedding(dim, dim) for dim in embed_dims)
        self.stages = nn.ModuleList(
            Blocks(dim, num_heads, [next(rates) for _ in range(depth)], attention=attention)
            for dim, depth in zip(embed_dims, depths)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) if norms else nn.Identity() for dim in embed_dims)
        if init == "trunc_normal":
            self.apply(init_trunc_normal)

    def forward(self, scales: Sequence[Scale], packed: Sequence[Packed] | None = None) -> list[Tensor]:
        """Tokens of every scale: all (B, G, C), or the packed visible ones (B, L, C)."""
        tokens, outputs = torch.empty(0), []
        for i, scale in enumerate(scales):
            if packed is None:
                tokens = self.token_embed[i](self._members(i, scale, tokens))
                tokens = out = self.stages[i](tokens, self.pos_embed[i](scale.center), self._local_bias(i, scale))
            elif self.embed == "visible_only":
                place = packed[i].index
                seen = Scale(take(scale.neighborhood, place), scale.center, take(scale.index, place))
                out = self._see(i, self.token_embed[i](self._members(i, seen, tokens)), scale, packed[i])
                tokens = put_back(out.new_zeros(*scale.center.shape[:2], out.shape[-1]), out, packed[i])
            else:  # hidden groups are embedded too: BatchNorm has been trained on all of them
                tokens = self.token_embed[i](self._members(i, scale, tokens))
                out = self._see(i, take(tokens, packed[i].index), scale, packed[i])
                tokens = put_back(tokens, out, packed[i])
            outputs.append(self.norms[i](out))
        return outputs

    def _members(self, i: int, scale: Scale, tokens: Tensor) -> Tensor:
        """What the groups of a scale are made of: (B, G, K, 3) coordinates, or (B, G, K, C) tokens of the finer."""
        return scale.neighborhood if i == 0 else take(tokens, scale.index)

    def _see(self, i: int, tokens: Tensor, scale: Scale, packed: Packed) -> Tensor:
        """The blocks of one scale on packed tokens (B, L, C)."""
        position, bias = take(scale.center, packed.index), key_bias(packed)
        if self.padding_radius and packed.padded:
            outside = ~packed.valid[..., None]
            tokens, position = tokens.masked_fill(outside, 0), position.masked_fill(outside, 0)
            bias = leaking_bias(scale.center, packed, self.padding_radius[i])
        return self.stages[i](tokens, self.pos_embed[i](position), bias)

    def _local_bias(self, i: int, scale: Scale) -> Tensor | None:
        radius = self.local_radius[i] if self.local_radius else 0
        return radius_bias(scale.center, radius) if radius > 0 else None


class HierarchicalModel(nn.Module):
    """What every model on the encoder has: grouping, tokens, one vector a cloud."""

    def __init__(
        self,
        encoder: HierarchicalEncoder,
        num_groups: Sequence[int],
        group_sizes: Sequence[int],
        skip_near_origin: bool,
    ):
        super().__init__()
        check_lengths(embed_dims=encoder.stages, num_groups=num_groups, group_sizes=group_sizes)
        if any(finer < coarser for finer, coarser in pairwise(num_groups)):
            raise UserError(f"num_groups {tuple(num_groups)} must fall from the finest scale to the coarsest")
        self.encoder, self.skip_near_origin = encoder, skip_near_origin
        self.num_groups, self.group_sizes = tuple(num_groups), tuple(group_sizes)

    def group(self, points: Tensor) -> list[Scale]:
        """(B, N, 3) -> the groups of every scale, finest first."""
        return group_scales(points, self.num_groups, self.group_sizes, self.skip_near_origin)

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> tokens of the coarsest scale (B, G, C), nothing hidden."""
        return self.encoder(self.group(points))[-1]

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, C): mean plus maximum over the tokens."""
        tokens = self.forward_features(points)
        return tokens.mean(dim=1) + tokens.amax(dim=1)


def check_lengths(**per_scale: Sequence | nn.ModuleList) -> None:
    """One entry a scale in each, or none."""
    lengths = {name: len(values) for name, values in per_scale.items() if len(values)}
    if len(set(lengths.values())) > 1:
        raise UserError(f"one entry a scale is needed in {', '.join(lengths)}, found {list(lengths.values())}")


# Keys of the official code, pre-trainer, classifiers and segmenter, and ours. Ours pass unchanged.
OFFICIAL_NAMES = (
    (r"^h_encoder\.encoder_blocks\.", "encoder.stages."),
    (r"^h_encoder\.encoder_pos_embeds\.", "encoder.pos_embed."),
    (r"^h_encoder\.encoder_norms\.", "encoder.norms."),
    (r"^h_encoder\.", "encoder."),
    (r"^h_decoder\.", "decoder.stages."),
    (r"^decoder_pos_embeds\.", "decoder.pos_embed."),
    (r"^decoder_norm\.", "decoder.norm."),
    (r"^token_prop\.(\d+)\.fuse\.net\.", r"decoder.token_prop.\1.fuse."),
    (r"^token_prop\.(\d+)\.extraction\.operation\.", r"decoder.token_prop.\1.blocks."),
    (r"^rec_head\.", "head."),
    (r"^cls_head_finetune\.", "head."),
    (r"\.first_conv\.", ".first."),
    (r"\.second_conv\.", ".second."),
)


def rename(key: str) -> str:
    """An official key in our words."""
    for pattern, ours in OFFICIAL_NAMES:
        key = re.sub(pattern, ours, key)
    return key
