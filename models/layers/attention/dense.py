"""Attention of all tokens to all tokens.

B clouds, L tokens, C channels, H heads.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError

EXPLICIT_BELOW = 2048  # on a CPU explicit softmax beats scaled_dot_product_attention up to about this many tokens


class Attention(nn.Module):
    """Multi-head self-attention over all tokens."""

    def __init__(self, dim: int, num_heads: int = 6, out_dim: int | None = None, qkv_bias: bool = False):
        super().__init__()
        width = dim if out_dim is None else out_dim
        check_heads(width, num_heads)
        self.num_heads, self.width = num_heads, width
        self.qkv = nn.Linear(dim, 3 * width, bias=qkv_bias)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None = None, special: int = 0) -> Tensor:
        """x (B, L, C); `bias`, of a shape that spreads to (B, H, L, L), is added to the scores: -inf hides a key."""
        batch, length, _ = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.width // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # each (B, H, L, C / H)
        return self.proj(dense_attention(query, key, value, bias).transpose(1, 2).reshape(batch, length, self.width))


def check_heads(width: int, num_heads: int, of: str = "embed_dim", by: str = "num_heads") -> None:
    """Every head has the same number of channels; `of` and `by` are the options' names."""
    if width % num_heads:
        raise UserError(f"{of} {width} is not a multiple of {by} {num_heads}")


def dense_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None) -> Tensor:
    """softmax(q k / sqrt(d) + bias) v in the form that is fastest on the device."""
    bias = None if bias is None else bias.to(query.dtype)
    if query.device.type != "cpu" or key.shape[-2] > EXPLICIT_BELOW:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
    weights = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if bias is not None:
        weights = weights + bias
    return weights.softmax(dim=-1) @ value
