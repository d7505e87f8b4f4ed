"""Where to cut the largest values off before they are rounded to few levels."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Clip = Literal["mse", "max", "kl"]
KL_BELOW = 5  # bits; from here on the published rule takes the maximum
SHARES = 40  # candidates of the search for the smallest squared error


def thresholds(rows: Tensor, bits: int, clip: Clip, levels: int) -> Tensor:
    """(R, n) -> for each row the largest absolute value that is kept; 0 only for one that is all zero.

    mse: the one with the smallest squared rounding error. max: nothing is cut. kl: the published rule, for fewer than
    5 bits. levels: steps between zero and the largest value.
    """
    rows = rows.detach().abs()
    largest = rows.amax(dim=1)
    if clip == "max" or (clip == "kl" and bits >= KL_BELOW):
        return largest
    if clip == "mse":
        return mse_thresholds(rows, levels)
    return torch.stack([top.new_tensor(kl_threshold(row, bits)) if top > 0 else top for row, top in zip(rows, largest)])


def mse_thresholds(rows: Tensor, levels: int) -> Tensor:
    """The cut with the smallest mean squared error of rounding to +-`levels` equal steps."""
    rows = rows.abs().double()
    largest = rows.amax(dim=1, keepdim=True)
    best, cut = torch.full_like(largest, torch.inf), largest
    for place in range(SHARES, 0, -1):
        top = largest * place / SHARES
        step = (top / max(levels, 1)).clamp(min=torch.finfo(torch.float64).tiny)
        error = ((torch.minimum(rows, top) / step).round() * step - rows).square().mean(dim=1, keepdim=True)
        cut, best = torch.where(error < best, top, cut), torch.minimum(error, best)
    return cut[:, 0].float()


def kl_threshold(data: Tensor, bits: int) -> float:
    """The published search on cumulative histograms: the cut whose distribution, resampled to 2^(bits - 1) levels and
    back, diverges least. Empty first bins, which made it undefined, are left out of the sum."""
    values = data.detach().flatten().abs().double().cpu().numpy()
    largest = float(values.max())
    spread = largest - float(values.min())
    bins = math.ceil(largest / (spread / math.sqrt(len(values)))) if spread > 0 else 1
    histogram, edges = np.histogram(values, bins=bins, range=(0, largest))
    share = np.cumsum(histogram / histogram.sum())
    levels, width = 2 ** (bits - 1), edges[1] - edges[0]
    best, cut = math.inf, largest
    for count in range(levels + 1, bins + 1):
        inner = share[:count].copy()
        inner[-1] = 1.0
        places = np.linspace(0, count - 1, levels)
        coarse = np.interp(places, np.arange(count), inner)
        back = share.copy()
        back[count - 1 :] = 1.0
        back[:count] = np.interp(np.linspace(0, levels - 1, count), np.arange(levels), coarse)
        there = (share > 0) & (back > 0)
        score = float((share[there] - back[there]) @ np.log2(share[there] / back[there]))
        if score < best:
            best, cut = score, (count + 0.5) * width
    return cut
