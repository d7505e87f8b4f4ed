"""What Point-PEFT adds to the stages and blocks of a backbone, and how the official code calls it.

T prompts, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from models.layers.bottleneck import Bottleneck
from models.layers.transformer import Blocks
from models.peft.base import drawn, width_of
from models.peft.geometry import SharedAttention
from utils.errors import UserError


class Stage(nn.Module):
    """Parts for every block, the first of them with prompts, and attention that all blocks share."""

    def __init__(
        self,
        blocks: Blocks,
        prompt_blocks: int | None,  # None: all
        parts: Callable[..., BlockParts],
        shared: Callable[[int], SharedAttention],
    ):
        super().__init__()
        width, prompted = width_of(blocks), len(blocks.blocks) if prompt_blocks is None else prompt_blocks
        made = [parts(block, width, has_prompts=index < prompted) for index, block in enumerate(blocks.blocks)]
        self.shared, self.blocks = shared(width), nn.ModuleList(made)


class BlockParts(nn.Module):
    """What Point-PEFT adds to one block."""

    def __init__(
        self,
        block: Any,
        width: int,
        has_prompts: bool,
        adapter_dim: int,
        outer_dim: int,
        prior_dim: int,
        num_prompts: int,
        as_keys: bool,
        gated: bool,
        gate_start: float,
        dropout: float,
        declare_unused: bool,
    ):
        super().__init__()
        self.has_prompts, self.gated = has_prompts, gated
        self.inner = Bottleneck(width, adapter_dim, dropout, residual=gated)
        self.outer = Bottleneck(width, outer_dim, dropout)
        self.norm = nn.BatchNorm1d(width)
        self.prompts = self.prior = self.gate = self.key_gate = None
        if has_prompts or declare_unused:
            self.prompts = drawn(num_prompts, width)
            self.prior = Bottleneck(width, prior_dim, dropout) if prior_dim else None
        if gated or declare_unused:
            self.gate = nn.Parameter(torch.full((1,), float(gate_start) if gated else 0.0))
        if has_prompts and as_keys:
            self.key_gate = nn.Parameter(torch.zeros(1, block.attn.num_heads, 1, 1))

    def unused(self, with_bank: bool) -> list[str]:
        idle = [] if self.gated else ["gate"]
        idle += [] if self.has_prompts else ["prompts"]
        idle += [] if self.has_prompts and with_bank else ["prior"]
        return [name for name, _ in self.named_parameters() if name.split(".")[0] in idle]


def one_a_stage(name: str, value: int | Sequence[int], stages: int) -> list[int]:
    values = [value] * stages if isinstance(value, int) else list(value)
    if len(values) != stages or min(values) < 1:
        raise UserError(f"{name}: {value}; one number of at least 1, or {stages}, one a stage")
    return values


OFFICIAL_PARTS = {
    "ad_gate": "gate",
    "prompt_embeddings": "prompts",
    "cp_adapter": "prior",
    "adapter": "inner",
    "adapter1": "outer",
    "out_transform.0": "norm",
    "attn.gate": "key_gate",
}
OFFICIAL_SHARED = {"attn1": "attention", "norm3": "norm"}
OFFICIAL_BACKBONE = (
    (r"^encoders\.", "encoder.token_embed."),
    (r"^pos_embeds\.", "encoder.pos_embed."),
    (r"^blocks\.(\d+)\.blocks\.", r"encoder.stages.\1.blocks."),
)


def official_name(key: str) -> str:
    """A key of the official code in our words; what is Point-PEFT's own begins with @."""
    if key == "prompt_cor":
        return "@prompt_xyz"
    found = re.match(r"blocks\.(?:(\d+)\.)?(?:blocks\.(\d+)\.)?(.*)", key)
    if found:
        stage, block, rest = found[1] or "0", found[2], found[3]
        table = OFFICIAL_SHARED if block is None else OFFICIAL_PARTS
        for theirs, ours in table.items():
            if rest == theirs or rest.startswith(theirs + "."):
                inner = rest.removeprefix(theirs).replace(".ln1.", ".down.").replace(".ln2.", ".up.")
                where = f"@stages.{stage}.shared." if block is None else f"@stages.{stage}.blocks.{block}."
                return f"{where}{ours}{inner}"
    for pattern, ours in OFFICIAL_BACKBONE:
        key = re.sub(pattern, ours, key)
    return key
