"""Point-M2AE: masked auto-encoding at several scales (arXiv 2205.14401), the pre-trainer.

The coarsest patches are hidden, and with them what only they hold at the finer scales; the encoder goes from fine to
coarse, a decoder back to the second finest scale, whose hidden patches are rebuilt. Scale 0 is the finest.
B clouds, N points, S scales, G groups of a scale, K members a group, V visible, M hidden, C channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from extensions import ops
from models.layers.attention import AttentionKind
from models.layers.hierarchy import Packed, Scale, back_project, hidden_rows, member_mean, pack, put_back, take
from models.layers.patch_embed import Embed
from models.layers.propagation import TokenPropagation
from models.layers.transformer import Blocks, Init, init_xavier, position_embedding, rising_rates
from models.masked import View, backbone_key
from models.masking import MaskSampler, RandomMask, draw_mask, split_by_mask
from models.point_m2ae_encoder import HierarchicalEncoder, HierarchicalModel, rename
from utils.errors import UserError
from utils.random import BatchRandom
from utils.schema import Whole

LENGTHS = 16  # packed tokens come in multiples of this


class HierarchicalDecoder(nn.Module):
    """From the coarsest scale to the second finest: tokens that are missing, positions, skip connections, blocks."""

    def __init__(
        self,
        encoder_dims: Sequence[int],  # of the scales that are decoded, coarsest first
        dims: Sequence[int],
        depths: Sequence[int],
        up_blocks: Sequence[int],
        num_heads: int,
        drop_path_rate: float,
    ):
        super().__init__()
        rates = iter(rising_rates(drop_path_rate, sum(depths)))
        self.pos_embed = nn.ModuleList(position_embedding(dim, dim) for dim in dims)
        self.stages = nn.ModuleList(
            Blocks(dim, num_heads, [next(rates) for _ in range(depth)]) for dim, depth in zip(dims, depths)
        )
        self.token_prop = nn.ModuleList(
            TokenPropagation(skip, coarse, dim, depth)
            for skip, coarse, dim, depth in zip(encoder_dims[1:], dims, dims[1:], up_blocks)
        )
        self.norm = nn.LayerNorm(dims[-1])
        self.stages.apply(init_xavier)

    def forward(self, tokens: Sequence[Tensor], scales: Sequence[Scale]) -> list[Tensor]:
        """Full token arrays (B, G, C) and scales, both coarsest first -> decoded tokens (B, G, C) of each stage."""
        stages: list[Tensor] = []
        for j, (x, scale) in enumerate(zip(tokens, scales)):
            if j > 0:
                x = self.token_prop[j - 1](scale.center, scales[j - 1].center, x, stages[-1])
            stages.append(self.stages[j](x, self.pos_embed[j](scale.center)))
        return stages


@dataclass(frozen=True)
class HierarchicalView(View):
    """The rebuilt patches are those of the second finest scale."""

    rows: Tensor  # (R,) their numbers in the flattened (B, G)
    masks: list[Tensor]  # what is hidden at every scale (B, G), finest first


class PointM2AE(HierarchicalModel):
    """Hide the coarsest patches, encode what is left of every scale, rebuild the hidden patches of the second finest.

    Upstream's slips, for its numbers only: padding_radius (0.32, 0.64, 1.28) lets tokens that close to the origin see
    the padding of shorter clouds, so that results depend on the batch; first_token_leak shows the first token of the
    first cloud of a batch at the finer scales although it is hidden.
    """

    def __init__(
        self,
        num_groups: Sequence[int] = (512, 256, 64),
        group_sizes: Sequence[int] = (16, 8, 8),
        embed_dims: Sequence[int] = (96, 192, 384),
        depths: Sequence[int] = (5, 5, 5),
        num_heads: int = 6,
        drop_path_rate: float = 0.1,
        patch_width: int = 256,
        decoder_dims: Sequence[int] = (384, 192),
        decoder_depths: Sequence[int] = (1, 1),
        decoder_up_blocks: Sequence[Whole] = (1,),
        points_per_patch: int | None = None,  # rebuilt points; upstream: the group size of the finest scale
        mask: MaskSampler | None = None,  # default RandomMask(0.8)
        embed: Embed = "all",  # visible_only: hidden patches are not embedded, BatchNorm does not see them
        skip_near_origin: bool = True,  # the rule of the FPS that the published weights were trained with
        padding_radius: Sequence[float] = (),
        first_token_leak: bool = False,
        init: Init = "trunc_normal",
        attention: AttentionKind | None = None,  # of the encoder; default dense
    ):
        encoder = HierarchicalEncoder(
            embed_dims,
            depths,
            num_heads,
            drop_path_rate,
            patch_width,
            init,
            padding_radius=padding_radius,
            attention=attention,
            embed=embed,
        )
        super().__init__(encoder, num_groups, group_sizes, skip_near_origin)
        check_decoder(embed_dims, decoder_dims, decoder_depths, decoder_up_blocks)
        self.num_features, self.num_heads, self.first_token_leak = embed_dims[-1], num_heads, first_token_leak
        self.mask = RandomMask(0.8) if mask is None else mask
        self.mask_token = nn.Parameter(torch.empty(1, embed_dims[-1]))
        self.decoder = HierarchicalDecoder(
            embed_dims[:0:-1], decoder_dims, decoder_depths, decoder_up_blocks, num_heads, drop_path_rate
        )
        self.head = nn.Linear(decoder_dims[-1], 3 * (points_per_patch or group_sizes[0]))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.encoder.norms[0].requires_grad_(False)  # nothing reads the normed tokens of the finest scale here

    def forward(self, points: Tensor, mask: Tensor | None = None, rng: BatchRandom | None = None) -> dict[str, Tensor]:
        """(B, N, 3) -> loss, and what is needed to draw a reconstruction. `mask` (B, G), True = hidden, at the coarsest
        scale replaces the sampler; `rng` makes the sampler's draws repeatable."""
        scales = self.group(points)
        view = self.rebuild(scales, *draw_mask(self.mask, scales[-1].center, mask, rng))
        out = {"prediction": view.prediction, "target": view.target, "rebuilt": view.rows}
        return {"loss": view.error.mean(), **out}

    def rebuild(self, groups: Sequence[Scale], mask: Tensor, num_masked: int) -> HierarchicalView:
        """Scales, mask of the coarsest (B, G), True = hidden, of M in every cloud -> what comes out on the way."""
        masks = back_project(mask, groups, self.first_token_leak)
        packed = self.pack(masks)
        encoded = self.encoder(groups, packed)
        stages = self.decode(encoded, groups, masks, packed)  # (B, G, C) each
        rows = hidden_rows(masks[1], packed[1])
        if not len(rows):
            raise UserError("mask: hides no patch of the second finest scale, nothing to rebuild; use a larger ratio")
        prediction = self._points_of(stages[-1], rows)  # (R, points_per_patch, 3)
        target = groups[1].neighborhood.flatten(0, 1)[rows]  # (R, K, 3)
        error = ops.chamfer_distance(prediction, target, reduction="patch")
        visible, hidden = split_by_mask(mask, num_masked)
        decoded = take(stages[0], hidden)  # (B, M, C)
        return HierarchicalView(visible, hidden, encoded[-1], decoded, prediction, target, error, rows, masks)

    def _points_of(self, decoded: Tensor, rows: Tensor) -> Tensor:
        """Tokens of the last stage (B, G, C) -> points of the patches in the given rows (R, P, 3)."""
        return self.head(self.decoder.norm(decoded.flatten(0, 1)[rows])).unflatten(-1, (-1, 3))

    def masks(
        self, scales: Sequence[Scale], mask: Tensor | None = None, rng: BatchRandom | None = None
    ) -> list[Tensor]:
        """What is hidden at every scale (B, G), finest first."""
        mask, _ = draw_mask(self.mask, scales[-1].center, mask, rng)
        return back_project(mask, scales, self.first_token_leak)

    def pack(self, masks: Sequence[Tensor]) -> list[Packed]:
        """Visible tokens of every scale; upstream's slip counts padding, so it gets no more than upstream."""
        return pack(masks, 1 if self.encoder.padding_radius else LENGTHS)

    def decode(
        self, encoded: Sequence[Tensor], scales: Sequence[Scale], masks: Sequence[Tensor], packed: Sequence[Packed]
    ) -> list[Tensor]:
        """Packed tokens of every scale -> decoded tokens (B, G, C), coarsest scale first, finest left out."""
        full = []
        for i in range(len(scales) - 1, 0, -1):
            shape = (*masks[i].shape, encoded[i].shape[-1])
            missing = self.mask_token if i == len(scales) - 1 else torch.zeros_like(encoded[i][:1, 0])
            full.append(put_back(missing.to(encoded[i].dtype).expand(shape), encoded[i], packed[i]))
        return self.decoder(full, scales[:0:-1])

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> tokens of the coarsest scale (B, G, C), none of them hidden."""
        return self.tokens(self.group(points))

    def reconstruct(
        self, points: Tensor, mask: Tensor | None = None, rng: BatchRandom | None = None
    ) -> tuple[Tensor, Tensor]:
        """Points of the finest patches that the network saw (B, V, 3), and those it rebuilt (B, M, 3). Clouds differ in
        the number of visible patches; those with fewer repeat their first."""
        scales = self.group(points)
        masks = self.masks(scales, mask, rng)
        output = self(points, masks[-1])
        center = scales[1].center
        placed = center.flatten(0, 1)[output["rebuilt"], None] + output["prediction"]  # (M, points_per_patch, 3)
        clouds = center.new_zeros(center.shape[0] * center.shape[1], placed[0].numel())
        clouds = clouds.index_copy(0, output["rebuilt"], placed.flatten(1)).view(*center.shape[:2], -1)
        patches = (scales[0].neighborhood + scales[0].center[:, :, None]).flatten(2)
        return _chosen(patches, ~masks[0]), _chosen(clouds, masks[1])

    # ---------------------------------------------------------------- the rest of models.masked.Backbone

    def centers(self, groups: Sequence[Scale]) -> Tensor:
        return groups[-1].center

    def tokens(self, groups: Sequence[Scale]) -> Tensor:
        """Finer tokens that no group of the next scale holds are left out, as in training."""
        nothing = torch.zeros(groups[-1].center.shape[:2], dtype=torch.bool, device=groups[-1].center.device)
        return self.encoder(groups, self.pack(back_project(nothing, groups)))[-1]

    def decoder_position(self, center: Tensor) -> Tensor:
        return self.decoder.pos_embed[0](center)

    def patch_error(self, groups: Sequence[Scale], view: View, error: Tensor) -> tuple[Tensor, Tensor]:
        """A coarse patch is as hard as its rebuilt members are in the mean; without any, its error is not known."""
        assert isinstance(view, HierarchicalView)
        known = view.masks[1]
        values = error.new_zeros(known.numel()).index_copy(0, view.rows, error).view(known.shape)
        for scale in groups[2:]:
            values, known = member_mean(values, known, scale.index)
        return values.gather(1, view.hidden), known.gather(1, view.hidden)

    def redecoded_error(self, groups: Sequence[Scale], view: View, complete: Tensor) -> Tensor:
        """Nothing is known of the finer scales; where a coarse token is missing stands the mask token."""
        assert isinstance(view, HierarchicalView)
        missing = self.mask_token.to(view.decoded.dtype).expand_as(complete)
        partial = missing.scatter(1, view.hidden[..., None].expand_as(view.decoded), view.decoded)
        finer = [complete.new_zeros(*scale.center.shape[:2], width) for scale, width in self._finer(groups)]
        of_all, of_view = (
            self._points_of(self.decoder([tokens, *finer], groups[:0:-1])[-1], view.rows)
            for tokens in (complete, partial)
        )
        return ops.chamfer_distance(of_view, of_all, reduction="patch")

    def _finer(self, groups: Sequence[Scale]) -> list[tuple[Scale, int]]:
        """The decoded scales below the coarsest, coarsest first, and the widths of their encoder tokens."""
        norms = [norm for norm in self.encoder.norms if isinstance(norm, nn.LayerNorm)]
        return [(scale, norm.normalized_shape[0]) for scale, norm in zip(groups[-2:0:-1], norms[-2:0:-1])]

    def rebuilding(self) -> list[nn.Module]:
        decoder = self.decoder
        later = (*decoder.stages[1:], *decoder.pos_embed[1:], decoder.token_prop, decoder.norm)
        return [*later, self.head, *self.encoder.norms[1:-1]]

    @staticmethod
    def rename(key: str) -> str:
        return rename(key)

    @staticmethod
    def key_map(key: str) -> str | None:
        return backbone_key(rename(key))


def _chosen(patches: Tensor, chosen: Tensor) -> Tensor:
    """Points (B, L, 3) of the patches (B, G, K * 3) that are chosen (B, G), the first of a cloud to fill up."""
    (packed,) = pack([~chosen])
    index = torch.where(packed.valid, packed.index, packed.index[:, :1])
    return take(patches, index).reshape(len(patches), -1, 3)


def check_decoder(
    embed_dims: Sequence[int], dims: Sequence[int], depths: Sequence[int], up_blocks: Sequence[int]
) -> None:
    """A stage for every scale but the finest, a propagation between two of them."""
    stages = len(embed_dims) - 1
    if stages < 1 or len(dims) != stages or len(depths) != stages or len(up_blocks) < stages - 1:
        raise UserError(
            f"{stages + 1} scales take {stages} entries in decoder_dims and decoder_depths and {stages - 1} in "
            f"decoder_up_blocks, found {len(dims)}, {len(depths)} and {len(up_blocks)}"
        )
    if dims[0] != embed_dims[-1]:
        raise UserError(f"decoder_dims must begin with {embed_dims[-1]}, the last of embed_dims, found {dims[0]}")
