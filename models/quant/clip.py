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


def threshold(data: Tensor, bits: int, clip: Clip, levels: int) -> float:
    """The largest absolute value that is kept; 0 only for data that are all zero.

    mse: the one with the smallest squared rounding error. max: nothing is cut. kl: the published rule, for fewer than
    5 bits. levels: steps between zero and the largest value.
    """
    largest = float(data.abs().max()) if data.numel() else 0.0
    if largest == 0.0 or clip == "max" or (clip == "kl" and bits >= KL_BELOW):
        return largest
    return kl_threshold(data, bits) if clip == "kl" else mse_threshold(data, levels)


def mse_threshold(data: Tensor, levels: int) -> float:
    """The cut with the smallest mean squared error of rounding to +-`levels` equal steps."""
    values = data.detach().flatten().abs().double()
    largest = float(values.max())
    errors = []
    for place in range(1, SHARES + 1):
        cut = largest * place / SHARES
        step = cut / max(levels, 1)
        errors.append(float((values - (values.clamp(max=cut) / step).round() * step).square().mean()))
    return largest * (int(np.argmin(errors)) + 1) / SHARES


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


def finite_range(data: Tensor) -> tuple[float, float]:
    return float(torch.amin(data)), float(torch.amax(data))
