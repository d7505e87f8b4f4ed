"""DAPT: token-wise dynamic adapters, scales and shifts, prompts made inside (arXiv 2403.01439).

B clouds, L tokens, G patches, C channels.
"""

from __future__ import annotations

import re
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.peft.base import (
    Method,
    TokenMethod,
    final_norm,
    insert,
    stages_of,
    take_out,
    widen_bias,
    width_of,
)
from utils.errors import UserError


class DAPT(TokenMethod):
    """Parallel to the feed-forward network of every block a bottleneck whose output each token scales by itself; the
    mean of its outputs becomes a prompt for the blocks behind. What leaves the norms and linear layers is scaled and
    shifted, channel by channel.

    positions: added once, before the first block, as published, or before each as the backbone was trained.
    head_prompt: Point-MAE's classifier reads the mean of the prompts too (published on ScanObjectNN, not ModelNet40).
    """

    def __init__(
        self,
        model: nn.Module,
        rank: int = 64,
        dropout: float = 0.2,
        positions: Literal["once", "each"] = "once",
        head_prompt: bool = True,
        class_token: bool = True,
    ):
        super().__init__(model, class_token)
        if rank < 1:
            raise UserError(f"rank: {rank}; use at least 1")
        self.each, stages = positions == "each", stages_of(model)
        self.stages, self.blocks = nn.ModuleList(), []
        for stage in stages:
            adapters = [BlockAdapter(self, block, width_of(stage), rank, dropout) for block in stage.blocks]
            self.stages.append(nn.ModuleList(adapters))
            self.blocks.append(len(adapters))
        self.take_steps(model, self.step)
        self.tokens, self.final = ScaleShift(width_of(stages[0])), ScaleShift(width_of(stages[-1]))
        self.hook(_embedding(model), self.tokens.apply_to)
        self.hook(final_norm(model), self.final.apply_to)
        self.head_reads = head_prompt and self.tell_head(model)

    def unused(self) -> list[str]:
        """The prompts of the last blocks, where nothing reads them."""
        ends = [(i, n - 1) for i, n in enumerate(self.blocks) if not (self.head_reads and i + 1 == len(self.blocks))]
        return [f"stages.{stage}.{block}.prompt.{kind}" for stage, block in ends for kind in ("scale", "shift")]

    def step(
        self,
        stage: int,
        index: int,
        block: nn.Module,
        x: Tensor,
        position: Tensor,
        bias: Tensor | None,
        special: int = 0,
    ) -> Tensor:
        place = self.places.first(x)
        x = x + position if index == 0 or self.each else x
        prompts = self.carried.pop(stage, None) if index > 0 else None
        number = 0 if prompts is None else prompts.shape[1]
        if prompts is not None:
            x = insert(x, prompts, place)
        x, prompt = self.stages[stage][index](block, x, widen_bias(bias, number, place), special + number)  # type: ignore[index]
        if prompts is not None:
            x, prompts = take_out(x, number, place)
        prompts = prompt if prompts is None else torch.cat([prompt, prompts], dim=1)
        self.carried[stage if index + 1 < self.blocks[stage] else "out"] = prompts
        return x

    def official(self, key: str) -> str:
        return official_name(key)


def _embedding(model: nn.Module) -> nn.Module:
    encoder = model.encoder
    assert isinstance(encoder, nn.Module)
    return encoder.token_embed[0] if hasattr(encoder, "token_embed") else encoder.embed  # type: ignore[return-value, index]


class ScaleShift(nn.Module):
    """x * scale + shift, channel by channel; near 1 and 0 at the start."""

    def __init__(self, width: int):
        super().__init__()
        self.scale = nn.Parameter(nn.init.normal_(torch.empty(width), mean=1.0, std=0.02))
        self.shift = nn.Parameter(nn.init.normal_(torch.empty(width), std=0.02))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift

    def apply_to(self, module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        return self(output)


class DynamicAdapter(nn.Module):
    """up(gelu(down(norm(x)))) times a weight of the token, relu(score(norm(x)))."""

    def __init__(self, width: int, rank: int, dropout: float):
        super().__init__()
        self.norm, self.score = nn.LayerNorm(width), nn.Linear(width, 1)
        self.down, self.up, self.dropout = nn.Linear(width, rank), nn.Linear(rank, width), dropout
        nn.init.kaiming_uniform_(self.down.weight, a=5**0.5)
        for parameter in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        inner = F.dropout(F.gelu(self.down(x)), self.dropout, self.training)
        return self.up(inner) * F.relu(self.score(x))


class BlockAdapter(nn.Module):
    """What DAPT adds to one block."""

    def __init__(self, method: Method, block: nn.Module, width: int, rank: int, dropout: float):
        super().__init__()
        self.adapter, self.prompt = DynamicAdapter(width, rank, dropout), ScaleShift(width)
        self.scales = nn.ModuleDict()
        for path in ("norm1", "norm2", "attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"):
            module = block.get_submodule(path)
            size = module.out_features if isinstance(module, nn.Linear) else width
            scale = self.scales[path.rpartition(".")[2]] = ScaleShift(size)
            method.hook(module, scale.apply_to)

    def forward(self, block: nn.Module, x: Tensor, bias: Tensor | None, special: int) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, C) -> tokens, and the prompt (B, 1, C) for the blocks behind."""
        x = x + block.drop_path(block.attn(block.norm1(x), bias, special))  # type: ignore[operator]
        inner = block.norm2(x)  # type: ignore[operator]
        added = self.adapter(inner)
        x = x + block.drop_path(block.mlp(inner)) + added  # type: ignore[operator]
        return x, self.prompt(F.gelu(added).mean(dim=1, keepdim=True))


OFFICIAL_SCALES = {
    ("", "1"): "scales.norm1",
    ("", "2"): "scales.norm2",
    ("", "3"): "prompt",
    ("attn.", "1"): "scales.qkv",
    ("attn.", "2"): "scales.proj",
    ("mlp.", "1"): "scales.fc1",
    ("mlp.", "2"): "scales.fc2",
}
OFFICIAL_ADAPTER = {
    "adapter_layer_norm_before": "norm",
    "scale": "score",
    "down_proj": "down",
    "up_proj": "up",
}
KINDS = {"gamma": "scale", "beta": "shift"}


def official_name(key: str) -> str:
    """A key of the official code in our words; what is DAPT's own begins with @."""
    if found := re.fullmatch(r"tfts_(gamma|beta)_([12])", key):
        return f"@{'tokens' if found[2] == '1' else 'final'}.{KINDS[found[1]]}"
    if found := re.fullmatch(r"blocks\.blocks\.(\d+)\.(attn\.|mlp\.|)tfts_(gamma|beta)_(\d)", key):
        return f"@stages.0.{found[1]}.{OFFICIAL_SCALES[found[2], found[4]]}.{KINDS[found[3]]}"
    if found := re.fullmatch(r"blocks\.blocks\.(\d+)\.Adapter_MLP\.(\w+)\.(\w+)", key):
        return f"@stages.0.{found[1]}.adapter.{OFFICIAL_ADAPTER[found[2]]}.{found[3]}"
    return key
