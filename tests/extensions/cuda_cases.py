"""Inputs on which the CUDA kernels must equal the reference: sizes around every limit of a kernel, ties, broken values.

A case is the name of an operator and its arguments; those of EXACT must agree to the last bit, those of CLOSE to
rounding. The sizes where a kernel or a number of blocks changes are in `extensions.cuda.kernels`.
"""

from typing import Any

import torch
from torch import Tensor

Case = tuple[str, tuple[Any, ...]]
EXACT: dict[str, Case] = {}
CLOSE: dict[str, Case] = {}


def cloud(*shape: int, seed: int = 0, lattice: bool = False) -> Tensor:
    points = torch.randn(*shape, 3, generator=torch.Generator().manual_seed(seed))
    return points.round() if lattice else points


def broken(points: Tensor) -> Tensor:
    """With NaN and infinite coordinates, each in its own point."""
    points = points.clone()
    for i, value in enumerate((torch.nan, torch.inf, -torch.inf, 1e30, -torch.nan)):
        points[:, 3 * i + 1, i % 3] = value
    return points


def exact(name: str, operator: str, *args: Any) -> None:
    EXACT[f"{operator}: {name}"] = operator, args


def close(name: str, operator: str, *args: Any) -> None:
    CLOSE[f"{operator}: {name}"] = operator, args


