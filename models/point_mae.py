"""Point-MAE: masked auto-encoding of point patches, and the classifier built on its encoder (arXiv 2203.06604).

B clouds, N points, G patches, K points a patch, M hidden patches, C channels.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from extensions import ops
from models.layers.attention import AttentionKind
from models.layers.attention.dense import check_heads
from models.layers.patch_embed import Embed, PatchEmbed
from models.layers.transformer import Init, Transformer, init_trunc_normal, init_xavier, mlp_head, position_embedding
from models.masked import View, backbone_key
from models.masking import MaskSampler, RandomMask, draw_mask, split_by_mask
from utils.random import BatchRandom


class PointEncoder(nn.Module):
    """Patches -> tokens -> transformer. What pre-training, probes and classifiers share."""

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        drop_path_rate: float,
        patch_width: int,
        init: str,
        attention: AttentionKind | None = None,
    ):
        super().__init__()
        self.embed = PatchEmbed(embed_dim, patch_width)
        self.pos_embed = position_embedding(embed_dim)
        self.transformer = Transformer(embed_dim, depth, num_heads, drop_path_rate=drop_path_rate, attention=attention)
        if init == "trunc_normal":
            self.apply(init_trunc_normal)

    def forward(
        self, neighborhood: Tensor, center: Tensor, visible: Tensor | None = None, embed: Embed = "all"
    ) -> Tensor:
        """(B, G, K, 3), (B, G, 3) -> (B, G, C), or only the tokens at the indices `visible` (B, V); what the embedding
        sees beside them, `embed` says."""
        if visible is None:
            return self.transformer(self.embed(neighborhood), self.pos_embed(center))
        position = self.pos_embed(ops.gather_points(center, visible))
        if embed == "visible_only":
            patches = ops.gather_points(neighborhood.flatten(2), visible)
            return self.transformer(self.embed(patches.unflatten(2, (-1, 3))), position)
        return self.transformer(ops.gather_points(self.embed(neighborhood), visible), position)


class PatchModel(nn.Module):
    """What every model on the encoder has: grouping, tokens, one vector a cloud."""

    def __init__(self, encoder: PointEncoder, num_group: int, group_size: int, skip_near_origin: bool):
        super().__init__()
        self.encoder = encoder
        self.num_group, self.group_size, self.skip_near_origin = num_group, group_size, skip_near_origin

    def group(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, 3) -> patches around farthest points (B, G, K, 3), relative to their centres (B, G, 3)."""
        neighborhood, center, _ = ops.group(
            points, self.num_group, self.group_size, skip_near_origin=self.skip_near_origin
        )
        return neighborhood, center

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> tokens of all patches (B, G, C): nothing hidden, no class token."""
        return self.encoder(*self.group(points))

    def encode(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> one vector a cloud (B, C): mean plus maximum over the tokens."""
        tokens = self.forward_features(points)
        return tokens.mean(dim=1) + tokens.amax(dim=1)


