"""The hashing form of 3DSimAttention: rows are sorted by the signs of their heads; nothing is random.

B clouds, L tokens, n of them points, H heads, D channels, w window.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from extensions import ops
from models.layers.attention.windows import (
    Special,
    attend,
    attend_special,
    check_bias,
    check_window,
    hidden_keys,
    inverse,
    nearness,
    take,
)
from utils.schema import Whole

DECAY = 0.4
DEPTH = 48  # channels that enter a similarity value; the weight of later ones is below 1e-10


class LSHAttention(nn.Module):
    """Attention over windows of rows sorted by a hash.

    restore: "first" puts the rows back to their points, so that permuted points give permuted results; "none" is the
    published form, which adds row r to whatever point stands at r. recompute: as in SimAttention.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 6,
        out_dim: int | None = None,
        window: Whole = 9,
        restore: Literal["first", "none"] = "first",
        recompute: bool = False,
    ):
        super().__init__()
        out = dim if out_dim is None else out_dim
        self.num_heads, self.window, self.restore = num_heads, check_window(window), restore
        self.recompute = recompute
        self.up = nn.Linear(dim, num_heads * out)
        self.down = nn.Linear(num_heads * out, out)
        self.value = nn.Linear(out, out)

    def forward(self, x: Tensor, bias: Tensor | None = None, special: int = 0) -> Tensor:
        """x (B, L, C) -> (B, L, out_dim)."""
        check_bias(bias, special)
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._attend, x, bias, special, use_reentrant=False)
        return self._attend(x, bias, special)

    def _attend(self, x: Tensor, bias: Tensor | None, special: int) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # signs decide who sees whom
            up = self.up(x.to(self.up.weight.dtype))  # (B, L, H D)
        order = self._order(up[:, special:], hidden_keys(bias))  # (B, n)
        keys = self.down(up.relu()).relu()
        values = self.value(keys).relu()
        others = Special(keys[:, :special], values[:, :special]) if special else None
        keys, values = (take(rows[:, special:], order[..., None])[:, :, 0] for rows in (keys, values))
        out = attend(keys, values, self.window, nearness(bias, order, self.window), others)
        if self.restore == "first":
            out = take(out, inverse(order[..., None]))[:, :, 0]
        if others is not None:
            out = torch.cat([attend_special(others, keys, values).to(out.dtype), out], dim=1)
        return out.to(x.dtype)

    @torch.no_grad()
    def _order(self, up: Tensor, hidden: Tensor | None) -> Tensor:
        value = similarity_values(up.unflatten(-1, (self.num_heads, -1)))
        if hidden is not None:
            value = value.masked_fill(hidden, torch.inf)
        if self.restore == "none":
            return ops.sort_order(value)
        # many points have equal signs: what decides among them must not be the place where they are stored
        first = ops.sort_order(up.mean(dim=-1))
        return first.gather(1, ops.sort_order(value.gather(1, first)))


def similarity_values(up: Tensor) -> Tensor:
    """(B, n, H, D) -> (B, n): the votes of the heads' signs, largest first (equal ones by channel), in a sum with
    falling weights; a wave of the channel's number joins every vote."""
    dim, heads = up.shape[-1], up.shape[-2]
    votes = 2 * (up > 0).sum(dim=-2) - heads  # (B, n, D)
    keys = votes * dim - torch.arange(dim, device=up.device)  # all different
    keys = keys.topk(min(dim, DEPTH), dim=-1).values
    channel = (-keys).remainder(dim)
    vote = (keys + channel).div(dim, rounding_mode="floor")
    angle = 10 ** (-channel.float() / dim)
    wave = torch.where(channel % 2 == 0, angle.cos(), angle.sin())
    weights = DECAY * (1 - DECAY) ** torch.arange(keys.shape[-1], device=up.device)
    return (weights * (vote + wave / DECAY)).sum(dim=-1)
