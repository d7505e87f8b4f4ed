"""The operators of `extensions.library` on a GPU: shapes of the results, choice of the kernel, launches.

Arguments arrive checked and contiguous. What no kernel takes (float64, features instead of coordinates) returns
NotImplemented, and the reference runs. B clouds, N (n, m) points, M queries, C channels.
"""

import ctypes
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from extensions import reference
from extensions.reference.emd import LEVELS

from . import launch

# threads and points a thread of the sampling kernels; a block holds their product
SAMPLERS = ((128, 1), (256, 1), (256, 2), (256, 4), (512, 4), (1024, 4), (1024, 8))
SHARED = ((1024, 4), (1024, 8))  # of those, the ones that share a cloud among blocks
WARPS = 4  # queries of a block of `knn` and `ball_query`
ROWS = 8  # rows of a block of `three_interpolate`, its gradients, and the windows
PATCH = 64  # largest cloud of the small Chamfer kernel


def parts(total: int, size: int) -> int:
    """How many parts of a size cover the total."""
    return -(-total // size)


def indices_like(tensor: Tensor, *shape: int) -> Tensor:
    return tensor.new_empty(shape, dtype=torch.int64)


def farthest_point_sample(points: Tensor, num_samples: int, start: int, skip_near_origin: bool) -> Any:
    if points.dtype != torch.float32:
        return NotImplemented
    batch, n, _ = points.shape
    before = reference.finite_mean(points) if start < 0 else None
    indices = indices_like(points, batch, num_samples)
    options = (n, num_samples, max(start, 0), int(skip_near_origin))
    for threads, per_thread in SAMPLERS:
        if n <= threads * per_thread:
            name = f"fps_{threads}x{per_thread}"
            launch.launch("fps", name, batch, threads, points, before, None, indices, *options, 1)
            return indices
    room = launch.multiprocessors(points.device)  # blocks that share a cloud must all run at once
    for threads, per_thread in SHARED:
        blocks = parts(n, threads * per_thread)
        if blocks * batch <= room or (blocks <= room and (threads, per_thread) == SHARED[-1]):
            _sample_shared(
                f"fps_{threads}x{per_thread}", threads, blocks, room // blocks, points, before, indices, options
            )
            return indices
    closest = points.new_empty(batch, n)
    launch.launch("fps", "fps_any", batch, 1024, points, before, closest, indices, *options)
    return indices


def _sample_shared(
    name: str,
    threads: int,
    blocks: int,
    clouds: int,
    points: Tensor,
    before: Tensor | None,
    indices: Tensor,
    options: tuple[int, ...],
) -> None:
    """Sample with `blocks` blocks a cloud, as many `clouds` at a time as fit on the device."""
    board = points.new_zeros((points.shape[0], indices.shape[1], blocks), dtype=torch.int64)
    for i in range(0, points.shape[0], clouds):
        some = slice(i, i + clouds)
        tensors = points[some], None if before is None else before[some], board[some], indices[some]
        launch.launch("fps", name, blocks * len(points[some]), threads, *tensors, *options, blocks, cooperative=True)


def _list_size(k: int) -> int:
    """Which of the kernels for 32, 64 and 128 neighbours; more than 128 take several passes of the last."""
    return next((size for size in (32, 64) if k <= size), 128)


def knn(query: Tensor, points: Tensor, k: int) -> Any:
    if query.dtype != torch.float32 or query.shape[2] != 3:
        return NotImplemented
    (batch, m, _), n = query.shape, points.shape[1]
    distances, indices = query.new_empty(batch, m, k), indices_like(query, batch, m, k)
    tensors = query, points, distances, indices
    launch.launch("knn", f"knn_{_list_size(k)}", parts(batch * m, WARPS), WARPS * 32, *tensors, m, n, k, batch)
    return distances, indices


def group(points: Tensor, num_group: int, group_size: int, skip_near_origin: bool) -> Any:
    if points.dtype != torch.float32:
        return NotImplemented
    batch, n, _ = points.shape
    chosen = farthest_point_sample(points, num_group, 0, skip_near_origin)
    neighborhood, center = points.new_empty(batch, num_group, group_size, 3), points.new_empty(batch, num_group, 3)
    indices = indices_like(points, batch, num_group, group_size)
    name, blocks = f"group_{_list_size(group_size)}", parts(batch * num_group, WARPS)
    tensors = points, chosen, neighborhood, center, indices
    launch.launch("knn", name, blocks, WARPS * 32, *tensors, num_group, n, group_size, batch)
    return neighborhood, center, indices


def ball_query(query: Tensor, points: Tensor, radius: float, k: int) -> Any:
    if query.dtype != torch.float32:
        return NotImplemented
    (batch, m, _), n = query.shape, points.shape[1]
    indices, counts = indices_like(query, batch, m, k), indices_like(query, batch, m)
    tensors = query, points, radius * radius, indices, counts
    launch.launch("ball_query", "ball_query", parts(batch * m, WARPS), WARPS * 32, *tensors, m, n, k, batch)
    return indices, counts


def three_nn(unknown: Tensor, known: Tensor) -> Any:
    if unknown.dtype != torch.float32:
        return NotImplemented
    (batch, n, _), m = unknown.shape, known.shape[1]
    distances, indices = torch.empty_like(unknown), torch.empty_like(unknown, dtype=torch.int64)
    launch.launch("interpolate", "three_nn", batch * parts(n, 128), 128, unknown, known, distances, indices, n, m)
    return distances, indices


def three_interpolate(features: Tensor, indices: Tensor, weights: Tensor) -> Any:
    if features.dtype != torch.float32 or weights.dtype != torch.float32:
        return NotImplemented
    (batch, m, channels), (_, n, k) = features.shape, indices.shape
    out = features.new_empty(batch, n, channels)
    blocks, sizes = parts(batch * n, ROWS), (n, m, channels, k, batch)
    launch.launch("interpolate", "three_interpolate", blocks, ROWS * 32, features, indices, weights, out, *sizes)
    return out


def three_interpolate_backward(grad: Tensor, features: Tensor, indices: Tensor, weights: Tensor) -> Any:
    if features.dtype != torch.float32 or weights.dtype != torch.float32 or grad.dtype != torch.float32:
        return NotImplemented
    (batch, m, channels), (_, n, k) = features.shape, indices.shape
    sizes = n, m, channels, k, batch
    grad_features, grad_weights = torch.empty_like(features), torch.empty_like(weights)
    tensors = grad, indices, weights, grad_features
    blocks = parts(batch * m, ROWS)
    launch.launch("interpolate", "interpolate_grad_features", blocks, ROWS * 32, *tensors, *sizes)
    tensors = grad, features, indices, grad_weights
    blocks = parts(batch * n, ROWS)
    launch.launch("interpolate", "interpolate_grad_weights", blocks, ROWS * 32, *tensors, *sizes)
    return grad_features, grad_weights


def chamfer(x: Tensor, y: Tensor) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    (batch, n, _), m = x.shape, y.shape[1]
    out = x.new_empty(batch, n), x.new_empty(batch, m), indices_like(x, batch, n), indices_like(x, batch, m)
    if max(n, m) <= PATCH:
        launch.launch("chamfer", "chamfer_patches", parts(batch, 4), 128, x, y, *out, n, m, batch)
    else:
        blocks = batch * (parts(n, 64) + parts(m, 64))
        launch.launch("chamfer", "chamfer_clouds", blocks, 256, x, y, *out, n, m, batch)
    return out


def chamfer_loss(x: Tensor, y: Tensor, root: bool, whole: bool) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    dist1, dist2, idx1, idx2 = chamfer(x, y)
    return *reference.means_of(dist1, dist2, root, whole), idx1, idx2


def chamfer_means(x: Tensor, y: Tensor, root: bool, whole: bool) -> Any:
    result = chamfer_loss(x, y, root, whole)
    return result if result is NotImplemented else result[:2]


def chamfer_backward(grad1: Tensor, grad2: Tensor, x: Tensor, y: Tensor, idx1: Tensor, idx2: Tensor) -> Any:
    if x.dtype != torch.float32 or grad1.dtype != torch.float32 or grad2.dtype != torch.float32:
        return NotImplemented
    (batch, n, _), m = x.shape, y.shape[1]
    grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
    threads = min(128, 32 * parts(max(n, m), 32))
    blocks = batch * (parts(n, threads) + parts(m, threads))
    tensors = grad1, grad2, x, y, idx1, idx2, grad_x, grad_y
    launch.launch("chamfer", "chamfer_backward", blocks, threads, *tensors, n, m, batch)
    return grad_x, grad_y


def chamfer_loss_backward(
    grad1: Tensor, grad2: Tensor, x: Tensor, y: Tensor, idx1: Tensor, idx2: Tensor, root: bool
) -> Any:
    grads = reference.grads_of_means(grad1, grad2, x, y, idx1, idx2, root)
    return chamfer_backward(grads[0].contiguous(), grads[1].contiguous(), x, y, idx1, idx2)


def approx_match_cost(x: Tensor, y: Tensor, squared: bool) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    (batch, n, _), m = x.shape, y.shape[1]
    left, right = x.new_full((batch, n), max(1, m // n)), x.new_full((batch, m), max(1, n // m))
    share, accepted, cost = torch.zeros_like(left), torch.zeros_like(right), torch.zeros_like(left)
    grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)

    def rows(level: float, following: float) -> None:
        tensors = x, y, accepted, right, left, share, cost, grad_x
        launch.launch(
            "approxmatch", "match_rows", batch * parts(n, 32), 256, *tensors, n, m, level, following, int(squared)
        )

    def columns(level: float) -> None:
        tensors = x, y, share, right, accepted, grad_y
        launch.launch("approxmatch", "match_columns", batch * parts(m, 32), 256, *tensors, n, m, level, int(squared))

    rows(LEVELS[0], LEVELS[0])  # nothing is shared out yet: this only finds the first denominators
    for level, following in zip(LEVELS, (*LEVELS[1:], LEVELS[-1])):
        columns(level)
        rows(level, following)
    return cost.sum(1), grad_x, grad_y


def auction(x: Tensor, y: Tensor, squared: bool, eps: float) -> Any:
    if x.dtype != torch.float32:
        return NotImplemented
    batch, n, _ = x.shape
    scratch = x.new_empty((batch, 3, n), dtype=torch.float64), x.new_empty((batch, 5, n), dtype=torch.int32)
    indices = indices_like(x, batch, n)
    launch.launch("auction", "auction", batch, 1024, x, y, *scratch, indices, n, int(squared), ctypes.c_double(eps))
    return indices


def normalize(points: Tensor) -> Any:
    if points.dtype != torch.float32:
        return NotImplemented
    out = torch.empty_like(points)
    launch.launch("normalize", "normalize", len(points), 256, points, out, points.shape[1])
    return out


def sort_order(keys: Tensor) -> Any:
    return NotImplemented  # torch sorts well on a GPU


def window_scores(rows: Tensor, keys: Tensor, window: int) -> Any:
    if rows.dtype != torch.float32:
        return NotImplemented
    batch, n, channels = rows.shape
    scores = rows.new_empty(batch, n, window)
    blocks, sizes = parts(batch * n, ROWS), (n, window, channels, batch)
    launch.launch("window", "window_scores", blocks, ROWS * 32, rows, keys, scores, *sizes)
    return scores


def window_mix(weights: Tensor, values: Tensor) -> Any:
    return _window_sums("window_mix", weights, values)


def window_spread(weights: Tensor, rows: Tensor) -> Any:
    return _window_sums("window_spread", weights, rows)


def _window_sums(name: str, weights: Tensor, rows: Tensor) -> Any:
    if rows.dtype != torch.float32:
        return NotImplemented
    (batch, n, channels), window = rows.shape, weights.shape[2]
    out = torch.empty_like(rows)
    launch.launch("window", name, parts(batch * n, ROWS), ROWS * 32, weights, rows, out, n, window, channels, batch)
    return out


KERNELS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        farthest_point_sample,
        knn,
        ball_query,
        group,
        three_nn,
        three_interpolate,
        three_interpolate_backward,
        chamfer,
        chamfer_backward,
        chamfer_loss,
        chamfer_loss_backward,
        chamfer_means,
        approx_match_cost,
        auction,
        normalize,
        sort_order,
        window_scores,
        window_mix,
        window_spread,
    )
}