class PointMAE(PatchModel):
    """Hide most patches, encode the rest, rebuild the points of the hidden ones; loss = Chamfer distance.

    embed: what goes through the mini-PointNet. "all", as published; "visible_only" saves the hidden patches' share of
    it, and its BatchNorm then sees the visible patches alone: another network, if nearly the same.
    """

    def __init__(
        self,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        decoder_depth: int = 4,
        decoder_num_heads: int = 6,
        num_group: int = 64,
        group_size: int = 32,
        patch_width: int = 256,
        mask: MaskSampler | None = None,  # default RandomMask(0.6)
        embed: Embed = "all",
        loss: Literal["cdl1", "cdl2"] = "cdl2",
        skip_near_origin: bool = True,  # the rule of the FPS that the published weights were trained with
        init: Init = "trunc_normal",
        attention: AttentionKind | None = None,  # of the encoder; default dense
        decoder_attention: AttentionKind | None = None,
    ):
        encoder = PointEncoder(embed_dim, depth, num_heads, drop_path_rate, patch_width, init, attention)
        super().__init__(encoder, num_group, group_size, skip_near_origin)
        self.num_features, self.num_heads = embed_dim, num_heads
        self.mask, self.embed = RandomMask() if mask is None else mask, embed
        self.norm_of_loss: Literal["l1", "l2"] = "l1" if loss == "cdl1" else "l2"
        self.mask_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.decoder_pos_embed = position_embedding(embed_dim)
        if decoder_attention is None:
            check_heads(embed_dim, decoder_num_heads, by="decoder_num_heads")
        self.decoder = Transformer(
            embed_dim, decoder_depth, decoder_num_heads, drop_path_rate=drop_path_rate, attention=decoder_attention
        )
        self.head = nn.Linear(embed_dim, 3 * group_size)
        self.decoder.apply(init_xavier)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(self, points: Tensor, mask: Tensor | None = None, rng: BatchRandom | None = None) -> dict[str, Tensor]:
        """(B, N, 3) -> loss, and what is needed to draw a reconstruction. `mask` (B, G), True = hidden, replaces the
        sampler; `rng` makes the sampler's draws repeatable."""
        groups = self.group(points)
        view = self.rebuild(groups, *draw_mask(self.mask, groups[1], mask, rng))
        out = {"prediction": view.prediction, "target": view.target, "center": groups[1], "hidden": view.hidden}
        return {"loss": view.error.mean(), **out}

    def rebuild(self, groups: tuple[Tensor, Tensor], mask: Tensor, num_masked: int) -> View:
        """Patches and centres, mask (B, G), True = hidden, of M in every cloud -> what comes out on the way."""
        neighborhood, center = groups
        visible, hidden = split_by_mask(mask, num_masked)
        tokens = self.encoder(neighborhood, center, visible, self.embed)  # (B, G - M, C)
        decoded = self.decode(tokens, center, visible, hidden)  # (B, M, C)
        prediction = self.head(decoded).unflatten(-1, (self.group_size, 3))  # (B, M, K, 3)
        target = ops.gather_points(neighborhood.flatten(2), hidden).unflatten(-1, (self.group_size, 3))
        error = self._error(prediction, target)
        return View(visible, hidden, tokens, decoded, prediction, target, error)

    def _error(self, prediction: Tensor, target: Tensor) -> Tensor:
        """(B, M, P, 3), (B, M, K, 3) -> Chamfer distance of each patch (B * M,)."""
        clouds = prediction.flatten(0, 1), target.flatten(0, 1)
        return ops.chamfer_distance(*clouds, reduction="patch", norm=self.norm_of_loss)

    def decode(self, tokens: Tensor, center: Tensor, visible: Tensor, hidden: Tensor) -> Tensor:
        """Visible tokens (B, G - M, C), then mask tokens -> decoded tokens of the hidden patches (B, M, C)."""
        position = self.decoder_position(ops.gather_points(center, torch.cat([visible, hidden], dim=1)))
        masked = self.mask_token.to(tokens.dtype).expand(tokens.shape[0], hidden.shape[1], -1)
        return self.decoder(torch.cat([tokens, masked], dim=1), position, last=hidden.shape[1])

    def reconstruct(
        self, points: Tensor, mask: Tensor | None = None, rng: BatchRandom | None = None
    ) -> tuple[Tensor, Tensor]:
        """Points of the patches that the network saw (B, V, 3), and of those it rebuilt (B, H, 3)."""
        output = self(points, mask, rng)
        neighborhood, center = self.group(points)
        hidden = torch.zeros(center.shape[:2], dtype=torch.bool, device=points.device)
        hidden = hidden.scatter(1, output["hidden"], True)
        seen, _ = split_by_mask(hidden, output["hidden"].shape[1])
        absolute = (neighborhood + center[:, :, None]).flatten(2)
        rebuilt = output["prediction"] + ops.gather_points(center, output["hidden"])[:, :, None]
        return ops.gather_points(absolute, seen).reshape(len(points), -1, 3), rebuilt.flatten(1, 2)

    # ---------------------------------------------------------------- the rest of models.masked.Backbone

    def centers(self, groups: tuple[Tensor, Tensor]) -> Tensor:
        return groups[1]

    def tokens(self, groups: tuple[Tensor, Tensor]) -> Tensor:
        return self.encoder(*groups)

    def decoder_position(self, center: Tensor) -> Tensor:
        return self.decoder_pos_embed(center)

    def patch_error(self, groups: tuple[Tensor, Tensor], view: View, error: Tensor) -> tuple[Tensor, Tensor]:
        error = error.view(view.hidden.shape)
        return error, torch.ones_like(error, dtype=torch.bool)

    def redecoded_error(self, groups: tuple[Tensor, Tensor], view: View, complete: Tensor) -> Tensor:
        """The decoded tokens stand alone, as the visible ones are not the student's to pass on."""
        of_all = self._points_of(complete, groups[1])
        of_view = self._points_of(view.decoded, ops.gather_points(groups[1], view.hidden))
        return self._error(of_view, ops.gather_points(of_all.flatten(2), view.hidden).unflatten(-1, (-1, 3)))

    def _points_of(self, tokens: Tensor, center: Tensor) -> Tensor:
        """Decoder and head on tokens (B, L, C) as they are -> (B, L, K, 3)."""
        return self.head(self.decoder(tokens, self.decoder_position(center))).unflatten(-1, (self.group_size, 3))

    def rebuilding(self) -> list[nn.Module]:
        return [self.head]

    @staticmethod
    def rename(key: str) -> str:
        return rename(key)

    @staticmethod
    def key_map(key: str) -> str | None:
        return backbone_key(rename(key))