def sampling() -> None:
    name = "farthest_point_sample"
    for n in (1, 2, 31, 33, 129, 257, 513, 1025, 2049, 4097):
        exact(f"{n} points", name, cloud(2, n), min(n, 9), n // 2, False)
    exact("all points", name, cloud(2, 70), 70, 0, False)
    exact("mean", name, cloud(3, 300), 20, -1, False)
    exact("near origin", name, cloud(2, 200) / 20, 60, 0, True)
    exact("nothing but origin", name, cloud(2, 40) / 1000, 5, 0, True)
    exact("lattice", name, cloud(2, 1000, lattice=True), 40, 0, False)
    exact("duplicates", name, cloud(2, 4).repeat(1, 80, 1), 12, 0, False)
    exact("broken", name, broken(cloud(2, 100)), 30, 0, False)
    exact("broken start", name, broken(cloud(2, 100)), 30, 1, True)
    exact("nothing sound", name, torch.full((2, 50, 3), torch.nan), 4, 0, False)
    exact("no clouds", name, cloud(0, 50), 4, 0, False)
    exact("shared by blocks", name, cloud(1, 8193), 6, 0, False)
    exact("shared, lattice", name, cloud(1, 9000, lattice=True), 6, -1, True)
    exact("shared, in turns", name, cloud(3, 9000), 4, 7, False)
    exact("too large to share", name, broken(cloud(1, 41000)), 4, 0, True)


def placing() -> None:
    for n in (1, 2, 255, 256, 257, 1000):
        close(f"{n} points", "normalize", cloud(2, n) * 7 + 3)
    close("equal points", "normalize", torch.full((2, 64, 3), 0.5))
    close("not a number", "normalize", torch.where(torch.arange(300)[:, None] == 77, torch.nan, cloud(2, 300)))
    close("no clouds", "normalize", cloud(0, 8))


def neighbours() -> None:
    for k in (1, 31, 32, 33, 64, 65, 128, 129, 200):
        exact(f"{k} of 200", "knn", cloud(2, 5), cloud(2, 200, seed=1), k)
    exact("1 of 1", "knn", cloud(2, 3), cloud(2, 1), 1)
    exact("33 of 33", "knn", cloud(1, 33), cloud(1, 33), 33)
    exact("lattice", "knn", cloud(2, 9, lattice=True), cloud(2, 500, seed=1, lattice=True), 50)
    exact("ties at the last place", "knn", torch.zeros(1, 1, 3), torch.eye(3).repeat(1, 200, 1), 5)
    approaching = cloud(1, 300).norm(dim=2).sort(1, descending=True).values[..., None].expand(1, 300, 3).contiguous()
    exact("ever nearer", "knn", torch.zeros(1, 1, 3), approaching, 40)
    exact("broken points", "knn", cloud(2, 6), broken(cloud(2, 60)), 60)
    exact("broken queries", "knn", broken(cloud(2, 20)), cloud(2, 60), 40)
    exact("no clouds", "knn", cloud(0, 4), cloud(0, 9), 3)
    exact("no queries", "knn", cloud(2, 0), cloud(2, 9), 3)
    for k, radius in ((1, 0.5), (8, 0.5), (40, 1.0), (70, 0.9), (5, 1e-6), (300, 9.0)):
        exact(f"{k} within {radius}", "ball_query", cloud(2, 6), cloud(2, 250, seed=1), radius, k)
    exact("on the sphere", "ball_query", torch.zeros(1, 1, 3), cloud(1, 90, lattice=True), 1.0, 90)
    exact("broken", "ball_query", broken(cloud(1, 20)), broken(cloud(1, 60)), 1.0, 7)
    exact("no clouds", "ball_query", cloud(0, 4), cloud(0, 9), 1.0, 3)
    exact("1024 points", "group", cloud(2, 1024), 6, 32, False)
    exact("everything", "group", cloud(2, 40), 40, 40, True)
    exact("lattice", "group", cloud(2, 300, lattice=True), 10, 140, False)
    exact("duplicates", "group", cloud(1, 3).repeat(1, 20, 1), 8, 50, False)
    exact("broken", "group", broken(cloud(2, 64)), 8, 64, False)
    exact("one point", "group", cloud(3, 1), 1, 1, False)
    exact("no clouds", "group", cloud(0, 8), 2, 2, False)
    for n, m in ((1, 1), (3, 2), (130, 50), (5, 600), (0, 4)):
        exact(f"{n} from {m}", "three_nn", cloud(2, n), cloud(2, m, seed=1))
    exact("lattice", "three_nn", cloud(2, 100, lattice=True), cloud(2, 90, seed=1, lattice=True))
    exact("broken", "three_nn", broken(cloud(2, 20)), broken(cloud(2, 20)))


def losses() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, m in ((1, 1), (32, 32), (64, 5), (65, 1), (1, 130), (100, 700)):
        x, y = cloud(3, n), cloud(3, m, seed=1)
        exact(f"{n} and {m}", "chamfer", x, y)
        for name in ("chamfer_loss", "chamfer_means"):
            close(f"{n} and {m}", name, x, y, n % 2 == 0, m % 2 == 0)
        nearest = [torch.randint(size, (3, rows), generator=generator) for rows, size in ((n, m), (m, n))]
        close(f"{n} and {m}", "chamfer_backward", x[..., 0].contiguous(), y[..., 1].contiguous(), x, y, *nearest)
        for root, shape in ((False, (3,)), (True, ())):
            grads = torch.rand(shape, generator=generator), torch.rand(shape, generator=generator)
            close(f"{n} and {m}", "chamfer_loss_backward", *grads, x, y, *nearest, root)
    for n in (40, 90):
        exact(f"lattice {n}", "chamfer", cloud(2, n, lattice=True), cloud(2, n, seed=1, lattice=True))
        exact(f"broken {n}", "chamfer", broken(cloud(2, n)), broken(cloud(2, n, seed=1)))
        exact(f"broken one way {n}", "chamfer", broken(cloud(2, n)), cloud(2, n, seed=1))
        exact(f"infinite {n}", "chamfer", torch.full((2, n, 3), torch.inf), cloud(2, n))
    exact("no clouds", "chamfer", cloud(0, 8), cloud(0, 9))
    for squared in (True, False):
        for n, m in ((1, 1), (33, 70), (300, 20), (20, 300)):
            close(f"{n} and {m}, {squared=}", "approx_match_cost", cloud(2, n), cloud(2, m, seed=1), squared)
        close(f"the same, {squared=}", "approx_match_cost", cloud(2, 30), cloud(2, 30), squared)
    close("no clouds", "approx_match_cost", cloud(0, 8), cloud(0, 9), True)


def interpolation() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, m, channels, k in ((1, 1, 1, 3), (20, 7, 40, 3), (50, 3, 33, 2), (9, 30, 384, 3)):
        features = torch.randn(2, m, channels, generator=generator)
        indices = torch.randint(-m, m, (2, n, k), generator=generator)
        weights, grad = (torch.randn(2, n, size, generator=generator) for size in (k, channels))
        close(f"{n} from {m}, {channels}", "three_interpolate", features, indices, weights)
        indices = indices % m  # the gradient of the reference takes no negative index
        close(f"{n} from {m}, {channels}", "three_interpolate_backward", grad, features, indices, weights)


def windows() -> None:
    generator = torch.Generator().manual_seed(0)
    for n, window, channels in ((1, 1, 1), (9, 9, 40), (10, 9, 8), (50, 5, 33), (12, 4, 3), (70, 33, 64)):
        rows, keys = torch.randn(2, 2, n, channels, generator=generator)
        weights = torch.rand(2, n, window, generator=generator)
        close(f"{window} of {n}, {channels}", "window_scores", rows, keys, window)
        close(f"{window} of {n}, {channels}", "window_mix", weights, rows)
        close(f"{window} of {n}, {channels}", "window_spread", weights, rows)


for build in (sampling, placing, neighbours, losses, interpolation, windows):
    build()
