"""Attention in windows, split into its three products: the gradient of each consists of the other two.

Row r of n looks at the `window` rows from clamp(r - (window - 1) // 2, 0, n - window): those around it, at the ends the
first and the last window. B clouds, n rows, w window, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor


def window_scores(rows: Tensor, keys: Tensor, window: int) -> Tensor:
    """Products (B, n, w) of every row (B, n, C) with the keys (B, n, C) of its window."""
    first, inner, last, count = _cut(rows, window)
    parts = torch.stack([(inner * keys[:, j : j + count]).sum(2) for j in range(window)], dim=2)
    ends = [(rows[:, :, None] * _end(keys, window, side)).sum(3) for rows, side in ((first, 0), (last, 1))]
    return torch.cat([ends[0], parts, ends[1]], dim=1)


def window_mix(weights: Tensor, values: Tensor) -> Tensor:
    """Sums (B, n, C) of the values (B, n, C) of every window, weighted (B, n, w)."""
    window = weights.shape[2]
    first, inner, last, count = _cut(weights, window)
    total = inner[..., :1] * values[:, :count]
    for j in range(1, window):
        total = total + inner[..., j : j + 1] * values[:, j : j + count]
    ends = [(rows[..., None] * _end(values, window, side)).sum(2) for rows, side in ((first, 0), (last, 1))]
    return torch.cat([ends[0], total, ends[1]], dim=1)


def window_spread(weights: Tensor, rows: Tensor) -> Tensor:
    """The transpose of `window_mix`: every row (B, n, C) added, weighted (B, n, w), to all places of its window."""
    window = weights.shape[2]
    total = torch.zeros_like(rows)
    first, inner, last, count = _cut(weights, window)
    before, here, after, _ = _cut(rows, window)
    for j in range(window):
        total[:, j : j + count] += inner[..., j : j + 1] * here
    total[:, :window] += (first[..., None] * before[:, :, None]).sum(1)
    total[:, rows.shape[1] - window :] += (last[..., None] * after[:, :, None]).sum(1)
    return total


def _cut(rows: Tensor, window: int) -> tuple[Tensor, Tensor, Tensor, int]:
    """Rows that share the first window with another, rows with a window of their own, those that share the last."""
    before, count = (window - 1) // 2, rows.shape[1] - window + 1
    return rows[:, :before], rows[:, before : before + count], rows[:, before + count :], count


def _end(rows: Tensor, window: int, side: int) -> Tensor:
    """The first or the last window (B, 1, w, C)."""
    return (rows[:, rows.shape[1] - window :] if side else rows[:, :window])[:, None]
