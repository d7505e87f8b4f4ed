"""Pre-norm transformer blocks. The position embedding is added before every block, as Point-MAE and its family do.

B clouds, L tokens, C channels, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

# "trunc_normal" (0.02) is the published start; it makes the position embedding of 3 coordinates so small that the
# network sees no positions for many epochs. "torch", each layer's own default, suits short training.
Init = Literal["trunc_normal", "torch"]

# (index, block, x, position, bias) -> x: what may run a block in place of `block(x + position, bias)`
Step = Callable[[int, nn.Module, Tensor, Tensor, "Tensor | None"], Tensor]

EXPLICIT_BELOW = 2048  # on a CPU explicit softmax beats scaled_dot_product_attention up to about this many tokens


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


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, num_heads: int = 6, qkv_bias: bool = False):
        super().__init__()
        if dim % num_heads:
            raise UserError(f"embed_dim {dim} is not a multiple of num_heads {num_heads}")
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x (B, L, C); `bias`, of a shape that spreads to (B, H, L, L), is added to the scores: -inf hides a key."""
        batch, length, dim = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, dim // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, L, C / H)
        return self.proj(dense_attention(query, key, value, bias).transpose(1, 2).reshape(batch, length, dim))


def dense_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d) + bias) v in the form that is fastest on the device."""
    bias = None if bias is None else bias.to(query.dtype)
    if query.device.type != "cpu" or key.shape[-2] > EXPLICIT_BELOW:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        weights = weights + bias
    return weights.softmax(dim=-1) @ value


class Mlp(nn.Module):
    def __init__(self, dim: int, hidden: int):
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(
        self, dim: int, num_heads: int = 6, mlp_ratio: float = 4.0, drop_path: float = 0.0, qkv_bias: bool = False
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads, qkv_bias)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), bias))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Blocks(nn.Module):
    """Blocks with the position embedding added before each; one drop path rate a block.

    step: set from outside to run the blocks in another way, with prompts for instance; it belongs to no state.
    """

    def __init__(self, dim: int, num_heads: int, drop_path_rates: Sequence[float], mlp_ratio: float = 4.0):
        super().__init__()
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, rate) for rate in drop_path_rates)
        self.step: Step | None = None

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | None = None) -> Tensor:
        """x, position (B, L, C), `bias` as for Attention -> (B, L, C)."""
        for index in range(len(self.blocks)):
            x = self.run(index, x, position, bias)
        return x

    def run(self, index: int, x: Tensor, position: Tensor, bias: Tensor | None = None) -> Tensor:
        """One block."""
        block = self.blocks[index]
        return block(x + position, bias) if self.step is None else self.step(index, block, x, position, bias)


class Transformer(Blocks):
    """Blocks, then a LayerNorm on the tokens that are asked for."""

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float = 4.0, drop_path_rate: float = 0.0):
        super().__init__(dim, num_heads, rising_rates(drop_path_rate, depth), mlp_ratio)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, position: Tensor, bias: Tensor | None = None, last: int | None = None) -> Tensor:
        """x, position (B, L, C), `bias` as for Attention -> (B, L, C), or only the `last` tokens."""
        x = super().forward(x, position, bias)
        return self.norm(x if last is None else x[:, x.shape[1] - last :])


def rising_rates(highest: float, depth: int) -> list[float]:
    """Drop path rates from 0 to `highest`, block by block."""
    return torch.linspace(0, highest, depth, device="cpu").tolist()  # also when built on the meta device


def position_embedding(dim: int, hidden: int = 128) -> nn.Sequential:
    """Centres (B, G, 3) -> (B, G, dim)."""
    return nn.Sequential(nn.Linear(3, hidden), nn.GELU(), nn.Linear(hidden, dim))


def mlp_head(num_features: int, hidden: int, num_classes: int, dropout: float) -> nn.Sequential:
    """One vector a cloud -> logits."""

    def layer(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Dropout(dropout)]

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
