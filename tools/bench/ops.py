"""The point operations against plain PyTorch, scipy and, where installed, fpsample; the goals are ratios.

Inputs are random clouds in the unit ball, float32. `goal` is the number of the goal, the numbers beside the peers are
the ratios asked for.
"""

import argparse
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from extensions import ops
from tools.bench.measure import interleaved, machine, median, seconds

Call = Callable[[], object]


@dataclass
class Case:
    goal: int
    name: str
    ours: Call
    peers: dict[str, Call]
    wanted: dict[str, float] = field(default_factory=dict)
    batch: int = 1


@contextmanager
def plain_torch() -> Iterator[None]:
    """Our own operations without compiled kernels."""
    before = os.environ.get("POINT_OPS")
    os.environ["POINT_OPS"] = "torch"
    try:
        yield
    finally:
        os.environ.pop("POINT_OPS") if before is None else os.environ.update(POINT_OPS=before)


def reference(call: Call) -> Call:
    def run() -> object:
        with plain_torch():
            return call()

    return run


def ball(*shape: int, seed: int = 0) -> Tensor:
    """Points (..., 3) spread evenly in the unit ball."""
    generator = torch.Generator().manual_seed(seed + sum(shape))
    direction = torch.nn.functional.normalize(torch.randn(*shape, 3, generator=generator), dim=-1)
    return (direction * torch.rand(*shape, 1, generator=generator) ** (1 / 3)).contiguous()


def tree_knn(query: Tensor, points: Tensor, k: int) -> None:
    from scipy.spatial import cKDTree

    for q, p in zip(query.numpy(), points.numpy()):
        cKDTree(p).query(q, k)


def tree_chamfer(x: Tensor, y: Tensor) -> None:
    tree_knn(x, y, 1)
    tree_knn(y, x, 1)


def tree_ball(query: Tensor, points: Tensor, radius: float) -> None:
    from scipy.spatial import cKDTree

    for q, p in zip(query.numpy(), points.numpy()):
        cKDTree(p).query_ball_point(q, radius)


def cdist_knn(query: Tensor, points: Tensor, k: int) -> None:
    torch.cdist(query, points).topk(k, largest=False)


def product_chamfer(x: Tensor, y: Tensor) -> Tensor:
    """The widespread form by |x|^2 + |y|^2 - 2 x.y."""
    matrix = x.square().sum(2)[:, :, None] + y.square().sum(2)[:, None] - 2 * x @ y.mT
    return matrix.amin(2).mean() + matrix.amin(1).mean()


def cdist_chamfer(x: Tensor, y: Tensor) -> Tensor:
    matrix = torch.cdist(x, y)
    return matrix.amin(2).square().mean() + matrix.amin(1).square().mean()


def backward(loss: Callable[[Tensor, Tensor], Tensor], x: Tensor, y: Tensor) -> Call:
    def run() -> object:
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        return torch.autograd.grad(loss(a, b), (a, b))

    return run


def assignment(x: Tensor, y: Tensor) -> None:
    from scipy.optimize import linear_sum_assignment

    for matrix in torch.cdist(x, y).numpy():
        linear_sum_assignment(matrix)


def gathered_group(points: Tensor, groups: int, size: int) -> Call:
    """The three steps that `ops.group` fuses."""

    def run() -> Any:
        center = ops.gather_points(points, ops.farthest_point_sample(points, groups))
        return ops.group_points(points, ops.knn(center, points, size)[1], center)

    return run


def fps_case(batch: int, n: int, m: int, goal: int, wanted: dict[str, float]) -> Case:
    points = ball(batch, n)
    ours: Call = lambda: ops.farthest_point_sample(points, m)  # noqa: E731
    peers = {"torch loop": reference(ours)}
    if find_spec("fpsample"):
        import fpsample

        clouds = list(points.numpy())
        peers["fpsample"] = lambda: [fpsample.fps_sampling(c, m, start_idx=0) for c in clouds]
        peers["fpsample kdline"] = lambda: [
            fpsample.bucket_fps_kdline_sampling(c, m, h=3 if n < 4096 else 7, start_idx=0) for c in clouds
        ]
    return Case(goal, f"FPS {batch} x {n} -> {m}", ours, peers, wanted, batch)


def sampling_cases() -> Iterator[Case]:
    wanted = {"torch loop": 18, "fpsample": 20, "fpsample kdline": 5}
    yield fps_case(32, 1024, 64, 1, wanted)
    yield fps_case(32, 2048, 512, 1, wanted)
    yield fps_case(1, 65536, 512, 2, {"fpsample kdline": 4})


