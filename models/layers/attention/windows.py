"""Rows that are sorted by some similarity attend to the rows around them: O(n log n) time, O(n) memory.

B clouds, n rows, S special tokens, w window, K orders, C channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from extensions import ops
from utils.errors import UserError

HIDDEN = -1e30  # finite, so that a window in which everything is hidden stays finite


class Special(NamedTuple):
    """Keys and values (B, S, C) of tokens that every row sees and that see every row."""

    keys: Tensor
    values: Tensor


def check_window(window: int) -> int:
    if window < 1 or window % 2 == 0:
        raise UserError(f"window: {window}; use an odd number of 1 or more")
    return window


class Near(NamedTuple):
    """What is added to the scores of sorted rows."""

    bias: Tensor  # (B, n, w)
    of_key: Tensor | None = None  # (B, n), where the bias is the same for every row: hidden keys are then sorted last
    visible: Tensor | None = None  # (B, 1) how many are not hidden


def attend(keys: Tensor, values: Tensor, window: int, near: Near | None, special: Special | None) -> Tensor:
    """softmax(k k / sqrt(d) + bias) v of every sorted row (B, n, C) over its window."""
    window, scale = min(window, keys.shape[1]), keys.shape[2] ** -0.5
    scores = ops.window_scores(keys, keys, window) * scale
    if near is not None:
        scores = scores + near.bias
    if special is None:
        out = ops.window_mix(scores.softmax(dim=-1), values)
        return out if near is None or near.visible is None else _end_before_hidden(out, keys, values, window, near)
    extra = (keys @ special.keys.mT) * scale  # (B, n, S)
    weights = torch.cat([scores, extra.to(scores.dtype)], dim=-1).softmax(dim=-1)
    of_special = weights[..., window:].to(special.values.dtype) @ special.values
    return ops.window_mix(weights[..., :window], values) + of_special


def _end_before_hidden(out: Tensor, keys: Tensor, values: Tensor, window: int, near: Near) -> Tensor:
    """The rows before the hidden ones share the last window of visible keys, as if nothing came after them."""
    assert near.visible is not None and near.of_key is not None
    steps = torch.arange(window, device=keys.device)
    rows = (near.visible - 1 - steps[: window // 2]).clamp(min=0)  # (B, w / 2)
    seen = (near.visible - window).clamp(min=0) + steps  # (B, w)
    scores = ops.gather_points(keys, rows) @ ops.gather_points(keys, seen).mT * keys.shape[2] ** -0.5
    weights = (scores + near.of_key.gather(1, seen)[:, None]).softmax(dim=-1)
    mixed = weights.to(values.dtype) @ ops.gather_points(values, seen)
    return out.scatter(1, rows[..., None].expand_as(mixed), mixed.to(out.dtype))


def attend_special(special: Special, keys: Tensor, values: Tensor) -> Tensor:
    """The special tokens look at themselves and at all rows: (B, S, C)."""
    all_keys, all_values = torch.cat([special.keys, keys], dim=1), torch.cat([special.values, values], dim=1)
    scores = (special.keys @ all_keys.mT) * keys.shape[2] ** -0.5
    return scores.softmax(dim=-1) @ all_values


def take(rows: Tensor, orders: Tensor) -> Tensor:
    """Rows (B, n, C) in K orders (B, n, K), each a permutation: (B, n, K, C)."""
    return _Take.apply(rows, orders)


def inverse(orders: Tensor) -> Tensor:
    """Where each row of the permutations (B, n, K) went."""
    places = torch.arange(orders.shape[1], device=orders.device)[:, None].expand_as(orders)
    return torch.zeros(orders.shape, dtype=orders.dtype, device=orders.device).scatter(1, orders, places)


class _Take(torch.autograd.Function):
    """Gathers, forwards and backwards: a permutation needs no scattered additions."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, orders: Tensor) -> Tensor:
        ctx.save_for_backward(orders)
        return _rows(rows, orders)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (orders,) = ctx.saved_tensors
        number = orders.shape[2]
        places = inverse(orders) * number + torch.arange(number, device=orders.device)
        return _rows(grad.flatten(1, 2), places).sum(2), None


def _rows(rows: Tensor, index: Tensor) -> Tensor:
    batch, length, channels = rows.shape
    offset = torch.arange(0, batch * length, length, device=index.device)[:, None, None]
    return rows.reshape(-1, channels).index_select(0, (index + offset).flatten()).view(*index.shape, channels)


def check_bias(bias: Tensor | None, special: int) -> None:
    if bias is not None and (special or bias.shape[1] != 1):
        what = "special tokens beside it" if special else "one for each head"
        raise UserError(f"attention in windows takes one bias for all heads and no special tokens; found {what}")


def hidden_keys(bias: Tensor | None) -> Tensor | None:
    """(B, n), True where a bias for keys alone (B, 1, 1, n) hides one from every row."""
    return bias[:, 0, 0].isneginf() if bias is not None and bias.shape[2] == 1 else None


def nearness(bias: Tensor | None, order: Tensor, window: int) -> Near | None:
    """A bias (B, 1, n or 1, n) as the rows in `order` (B, n) see it."""
    if bias is None:
        return None
    batch, length = order.shape
    window = min(window, length)
    start = (torch.arange(length, device=order.device) - (window - 1) // 2).clamp(0, length - window)
    keys = order[:, start[:, None] + torch.arange(window, device=order.device)]  # (B, n, w)
    flat = bias.expand(batch, *bias.shape[1:]).flatten(1).clamp(min=HIDDEN)
    if bias.shape[2] > 1:
        return Near(flat.gather(1, (keys + length * order[..., None]).flatten(1)).view(keys.shape))
    visible = (flat > HIDDEN).sum(1, keepdim=True)
    return Near(flat.gather(1, keys.flatten(1)).view(keys.shape), flat.gather(1, order), visible)
