"""A plain transformer tower that another modality trained: pre-norm blocks and a table of position codes.

B clouds, L tokens, C channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.layers.transformer import Attention, DropPath, Mlp, init_trunc_normal, rising_rates

Activation = Literal["gelu", "quick_gelu"]


def quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class LayerScale(nn.Module):
    """One factor a channel."""

    def __init__(self, dim: int):
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class TowerBlock(nn.Module):
    """A vision or text transformer's block in two steps, so that an adapter can take the MLP's output by itself."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        hidden: int,
        eps: float = 1e-6,
        layer_scale: bool = False,
        activation: Activation = "gelu",
        drop_path: float = 0.0,
    ):
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps)
        self.attn = Attention(dim, num_heads, qkv_bias=True)
        self.ls1 = LayerScale(dim) if layer_scale else nn.Identity()
        self.norm2 = nn.LayerNorm(dim, eps)
        self.mlp = Mlp(dim, hidden, ACTIVATIONS[activation])
        self.ls2 = LayerScale(dim) if layer_scale else nn.Identity()
        self.drop_path = DropPath(drop_path)

    def attend(self, x: Tensor) -> Tensor:
        """(B, L, C) -> x + attention."""
        return x + self.drop_path(self.ls1(self.attn(self.norm1(x))))

    def feed(self, x: Tensor) -> Tensor:
        """(B, L, C) -> what the MLP adds to x."""
        return self.drop_path(self.ls2(self.mlp(self.norm2(x))))

    def forward(self, x: Tensor) -> Tensor:
        x = self.attend(x)
        return x + self.feed(x)


class Tower(nn.Module):
    """Blocks, their class token, final norm and position table. No embedding of words or pixels: tokens come in.

    grid: rows and columns of an image's patches; None for a text, whose positions lie on a line.
    prefix: rows at the head of the table that belong to class and register tokens.
    pre_norm: a LayerNorm on the tokens before the first block, as CLIP's vision towers have it.
    """

    position: Tensor

    def __init__(
        self,
        embed_dim: int,
        depth: int,
        num_heads: int,
        hidden: int,
        length: int,
        grid: tuple[int, int] | None = None,
        patch: int = 1,
        prefix: int = 0,
        eps: float = 1e-6,
        layer_scale: bool = False,
        activation: Activation = "gelu",
        pre_norm: bool = False,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.embed_dim, self.grid, self.patch, self.prefix = embed_dim, grid, patch, prefix
        self.blocks = nn.ModuleList(
            TowerBlock(embed_dim, num_heads, hidden, eps, layer_scale, activation, rate)
            for rate in rising_rates(drop_path_rate, depth)
        )
        self.norm_pre = nn.LayerNorm(embed_dim, eps) if pre_norm else nn.Identity()
        self.norm = nn.LayerNorm(embed_dim, eps)
        self.cls_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        shape = (length, embed_dim) if grid is None else (1, length, embed_dim)  # as the official files store it
        self.register_buffer("position", torch.empty(shape))
        self.source: str | None = None  # of the weights; None: at random
        self.apply(init_trunc_normal)
        for tensor in (self.cls_token, self.position):
            nn.init.trunc_normal_(tensor, std=0.02)

    @property
    def codes(self) -> Tensor:
        """Position codes of the places on the line or in the image, row by row: (L, C)."""
        return self.position.flatten(0, -2)[self.prefix :]