def neighbour_cases() -> Iterator[Case]:
    for batch, n, m, k, wanted in (
        (32, 1024, 64, 32, {"cKDTree": 12.0, "cdist + topk": 18.0}),
        (32, 2048, 2048, 16, {"cKDTree": 4.0}),
        (1, 8192, 8192, 16, {"cKDTree": 4.0}),
    ):
        points = ball(batch, n)
        query = points[:, :m].contiguous()
        peers = {
            "cKDTree": lambda q=query, p=points, k=k: tree_knn(q, p, k),
            "cdist + topk": lambda q=query, p=points, k=k: cdist_knn(q, p, k),
        }
        ours = lambda q=query, p=points, k=k: ops.knn(q, p, k)  # noqa: E731
        yield Case(3, f"kNN {batch} x {m} of {n}, k {k}", ours, peers, wanted, batch)
    points = ball(32, 2048)
    query = points[:, :512].contiguous()
    ours = lambda: ops.ball_query(query, points, 0.2, 32)  # noqa: E731
    peers = {"cKDTree": lambda: tree_ball(query, points, 0.2), "plain torch": reference(ours)}
    yield Case(4, "ball query 32 x 512 of 2048, r 0.2, k 32", ours, peers, {}, 32)
    small = ball(32, 1024)
    fused = lambda: ops.group(small, 64, 32)  # noqa: E731
    peers = {"own separate ops": gathered_group(small, 64, 32), "plain torch": reference(fused)}
    yield Case(5, "group 32 x 1024 -> 64 x 32", fused, peers, {"own separate ops": 1.25}, 32)


def chamfer_cases() -> Iterator[Case]:
    x, y = ball(8192, 32), ball(8192, 32, seed=1)
    chamfer = lambda a=x, b=y: ops.chamfer_distance(a, b)  # noqa: E731
    peers: dict[str, Call] = {"cdist": lambda: cdist_chamfer(x, y)}
    yield Case(6, "Chamfer 8192 x 32 x 32", chamfer, peers, {"cdist": 30}, 32)
    peers = {"product form": backward(product_chamfer, x, y)}
    yield Case(
        6, "Chamfer 8192 x 32 x 32 with gradient", backward(ops.chamfer_distance, x, y), peers, {"product form": 30}, 32
    )
    u, v = ball(32, 2048), ball(32, 2048, seed=1)
    peers = {"cKDTree": lambda: tree_chamfer(u, v), "cdist": lambda: cdist_chamfer(u, v)}
    yield Case(
        6, "Chamfer 32 x 2048 x 2048", lambda: ops.chamfer_distance(u, v), peers, {"cKDTree": 5, "cdist": 40}, 32
    )


def interpolation_cases() -> Iterator[Case]:
    for n, m, channels in ((512, 64, 384), (2048, 128, 384), (2048, 512, 384)):
        unknown, known = ball(32, n), ball(32, m, seed=1)
        peers: dict[str, Call] = {
            "cKDTree": lambda q=unknown, p=known: tree_knn(q, p, 3),
            "cdist + topk": lambda q=unknown, p=known: cdist_knn(q, p, 3),
        }
        yield Case(7, f"three_nn 32 x {n} of {m}", lambda q=unknown, p=known: ops.three_nn(q, p), peers, {}, 32)
        if m == 128:
            continue
        distances, indices = ops.three_nn(unknown, known)
        weights, features = ops.three_nn_weights(distances, "inverse_distance"), torch.randn(32, m, channels)
        ours = lambda f=features, i=indices, w=weights: ops.three_interpolate(f, i, w)  # noqa: E731
        yield Case(
            7,
            f"interpolate 32 x {n} of {m}, {channels} channels",
            ours,
            {"torch gather": reference(ours)},
            {"torch gather": 6},
            32,
        )


def matching_cases() -> Iterator[Case]:
    x, y = ball(8, 1024), ball(8, 1024, seed=1)
    approx = lambda: ops.earth_mover_distance(x, y, squared=False)  # noqa: E731
    peers = {"scipy assignment": lambda: assignment(x, y), "own approxmatch": backward(ops.earth_mover_distance, x, y)}
    yield Case(
        8,
        "auction 8 x 1024, eps 1e-3",
        lambda: ops.auction_match(x, y, squared=False, eps=1e-3),
        peers,
        {"scipy assignment": 15, "own approxmatch": 1.5},
        8,
    )
    yield Case(8, "approxmatch 8 x 1024", approx, {"plain torch": reference(approx)}, {"plain torch": 25}, 8)


def cases() -> Iterator[Case]:
    for group in (sampling_cases, neighbour_cases, chamfer_cases, interpolation_cases, matching_cases):
        yield from group()


def table(rounds: int, only: str = "") -> str:
    """Markdown: one line a case. CPU time at one thread; in the last column the gain of two threads in wall time."""
    import time

    lines = [machine(), "", "| goal | case | ours | peers: time, ratio (goal) | 2 threads |", "|---|---|---|---|---|"]
    threads = torch.get_num_threads()
    for case in cases():
        if only not in case.name:
            continue
        torch.set_num_threads(1)
        medians = {k: median(v) for k, v in interleaved({"ours": case.ours, **case.peers}, rounds).items()}
        ours = medians.pop("ours")
        parts = []
        for name, value in medians.items():
            goal = f" ({case.wanted[name]:g})" if name in case.wanted else ""
            parts.append(f"{name}: {seconds(value)}, {value / ours:.3g}x{goal}")
        gain = "-"
        if threads > 1:
            one = interleaved({"one": case.ours}, rounds, time.perf_counter)["one"]
            torch.set_num_threads(2)
            two = interleaved({"two": case.ours}, rounds, time.perf_counter)["two"]
            gain = f"{min(one) / min(two):.2f}x"
        lines.append(f"| {case.goal} | {case.name} | {seconds(ours)} | {'; '.join(parts)} | {gain} |")
        print(lines[-1], flush=True)
    torch.set_num_threads(threads)
    return "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> str:
    return table(args.rounds, args.only)
