"""The point operations against plain PyTorch, scipy and, where installed, fpsample, torch-cluster, torch-points-kernels
and pytorch3d; the goals are ratios.

Inputs are random clouds in the unit ball, float32. `goal` is the number of the goal, the numbers beside the peers are
the ratios asked for.
"""

import argparse
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from extensions import ops
from tools.bench.measure import interleaved, machine, median, seconds
from utils.cpu import tune

Call = Callable[[], object]


@dataclass
class Case:
    goal: int
    name: str
    ours: Call
    peers: Mapping[str, Call]
    wanted: Mapping[str, float] = field(default_factory=dict)


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


def cluster_peers(points: Tensor, m: int = 0, query: Tensor | None = None, k: int = 0) -> dict[str, Call]:
    """torch-cluster, where it is installed: it wants one list of points and the cloud of each."""
    if not find_spec("torch_cluster"):
        return {}
    import torch_cluster

    (batch, n), flat = points.shape[:2], points.reshape(-1, 3)
    cloud = torch.arange(batch).repeat_interleave(n)
    if query is None:
        return {"torch-cluster": partial(torch_cluster.fps, flat, cloud, m / n, False)}
    asking = torch.arange(batch).repeat_interleave(query.shape[1])
    return {"torch-cluster": partial(torch_cluster.knn, flat, query.reshape(-1, 3), k, cloud, asking)}


def kernels_peer(function: str, *args: Any) -> dict[str, Call]:
    """A function of torch-points-kernels, where it is installed."""
    if not find_spec("torch_points_kernels"):
        return {}
    import torch_points_kernels

    return {"points-kernels": partial(getattr(torch_points_kernels, function), *args)}


def pytorch3d_peer(function: str, *args: Any, **options: Any) -> dict[str, Call]:
    """A function of pytorch3d, where it is installed."""
    if not find_spec("pytorch3d"):
        return {}
    import pytorch3d.loss
    import pytorch3d.ops

    found = getattr(pytorch3d.ops, function, None) or getattr(pytorch3d.loss, function)
    return {"pytorch3d": partial(found, *args, **options)}


def fps_case(batch: int, n: int, m: int, goal: int, wanted: dict[str, float]) -> Case:
    points = ball(batch, n)
    ours = partial(ops.farthest_point_sample, points, m)
    peers: dict[str, Call] = {"torch loop": reference(ours)}
    if find_spec("fpsample"):
        import fpsample

        clouds, height = list(points.numpy()), 3 if n < 4096 else 7
        peers["fpsample"] = lambda: [fpsample.fps_sampling(c, m, start_idx=0) for c in clouds]
        peers["fpsample kdline"] = lambda: [
            fpsample.bucket_fps_kdline_sampling(c, m, h=height, start_idx=0) for c in clouds
        ]
    peers |= cluster_peers(points, m) | kernels_peer("furthest_point_sample", points, m)
    peers |= pytorch3d_peer("sample_farthest_points", points, K=m)
    return Case(goal, f"FPS {batch} x {n} -> {m}", ours, peers, wanted)


def sampling_cases() -> Iterator[Case]:
    wanted: dict[str, float] = {"torch loop": 18, "fpsample": 20, "fpsample kdline": 5}
    wanted |= {"torch-cluster": 80, "pytorch3d": 30}
    yield fps_case(32, 1024, 64, 1, wanted)
    yield fps_case(32, 2048, 512, 1, wanted)
    yield fps_case(1, 65536, 512, 2, {"fpsample kdline": 4})


def knn_case(batch: int, n: int, m: int, k: int, wanted: dict[str, float]) -> Case:
    points = ball(batch, n)
    args = points[:, :m].contiguous(), points, k
    peers: dict[str, Call] = {"cKDTree": partial(tree_knn, *args), "cdist + topk": partial(cdist_knn, *args)}
    peers |= cluster_peers(points, query=args[0], k=k) | kernels_peer("knn", points, args[0], k)
    peers |= pytorch3d_peer("knn_points", args[0], points, K=k)
    return Case(3, f"kNN {batch} x {m} of {n}, k {k}", partial(ops.knn, *args), peers, wanted)


def neighbour_cases() -> Iterator[Case]:
    wanted: dict[str, float] = {"cKDTree": 12, "cdist + topk": 18, "torch-cluster": 12, "points-kernels": 6}
    yield knn_case(32, 1024, 64, 32, wanted)
    yield knn_case(32, 2048, 2048, 16, {"cKDTree": 4, "points-kernels": 2.5})
    yield knn_case(1, 8192, 8192, 16, {"cKDTree": 4, "points-kernels": 2.5})
    points = ball(32, 2048)
    query = points[:, :512].contiguous()
    found = partial(ops.ball_query, query, points, 0.2, 32)
    peers: dict[str, Call] = {"cKDTree": partial(tree_ball, query, points, 0.2), "plain torch": reference(found)}
    peers |= kernels_peer("ball_query", 0.2, 32, points, query)
    peers |= pytorch3d_peer("ball_query", query, points, K=32, radius=0.2)
    wanted = {"points-kernels": 3, "pytorch3d": 5}
    yield Case(4, "ball query 32 x 512 of 2048, r 0.2, k 32", found, peers, wanted)
    small = ball(32, 1024)
    fused = partial(ops.group, small, 64, 32)
    peers = {"own separate ops": gathered_group(small, 64, 32), "plain torch": reference(fused)}
    yield Case(5, "group 32 x 1024 -> 64 x 32", fused, peers, {"own separate ops": 1.25})


