"""Pre-norm transformer blocks. The position embedding is added before every block, as Point-MAE and its family do.

B clouds, L tokens, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.attention import AttentionKind
from models.layers.attention.dense import Attention
from utils.errors import UserError

# "trunc_normal" (0.02) is the published start; it makes the position embedding of 3 coordinates so small that the
# network sees no positions for many epochs. "torch", each layer's own default, suits short training.
Init = Literal["trunc_normal", "torch"]

# (index, block, x, position, bias, special) -> x: what may run a block in place of `block(x + position, bias, special)`
Step = Callable[[int, nn.Module, Tensor, Tensor, "Tensor | None", int], Tensor]


class DropPath(nn.Module):
    """Drop the whole residual branch of a sample with probability `rate`; survivors are scaled by 1 / (1 - rate)."""

    def __init__(self, rate: float = 0.0):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        shape = (x.shape[0],) + (1,) * (x.ndim - 1)
        return x * (torch.rand(shape, device=x.device) < keep).to(x.dtype) / keep


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: Callable[[Tensor], Tensor] = F.gelu):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)). `attention` makes the kind that is wanted, by default dense."""

    def __init__(
        self,
        dim: int,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        drop_path: float = 0.0,
        qkv_bias: bool = False,
        attention: AttentionKind | None = None,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = (attention or partial(Attention, qkv_bias=qkv_bias))(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor | None = None, special: int = 0) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), bias, special))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Blocks(nn.Module):
    """Blocks with the position embedding added before each; one drop path rate a block.

    step: set from outside to run the blocks in another way, with prompts for instance; it belongs to no state.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        drop_path_rates: Sequence[float],
        mlp_ratio: float = 4.0,
        attention: AttentionKind | None = None,
    ):
        super().__init__()
        self.blocks = nn.ModuleList(
            Block(dim, num_heads, mlp_ratio, rate, attention=attention) for rate in drop_path_rates
        )
        self.step: Step | None = None

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | None = None, special: int = 0) -> Tensor:
        """x, position (B, L, C), `bias` and `special` as for every kind of attention -> (B, L, C)."""
        for index in range(len(self.blocks)):
            x = self.run(index, x, position, bias, special)
        return x

    def run(self, index: int, x: Tensor, position: Tensor, bias: Tensor | None = None, special: int = 0) -> Tensor:
        """One block."""
        block = self.blocks[index]
        if self.step is None:
            return block(x + position, bias, special)
        return self.step(index, block, x, position, bias, special)


class Transformer(Blocks):
    """Blocks, then a LayerNorm on the tokens that are asked for."""

    def __init__(
        self,
        dim: int,
        depth: int,
        num_heads: int,
        mlp_ratio: float = 4.0,
        drop_path_rate: float = 0.0,
        attention: AttentionKind | None = None,
    ):
        super().__init__(dim, num_heads, rising_rates(drop_path_rate, depth), mlp_ratio, attention)
        self.norm = nn.LayerNorm(dim)

    def forward(
        self, x: Tensor, position: Tensor, bias: Tensor | None = None, special: int = 0, last: int | None = None
    ) -> Tensor:
        """x, position (B, L, C) -> (B, L, C), or only the `last` tokens."""
        x = super().forward(x, position, bias, special)
        return self.norm(x if last is None else x[:, x.shape[1] - last :])


def rising_rates(highest: float, depth: int) -> list[float]:
    """Drop path rates from 0 to `highest`, block by block."""
    if not 0 <= highest < 1:
        raise UserError(f"drop_path_rate: {highest} is not a share; use a number of at least 0 and below 1")
    return torch.linspace(0, highest, depth, device="cpu").tolist()  # also when built on the meta device


def position_embedding(dim: int, hidden: int = 128) -> nn.Sequential:
    """Centres (B, G, 3) -> (B, G, dim)."""
    return nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, dim))


def mlp_head(num_features: int, hidden: int, num_classes: int, dropout: float, bias: bool = True) -> nn.Sequential:
    """One vector a cloud -> logits. bias: of the layers in front of a BatchNorm, to which it makes no difference."""

    def layer(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, hidden, bias), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout)]

    return nn.Sequential(*layer(num_features), *layer(hidden), nn.Linear(hidden, num_classes))


def init_trunc_normal(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def init_xavier(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
