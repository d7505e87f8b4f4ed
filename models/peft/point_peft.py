"""Point-PEFT: prompts informed by a memory bank, adapters that look at neighbourhoods, trained biases (2310.03059).

B clouds, N points, G patch tokens, T prompts, L all tokens of a block, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import ops
from models.layers.attention.dense import dense_attention
from models.layers.hierarchy import group_scales
from models.peft.base import (
    PerForward,
    TokenMethod,
    drawn,
    insert,
    stages_of,
    take_out,
    widen_bias,
)
from models.peft.geometry import Neighbourhoods, SharedAttention, neighbourhoods, spread
from models.peft.point_peft_parts import BlockParts, Stage, official_name, one_a_stage
from models.peft.prior import Extractor, Pooling, retrieve
from utils.errors import UserError

Compat = Literal["prompt_rows", "shifted_mask", "unused_weights", "double_softmax"]
BIAS = re.compile(r"\.blocks\.\d+\.(norm1|norm2|attn\.proj|mlp\.fc1|mlp\.fc2)\.bias$")
FINAL_NORM = ("encoder.transformer.norm.", "encoder.norms.", "norm.")


class PointPEFT(TokenMethod):
    """The defaults are the published ScanObjectNN model on Point-MAE; docs/peft.md has those of the other backbones.

    prompt_blocks: the first so many blocks of each stage have prompts; null is all. prompts: tokens among the others,
    or further keys and values of the attention. ffn: what leaves the feed-forward network f becomes f + adapter_scale *
    A(f), or gate * (f + A(f)) with a trained gate that starts at gate_start. propagate, center: coefficients of the
    geometry-aware adapter. bank: where the memory bank lies, "build" to make it when the run starts, null for none.
    leave_one_out: the nearest stored cloud, nearly always the cloud itself, is left out while training.
    compat: published slips. prompt_rows: neighbours are looked up in another list of points than they were found in,
    and prompts stand where the first patches should; shifted_mask: local attention is masked T rows too early;
    unused_weights: prompts and gates that never act are declared; double_softmax: of the prompts' attention.
    """

    copies = ("extractor.",)

    def __init__(
        self,
        model: nn.Module,
        num_prompts: int = 10,
        prompt_blocks: int | None = 6,
        prompts: Literal["tokens", "keys"] = "tokens",
        adapter_dim: int | Sequence[int] = 16,  # or a number a stage
        outer_dim: int | Sequence[int] | None = None,  # default adapter_dim
        prior_dim: int = 8,
        inner_dim: int = 18,
        inner_heads: int = 6,
        ffn: Literal["add", "gate"] = "add",
        adapter_scale: float = 0.7,
        gate_start: float = 1.0,
        propagate: float = 0.3,
        center: float = 0.3,
        pooling: Pooling = "max",
        dropout: float = 0.1,
        bank: str | None = None,
        query_num_groups: int | list[int] | None = None,  # default: those of the model
        query_group_sizes: int | list[int] | None = None,
        temperature: float = 1.0,
        leave_one_out: bool = False,
        compat: Sequence[Compat] = (),
    ):
        super().__init__(model)
        if num_prompts < 3:
            raise UserError(f"num_prompts: {num_prompts}; two places are the bank's summary, so use at least 3")
        self.as_keys, self.gated = prompts == "keys", ffn == "gate"
        self.number, self.adapter_scale = num_prompts, adapter_scale
        self.propagate, self.center, self.compat = propagate, center, frozenset(compat)
        self.temperature, self.leave_one_out, self.bank_from = temperature, leave_one_out, bank
        self.skip = bool(getattr(model, "skip_near_origin", False))
        self.num_groups, self.group_sizes = _groups(model)
        self.prompt_dropout = nn.Dropout(dropout)
        self.prompt_xyz = None if self.as_keys else drawn(num_prompts, 3)
        stages, declared = stages_of(model), "unused_weights" in self.compat
        inner = one_a_stage("adapter_dim", adapter_dim, len(stages))
        outer = inner if outer_dim is None else one_a_stage("outer_dim", outer_dim, len(stages))
        prior = [0] * (len(stages) - 1) + [prior_dim if bank or declared else 0]
        shared = partial(SharedAttention, inner=inner_dim, num_heads=inner_heads, pooling=pooling)
        parts = partial(
            BlockParts,
            num_prompts=num_prompts,
            as_keys=self.as_keys,
            gated=self.gated,
            gate_start=gate_start,
            dropout=dropout,
            declare_unused=declared,
        )
        self.stages = nn.ModuleList(
            Stage(stage, prompt_blocks, partial(parts, adapter_dim=a, outer_dim=o, prior_dim=p), shared)
            for stage, a, o, p in zip(stages, inner, outer, prior)
        )
        self.register_buffer("bank", None, persistent=False)
        how: Pooling = "mean_max" if len(stages) > 1 else "max"
        groups = query_num_groups, query_group_sizes
        self.extractor = None if bank is None else Extractor(model, how, *groups)
        self.scene = PerForward()
        own: Any = model.group
        self._group = own
        self.replace(model, "group", self.group)
        self.take_steps(model, self.step)

    def trains(self, name: str) -> bool:
        return BIAS.search(name) is not None or name.startswith(FINAL_NORM) or super().trains(name)

    def unused(self) -> list[str]:
        names, prompted = [], False
        for key, module in self.named_modules():
            if isinstance(module, BlockParts):
                names += [f"{key}.{name}" for name in module.unused(self.bank_from is not None)]
                prompted |= module.has_prompts
        return names if prompted or self.as_keys else [*names, "prompt_xyz"]

    def settle(self, model: nn.Module) -> None:
        if self.extractor is not None:
            self.extractor.share(model)

    # ---------------------------------------------------------------- memory bank

    def set_bank(self, bank: Tensor | None) -> None:
        """(C, M), a unit column a stored cloud."""
        width, needed = width_of_last(self), self.number - 2 + int(self.leave_one_out)
        if bank is not None and (bank.ndim != 2 or bank.shape[0] != width or bank.shape[1] < needed):
            raise UserError(f"bank: {tuple(bank.shape)}; needs ({width}, {needed} or more): a column a stored cloud")
        own = next(self.parameters())
        self.bank = None if bank is None else bank.to(own.device, torch.float32)

    # ---------------------------------------------------------------- forward

    def group(self, points: Tensor) -> Any:
        """The model's grouping; the coordinates are noted for the blocks."""
        grouped = self._group(points)
        centers = [grouped[1]] if isinstance(grouped, tuple) else [scale.center for scale in grouped]
        self.scene.clear()
        self.scene["centers"] = centers
        for number, center in enumerate(centers):
            self.scene["plain", number] = self._hoods(center, center, number, self.skip)
        if not self.as_keys:
            self._place_prompts(points, centers)
        if self.bank is not None and self.extractor is not None:
            skip = int(self.leave_one_out and self.training)
            with torch.autocast(points.device.type, enabled=False):
                feature = self.extractor(points)
                self.scene["prior"] = retrieve(feature, self.bank, self.number - 2, self.temperature, skip)
        return grouped

    def _place_prompts(self, points: Tensor, centers: list[Tensor]) -> None:
        """Neighbourhoods of patches and prompts together."""
        assert self.prompt_xyz is not None
        xyz = self.prompt_xyz.to(points.dtype).expand(len(points), -1, -1)
        if "prompt_rows" not in self.compat:
            for number, center in enumerate(centers):
                self.scene["prompted", number] = self._hoods(torch.cat([center, xyz], dim=1), center, number)
            return
        shifted = _centers(torch.cat([xyz, points], dim=1), self.num_groups, self.group_sizes, self.skip)
        for number, center in enumerate(shifted):
            self.scene["prompted", number] = self._hoods(center, center, number, self.skip)

    def _hoods(self, rows: Tensor, tokens: Tensor, stage: int, skip: bool = False) -> Neighbourhoods:
        """The neighbourhoods of a stage are the groups of the next coarser one; of the last: half as many."""
        last = stage + 1 == len(self.num_groups)
        number = self.num_groups[stage] // 2 if last else self.num_groups[stage + 1]
        one_scale = len(self.num_groups) == 1
        size = self.group_sizes[stage] // 2 if one_scale else self.group_sizes[stage if last else stage + 1]
        return neighbourhoods(rows, tokens, max(number, 1), max(size, 1), skip)

    def step(
        self,
        stage: int,
        index: int,
        block: Any,
        x: Tensor,
        position: Tensor,
        bias: Tensor | None,
        special: int = 0,
    ) -> Tensor:
        of_stage: Any = self.stages[stage]
        shared, parts = of_stage.shared, of_stage.blocks[index]
        prompts, x = self._prompts(parts, stage), x + position
        as_tokens = prompts is not None and not self.as_keys
        place = self.places.first(x)
        if prompts is not None and as_tokens:
            x = insert(x, prompts, place)
            bias, special = self._widen(bias, place), special + self.number
        x = x + self._attention(block, parts, x, bias, special, prompts if self.as_keys else None)
        f = block.drop_path(block.mlp(block.norm2(x)))
        x = x + (parts.gate * parts.inner(f) if self.gated else f + self.adapter_scale * parts.inner(f))
        hoods = self.scene["prompted" if as_tokens else "plain", stage]
        x = self._look_around(shared, parts, block.drop_path, x, hoods, place, self.number if as_tokens else 0)
        x = parts.outer(x)
        return take_out(x, self.number, place)[0] if as_tokens else x

    def _prompts(self, parts: BlockParts, stage: int) -> Tensor | None:
        """(T, C), or with a bank (B, T, C)."""
        if not parts.has_prompts:
            return None
        prompts, prior = self.prompt_dropout(parts.prompts), self.scene.get("prior")
        return prompts if prior is None or parts.prior is None else prompts + parts.prior(prior)

    def _widen(self, bias: Tensor | None, place: int) -> Tensor | None:
        if bias is not None and "shifted_mask" in self.compat:
            return F.pad(bias, (0, self.number, 0, self.number))
        return widen_bias(bias, self.number, place)

    def _attention(
        self, block: Any, parts: BlockParts, x: Tensor, bias: Tensor | None, special: int, prompts: Tensor | None
    ) -> Tensor:
        """Without drop path, as published; with prompts as keys, these are attended to apart and added by a gate."""
        attn, x = block.attn, block.norm1(x)
        if prompts is None:
            return attn(x, bias, special)
        heads = attn.num_heads

        def split(rows: Tensor) -> list[Tensor]:
            return list(attn.qkv(rows).unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0))

        query, key, value = split(x)
        _, prompt_key, prompt_value = split(prompts.expand(len(x), -1, -1))
        weights = (query @ prompt_key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
        if "double_softmax" in self.compat:
            weights = weights.softmax(dim=-1)
        out = dense_attention(query, key, value, bias) + parts.key_gate * (weights @ prompt_value)
        return attn.proj(out.transpose(1, 2).flatten(2))

    def _look_around(
        self,
        shared: nn.Module,
        parts: BlockParts,
        drop_path: Any,
        x: Tensor,
        hoods: Neighbourhoods,
        place: int,
        number: int,
    ) -> Tensor:
        """The geometry-aware adapter; class token and prompts stay as they are."""
        before, tokens = x[:, : place + number], x[:, place + number :]
        inserted = before[:, place:]
        first = "prompt_rows" in self.compat
        rows = torch.cat([inserted, tokens] if first else [tokens, inserted], dim=1) if number else tokens
        pooled = shared(rows, hoods.index, drop_path)
        tokens = spread(rows, tokens, pooled, parts.norm, hoods, self.center, self.propagate)
        return torch.cat([before, tokens], dim=1)

    # ---------------------------------------------------------------- names of the official code

    def official(self, key: str) -> str:
        return official_name(key)


def width_of_last(method: PointPEFT) -> int:
    last: Any = method.stages[-1]
    return last.blocks[0].norm.num_features


def _groups(model: Any) -> tuple[list[int], list[int]]:
    """Numbers and sizes of the groups, one entry a scale."""
    if hasattr(model, "num_group"):
        return [model.num_group], [model.group_size]
    if hasattr(model, "num_groups"):
        return list(model.num_groups), list(model.group_sizes)
    raise UserError(f"point_peft: '{type(model).__name__}' does not say how it groups points")


def _centers(points: Tensor, numbers: list[int], sizes: list[int], skip: bool) -> list[Tensor]:
    """Centres of every scale, with gradients to the points."""
    if len(numbers) > 1:
        return [scale.center for scale in group_scales(points, numbers, sizes, skip)]
    order = ops.farthest_point_sample(points.detach(), numbers[0], skip_near_origin=skip)
    return [ops.gather_points(points, order)]