class PointMAEClassifier(PatchModel):
    """The encoder with a class token and an MLP head on [class token, max over patches]."""

    def __init__(
        self,
        num_classes: int,
        embed_dim: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        num_group: int = 64,
        group_size: int = 32,
        patch_width: int = 256,
        head_dim: int = 256,
        head_dropout: float = 0.5,
        skip_near_origin: bool = True,
        init: Init = "trunc_normal",
        attention: AttentionKind | None = None,
    ):
        encoder = PointEncoder(embed_dim, depth, num_heads, drop_path_rate, patch_width, init, attention)
        super().__init__(encoder, num_group, group_size, skip_near_origin)
        self.num_features = embed_dim
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.cls_pos = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.head = mlp_head(2 * embed_dim, head_dim, num_classes, head_dropout)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        nn.init.trunc_normal_(self.cls_pos, std=0.02)

    def forward(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> logits (B, num_classes)."""
        neighborhood, center = self.group(points)
        tokens = self._prepend(self.cls_token, self.encoder.embed(neighborhood))  # (B, 1 + G, C)
        position = self._prepend(self.cls_pos, self.encoder.pos_embed(center))
        tokens = self.encoder.transformer(tokens, position, special=1)
        return self.head(torch.cat([tokens[:, 0], tokens[:, 1:].amax(dim=1)], dim=-1))

    @staticmethod
    def _prepend(first: Tensor, tokens: Tensor) -> Tensor:
        return torch.cat([first.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)

    @staticmethod
    def key_map(key: str) -> str | None:
        """As `rename`; what only a pre-trainer has is left out."""
        renamed = backbone_key(rename(key))
        if renamed is None or renamed.startswith(("decoder", "mask_token")) or renamed in ("head.weight", "head.bias"):
            return None
        return renamed


# Keys of the official Point-MAE and GM3D codes, pre-trainers and classifiers, and ours. Ours pass unchanged.
# In a GM3D pre-trainer `norm_p` at the top is a stray norm without training; the encoder's own, of a longer name, wins.
OFFICIAL_PREFIXES = (
    ("MAE_encoder.encoder.first_conv.", "encoder.embed.first."),
    ("MAE_encoder.encoder.second_conv.", "encoder.embed.second."),
    ("MAE_encoder.pos_embed.", "encoder.pos_embed."),
    ("MAE_encoder.blocks.blocks.", "encoder.transformer.blocks."),
    ("MAE_encoder.norm.", "encoder.transformer.norm."),
    ("MAE_encoder.norm_p.", "encoder.transformer.norm."),
    ("MAE_decoder.", "decoder."),
    ("MAE_decoder_loss_pred.", "predictor.decoder."),
    ("mask_token_loss_pred", "predictor.mask_token"),
    ("increase_dim_2.", "predictor.head."),
    ("increase_dim_just_network_without_feature.0.", "head."),
    ("increase_dim.0.", "head."),
    ("encoder.first_conv.", "encoder.embed.first."),
    ("encoder.second_conv.", "encoder.embed.second."),
    ("pos_embed.", "encoder.pos_embed."),
    ("blocks.blocks.", "encoder.transformer.blocks."),
    ("norm.", "encoder.transformer.norm."),
    ("norm_p.", "encoder.transformer.norm."),
    ("cls_head_finetune.", "head."),
)


def rename(key: str) -> str:
    """An official key in our words."""
    for prefix, ours in OFFICIAL_PREFIXES:
        if key.startswith(prefix):
            return ours + key.removeprefix(prefix)
    return key