def chamfer_cases() -> Iterator[Case]:
    patches, clouds = (ball(8192, 32), ball(8192, 32, seed=1)), (ball(32, 2048), ball(32, 2048, seed=1))
    peers: dict[str, Call] = {"cdist": partial(cdist_chamfer, *patches)}
    yield Case(6, "Chamfer 8192 x 32 x 32", partial(ops.chamfer_distance, *patches), peers, {"cdist": 30})
    name, ours = "Chamfer 8192 x 32 x 32 with gradient", backward(ops.chamfer_distance, *patches)
    peers = {"product form": backward(product_chamfer, *patches)}
    for key, call in pytorch3d_peer("chamfer_distance", *patches).items():
        peers[key] = backward(lambda x, y: call.func(x, y)[0], *patches)  # type: ignore[attr-defined]  # noqa: B023
    yield Case(6, name, ours, peers, {"product form": 30, "pytorch3d": 25})
    peers = {"cKDTree": partial(tree_chamfer, *clouds), "cdist": partial(cdist_chamfer, *clouds)}
    peers |= pytorch3d_peer("chamfer_distance", *clouds)
    wanted: dict[str, float] = {"cKDTree": 5, "cdist": 40}
    yield Case(6, "Chamfer 32 x 2048 x 2048", partial(ops.chamfer_distance, *clouds), peers, wanted)


def interpolation_cases() -> Iterator[Case]:
    for n, m, faster in ((512, 64, 7), (2048, 128, 2.5), (2048, 512, 1.5)):
        pair = ball(32, n), ball(32, m, seed=1)
        peers: dict[str, Call] = {"cKDTree": partial(tree_knn, *pair, 3), "cdist + topk": partial(cdist_knn, *pair, 3)}
        peers |= kernels_peer("three_nn", *pair)
        yield Case(7, f"three_nn 32 x {n} of {m}", partial(ops.three_nn, *pair), peers, {"points-kernels": faster})
        distances, indices = ops.three_nn(*pair)
        weights = ops.three_nn_weights(distances, "inverse_distance")
        ours = partial(ops.three_interpolate, torch.randn(32, m, 384), indices, weights)
        yield Case(
            7,
            f"interpolate 32 x {n} of {m}, 384 channels",
            ours,
            {"torch gather": reference(ours)},
            {"torch gather": 6},
        )


def matching_cases() -> Iterator[Case]:
    pair = ball(8, 1024), ball(8, 1024, seed=1)
    approx = partial(ops.earth_mover_distance, *pair, squared=False)
    peers: dict[str, Call] = {"scipy assignment": partial(assignment, *pair), "own approxmatch": approx}
    wanted: dict[str, float] = {"scipy assignment": 15, "own approxmatch": 1.5}
    yield Case(8, "auction 8 x 1024, eps 1e-3", partial(ops.auction_match, *pair, squared=False), peers, wanted)
    yield Case(8, "approxmatch 8 x 1024", approx, {"plain torch": reference(approx)}, {"plain torch": 25})


GROUPS = (sampling_cases, neighbour_cases, chamfer_cases, interpolation_cases, matching_cases)


def cases() -> Iterator[Case]:
    for group in GROUPS:
        yield from group()


def on_threads(threads: int, call: Call) -> Call:
    def run() -> object:
        torch.set_num_threads(threads)
        return call()

    return run


def line(case: Case, rounds: int) -> str:
    """CPU time at one thread: of calls in a row, of the first one after others, of peers."""
    calls = {name: on_threads(1, call) for name, call in {"ours": case.ours, **case.peers}.items()}
    times = {name: median(values) for name, values in interleaved(calls, rounds).items()}
    ours = times.pop("ours")
    with_another = dict(list(calls.items())[:2])
    first = median(interleaved(with_another, rounds, turn=0)["ours"])
    parts = []
    for name, value in times.items():
        goal = f" ({case.wanted[name]:g})" if name in case.wanted else ""
        parts.append(f"{name}: {seconds(value)}, {value / ours:.3g}x{goal}")
    return f"| {case.goal} | {case.name} | {seconds(ours)} | {seconds(first)} | {'; '.join(parts)} |"


def second_thread(case: Case, rounds: int) -> str:
    """What it gains, in wall time."""
    both = interleaved({n: on_threads(int(n), case.ours) for n in "12"}, rounds, time.perf_counter)
    return f"{median(both['1']) / median(both['2']):.2f}x"


def table(rounds: int, only: str = "") -> str:
    """Markdown: one line a case."""
    threads, lines = torch.get_num_threads(), []
    head = [
        machine(),
        "",
        "| goal | case | ours | first call | peers: time, ratio (goal) | 2 threads |",
        "|---|---|---|---|---|---|",
    ]
    chosen = [case for case in cases() if only in case.name]
    for case in chosen:
        lines.append(line(case, rounds))
        print(lines[-1], flush=True)
    tune()  # as in a run, which keeps its memory; peers were measured without
    for i, case in enumerate(chosen):
        lines[i] += f" {second_thread(case, rounds) if threads > 1 else '-'} |"
    torch.set_num_threads(threads)
    return "\n".join(head + lines) + "\n"


def run(args: argparse.Namespace) -> str:
    return table(args.rounds, args.only)
