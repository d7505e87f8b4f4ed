"""Every operator on a small example, against its reference: `python -m extensions.build` and the tests run it."""

import math
from typing import Any

import torch
from torch import Tensor

from extensions import library, reference


def examples(device: str) -> dict[str, tuple[Any, ...]]:
    """Arguments for every operator, with ties, duplicates and sizes that fill no vector."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(2, n, 3, generator=generator).to(device) for n in (333, 270))
    x[:, 100:150] = x[:, :50]
    y[:, 200:] = y[:, 200:].round()
    features = torch.randn(2, 270, 21, generator=generator).to(device)
    distances, indices = reference.three_nn(x, y)
    nearest = reference.chamfer(x, y)
    weights = distances.softmax(2)
    return {
        "farthest_point_sample": (x, 100, 0, True),
        "knn": (y, x, 20),
        "ball_query": (y, x, 0.7, 16),
        "group": (x, 20, 16, False),
        "three_nn": (x, y),
        "three_interpolate": (features, indices, weights),
        "three_interpolate_backward": (torch.ones(2, 333, 21, device=device), features, indices, weights),
        "chamfer": (x, y),
        "chamfer_loss": (x, y, True, False),
        "chamfer_means": (x, y, True, False),
        "chamfer_loss_backward": (
            nearest[0][0, :2].clone(),
            nearest[1][0, :2].clone(),
            x,
            y,
            nearest[2],
            nearest[3],
            True,
        ),
        "chamfer_backward": (nearest[0], nearest[1], x, y, nearest[2], nearest[3]),
        "approx_match_cost": (x, y, False),
        "normalize": (x,),
        "sort_order": (x[..., 0].contiguous().repeat(1, 3).round(decimals=2),),
        "window_scores": (features, features.flip(1), 7),
        "window_mix": (weights[:, :270].contiguous(), features),
        "window_spread": (weights[:, :270].contiguous(), features),
        "auction": (x[:, :60].contiguous(), y[:, :60].contiguous(), True, 1e-3),
    }


def agrees(name: str, device: str) -> bool:
    """Whether the kernel equals the reference: indices exactly, values to rounding, an auction within its bound."""
    args = examples(device)[name]
    actual, expected = library.kernels(device)[name](*args), getattr(reference, name)(*args)
    if name == "auction":
        x, y, _, eps = args
        costs = [(x - reference.gather(y, partner)).square().sum(2).mean(1) for partner in (actual, expected)]
        order = torch.arange(x.shape[1], device=device).expand_as(actual)
        return torch.equal(actual.sort(1).values, order) and bool((costs[0] - costs[1]).abs().max() <= eps)
    pairs = zip((actual,), (expected,)) if isinstance(actual, Tensor) else zip(actual, expected)
    return all(_close(a, b) for a, b in pairs)


def _close(actual: Tensor, expected: Tensor) -> bool:
    if actual.dtype == torch.int64:
        return torch.equal(actual, expected)
    scale = expected.abs().max().item()
    return actual.shape == expected.shape and torch.allclose(
        actual, expected, rtol=1e-5, atol=1e-4 * max(scale, math.ulp(0))
    )
