"""3DSimAttention: rows are sorted along random projections and attend to the rows around them.

B clouds, L tokens, n of them points, S special ones, D low dimension, K orders, w window, C channels.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
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
from utils.errors import UserError
from utils.schema import Whole

Restore = Literal["first", "per_head", "none"]
Projections = Literal["fixed", "per_step", "per_call"]
TIE = 1e-6  # share of what ReLU cuts off that decides the order of rows which would tie


class SimAttention(nn.Module):
    """Attention over windows of sorted rows, where a row joins points of equal rank in several orders.

    restore: "first" puts row r back to the point of rank r in the first order; "per_head" attends in every order by
    itself, puts the rows back and takes the mean; "none" is the published form, which adds row r to whatever point
    stands at r: for published weights only. Under the first two, permuted points give permuted results.
    projections: the random directions are drawn once ("fixed"), at every training step ("per_step"; the last ones serve
    in evaluation) or at every call as published ("per_call"). They and the state of their source are saved.
    recompute: keep only the input for the backward pass and compute the rest again.
    """

    projection: Tensor
    source: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 6,
        out_dim: int | None = None,
        d_low: int | None = None,  # default dim // num_heads, at least 8
        k_heads: int = 4,  # orders
        n_proj: int = 16,  # directions, of which the k_heads of largest variance make the orders
        window: Whole = 9,
        restore: Restore = "first",
        projections: Projections = "fixed",
        recompute: bool = False,
    ):
        super().__init__()
        if not 1 <= k_heads <= n_proj:
            raise UserError(f"k_heads: {k_heads}; use 1 to {n_proj}, the number of projections (n_proj)")
        low, out = max(8, dim // num_heads) if d_low is None else d_low, dim if out_dim is None else out_dim
        self.k_heads, self.window, self.restore = k_heads, check_window(window), restore
        self.projections, self.recompute = projections, recompute
        self.query = nn.Linear(dim, low)
        self.mix = nn.Linear(low if restore == "per_head" else k_heads * low, low)
        self.value = nn.Linear(low, out)
        self.register_buffer("source", torch.stack([torch.randint(2**31, ()), torch.zeros((), dtype=torch.int64)]))
        self.register_buffer("projection", gaussian(self.source, low, n_proj))

    def forward(
        self, x: Tensor, bias: Tensor | None = None, special: int = 0, projection: Tensor | None = None
    ) -> Tensor:
        """x (B, L, C) -> (B, L, out_dim); `projection` (D, P) replaces the module's own."""
        check_bias(bias, special)
        projection = self._directions() if projection is None else projection
        if self.recompute and self.training and torch.is_grad_enabled():
            return checkpoint(self._attend, x, bias, special, projection, use_reentrant=False)
        return self._attend(x, bias, special, projection)

    def _directions(self) -> Tensor:
        if self.projections == "per_call" or (self.projections == "per_step" and self.training):
            with torch.no_grad():
                self.source[1] += 1
                self.projection.copy_(gaussian(self.source, *self.projection.shape))
        return self.projection.clone() if self.recompute else self.projection

    def _attend(self, x: Tensor, bias: Tensor | None, special: int, projection: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):  # who sees whom is decided in full precision
            low = self.query(x.to(self.query.weight.dtype))  # (B, L, D)
        query = low.relu()
        orders = self._orders(low[:, special:], projection, hidden_keys(bias))  # (B, n, K)
        others = self._special(query[:, :special]) if special else None
        if self.restore == "per_head":
            keys = self.mix(query[:, special:]).relu()
            values = self.value(keys).relu()
            out = self._mean_over_orders(keys, values, orders, bias, others)
        else:
            keys = self.mix(take(query[:, special:], orders).flatten(2)).relu()  # row r joins what has rank r
            values = self.value(keys).relu()
            out = attend(keys, values, self.window, nearness(bias, orders[..., 0], self.window), others)
            if self.restore == "first":
                out = take(out, inverse(orders[..., :1]))[:, :, 0]
        if others is not None:
            out = torch.cat([attend_special(others, keys, values).to(out.dtype), out], dim=1)
        return out.to(x.dtype)

    @torch.no_grad()
    def _orders(self, low: Tensor, projection: Tensor, hidden: Tensor | None) -> Tensor:
        """The points of (B, n, D) sorted along the directions of largest variance: (B, n, K)."""
        with torch.autocast(low.device.type, enabled=False):
            ranked = low.relu() if self.restore == "none" else F.leaky_relu(low, TIE)
            places = ranked @ projection.to(ranked.dtype)  # (B, n, P)
        chosen = variance(places, hidden).sort(dim=-1, descending=True, stable=True).indices[:, : self.k_heads]
        keys = places.mT.gather(1, chosen[..., None].expand(-1, -1, places.shape[1]))  # (B, K, n)
        if hidden is not None:
            keys = keys.masked_fill(hidden[:, None], torch.inf)
        return ops.sort_order(keys).mT

    def _special(self, query: Tensor) -> Special:
        """A special token has its own row in every order."""
        repeat = 1 if self.restore == "per_head" else self.k_heads
        keys = self.mix(query.repeat(1, 1, repeat)).relu()
        return Special(keys, self.value(keys).relu())

    def _mean_over_orders(
        self, keys: Tensor, values: Tensor, orders: Tensor, bias: Tensor | None, special: Special | None
    ) -> Tensor:
        back, total = inverse(orders), torch.zeros((), device=keys.device)
        for k in range(self.k_heads):
            order = orders[..., k : k + 1]
            near = nearness(bias, order[..., 0], self.window)
            rows = attend(take(keys, order)[:, :, 0], take(values, order)[:, :, 0], self.window, near, special)
            total = total + take(rows, back[..., k : k + 1])[:, :, 0]
        return total / self.k_heads


def variance(places: Tensor, hidden: Tensor | None) -> Tensor:
    """Variance of (B, n, P) over the n points that are not hidden."""
    if hidden is None:
        return places.var(dim=1, correction=0)
    seen = (~hidden).to(places.dtype)[..., None]
    count = seen.sum(1, keepdim=True).clamp(min=1)
    mean = (places * seen).sum(1, keepdim=True) / count
    return ((places - mean).square() * seen).sum(1) / count[:, 0]


def gaussian(source: Tensor, rows: int, columns: int) -> Tensor:
    """Standard normal numbers (rows, columns) out of `source`, a seed and a count of draws: the same in every process
    and on every device, and nothing waits for the device."""
    number = torch.arange(2 * rows * columns, device=source.device) + 2 * rows * columns * source[1]
    bits = _scramble(_scramble(number & 0xFFFFFFFF) ^ _scramble(source[0] + (number >> 32)))
    uniform = ((bits >> 8) + 0.5) / 2**24
    radius, angle = uniform.view(2, rows, columns).unbind(0)
    return (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()


def _scramble(x: Tensor) -> Tensor:
    """A bijection of 32 bits whose results look random."""
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        x = ((x ^ (x >> shift)) * factor) & 0xFFFFFFFF
    return x ^ (x >> 16)
