"""The C++ kernels of `extensions/csrc` for the CPU: float32, three channels. `build` compiles them at first use."""

import ctypes
import logging
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from extensions import build
from extensions.reference import finite_mean

# arguments of the C functions: p pointer, i int64, f float, d double; the last i is the number of threads
SIGNATURES = {
    "farthest_point_sample": "ppiiiiipi",
    "knn": "ppiiiippi",
    "ball_query": "ppiiiifppi",
    "group": "piiiiipppi",
    "three_nn": "ppiiippi",
    "three_interpolate": "pppiiiiipi",
    "three_interpolate_backward": "ppppiiiiippi",
    "chamfer": "ppiiippppi",
    "chamfer_backward": "ppppppiiippi",
    "approx_match_cost": "ppiiiipppi",
    "auction": "ppiiidpi",
    "normalize": "piipi",
    "sort_order": "piipi",
    "window_scores": "ppiiiipi",
    "window_mix": "ppiiiipi",
    "window_spread": "ppiiiipi",
}
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
NO_KERNEL = 1  # what a C function returns if it leaves the work to the reference


def register() -> dict[str, Callable[..., Any]]:
    """The kernels by operator name; none, and one line in the log that says why, if they cannot be compiled."""
    try:
        library = ctypes.CDLL(str(build.library()))
    except (build.BuildError, OSError) as error:
        logging.getLogger("pointsmith.extensions").warning(
            "point operations run in plain PyTorch, many times slower than compiled: %s", error
        )
        return {}
    return Kernels(library).table()


class Kernels:
    """Python side of the C functions: allocates the results, passes pointers and the number of threads."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.functions = {}
        for name, signature in SIGNATURES.items():
            function = getattr(library, f"pointsmith_{name}")
            function.argtypes = [TYPES[letter] for letter in signature]
            function.restype = ctypes.c_int64
            self.functions[name] = function

    def table(self) -> dict[str, Callable[..., Any]]:
        return {name: getattr(self, name) for name in SIGNATURES}

    def call(self, name: str, *args: Any) -> int:
        plain = [arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]
        return self.functions[name](*plain, torch.get_num_threads())

    def farthest_point_sample(self, points: Tensor, num_samples: int, start: int, skip_near_origin: bool) -> Any:
        if points.dtype != torch.float32:
            return NotImplemented
        batch, n, _ = points.shape
        mean = finite_mean(points) if start < 0 else None
        chosen = points.new_empty(batch, num_samples, dtype=torch.int64)
        self.call("farthest_point_sample", points, mean, batch, n, num_samples, max(start, 0), skip_near_origin, chosen)
        return chosen

    def knn(self, query: Tensor, points: Tensor, k: int) -> Any:
        if query.dtype != torch.float32 or query.shape[2] != 3:
            return NotImplemented
        (batch, m, _), n = query.shape, points.shape[1]
        distances, indices = query.new_empty(batch, m, k), query.new_empty(batch, m, k, dtype=torch.int64)
        self.call("knn", query, points, batch, m, n, k, distances, indices)
        return distances, indices

    def ball_query(self, query: Tensor, points: Tensor, radius: float, k: int) -> Any:
        if query.dtype != torch.float32:
            return NotImplemented
        (batch, m, _), n = query.shape, points.shape[1]
        indices = query.new_empty(batch, m, k, dtype=torch.int64)
        counts = query.new_empty(batch, m, dtype=torch.int64)
        self.call("ball_query", query, points, batch, m, n, k, radius * radius, indices, counts)
        return indices, counts

    def group(self, points: Tensor, num_group: int, group_size: int, skip_near_origin: bool) -> Any:
        if points.dtype != torch.float32:
            return NotImplemented
        batch, n, _ = points.shape
        neighborhood = points.new_empty(batch, num_group, group_size, 3)
        center = points.new_empty(batch, num_group, 3)
        indices = points.new_empty(batch, num_group, group_size, dtype=torch.int64)
        self.call("group", points, batch, n, num_group, group_size, skip_near_origin, neighborhood, center, indices)
        return neighborhood, center, indices

    def three_nn(self, unknown: Tensor, known: Tensor) -> Any:
        if unknown.dtype != torch.float32:
            return NotImplemented
        (batch, n, _), m = unknown.shape, known.shape[1]
        distances, indices = torch.empty_like(unknown), torch.empty_like(unknown, dtype=torch.int64)
        status = self.call("three_nn", unknown, known, batch, n, m, distances, indices)
        return NotImplemented if status == NO_KERNEL else (distances, indices)

    def three_interpolate(self, features: Tensor, indices: Tensor, weights: Tensor) -> Any:
        if features.dtype != torch.float32:
            return NotImplemented
        (batch, m, channels), (_, n, k) = features.shape, indices.shape
        out = features.new_empty(batch, n, channels)
        status = self.call("three_interpolate", features, indices, weights, batch, m, channels, n, k, out)
        return NotImplemented if status == NO_KERNEL else out

    def three_interpolate_backward(self, grad: Tensor, features: Tensor, indices: Tensor, weights: Tensor) -> Any:
        if features.dtype != torch.float32:
            return NotImplemented
        (batch, m, channels), (_, n, k) = features.shape, indices.shape
        gradients = torch.empty_like(features), torch.empty_like(weights)
        inputs = grad, features, indices, weights
        status = self.call("three_interpolate_backward", *inputs, batch, m, channels, n, k, *gradients)
        return NotImplemented if status == NO_KERNEL else gradients

    def chamfer(self, x: Tensor, y: Tensor) -> Any:
        if x.dtype != torch.float32:
            return NotImplemented
        (batch, n, _), m = x.shape, y.shape[1]
        dist1, dist2 = x.new_empty(batch, n), y.new_empty(batch, m)
        idx1, idx2 = torch.empty_like(dist1, dtype=torch.int64), torch.empty_like(dist2, dtype=torch.int64)
        self.call("chamfer", x, y, batch, n, m, dist1, dist2, idx1, idx2)
        return dist1, dist2, idx1, idx2

    def chamfer_backward(self, *inputs: Tensor) -> Any:
        x, y = inputs[2:4]
        if x.dtype != torch.float32:
            return NotImplemented
        gradients = torch.empty_like(x), torch.empty_like(y)
        status = self.call("chamfer_backward", *inputs, x.shape[0], x.shape[1], y.shape[1], *gradients)
        return NotImplemented if status == NO_KERNEL else gradients

    def approx_match_cost(self, x: Tensor, y: Tensor, squared: bool) -> Any:
        if x.dtype != torch.float32:
            return NotImplemented
        (batch, n, _), m = x.shape, y.shape[1]
        cost, grad_x, grad_y = x.new_empty(batch), torch.empty_like(x), torch.empty_like(y)
        self.call("approx_match_cost", x, y, batch, n, m, squared, cost, grad_x, grad_y)
        return cost, grad_x, grad_y

    def auction(self, x: Tensor, y: Tensor, squared: bool, eps: float) -> Any:
        if x.dtype != torch.float32:
            return NotImplemented
        batch, n, _ = x.shape
        partner = x.new_empty(batch, n, dtype=torch.int64)
        status = self.call("auction", x, y, batch, n, squared, eps, partner)
        return NotImplemented if status == NO_KERNEL else partner

    def normalize(self, points: Tensor) -> Any:
        if points.dtype != torch.float32:
            return NotImplemented
        out = torch.empty_like(points)
        self.call("normalize", points, *points.shape[:2], out)
        return out

    def sort_order(self, keys: Tensor) -> Any:
        if keys.dtype != torch.float32 or keys.ndim == 0:
            return NotImplemented
        order = torch.empty_like(keys, dtype=torch.int64)
        rows = keys.shape[:-1].numel()
        return NotImplemented if self.call("sort_order", keys, rows, keys.shape[-1], order) == NO_KERNEL else order

    def window_scores(self, rows: Tensor, keys: Tensor, window: int) -> Any:
        if rows.dtype != torch.float32:
            return NotImplemented
        batch, n, channels = rows.shape
        scores = rows.new_empty(batch, n, window)
        self.call("window_scores", rows, keys, batch, n, window, channels, scores)
        return scores

    def window_mix(self, weights: Tensor, values: Tensor) -> Any:
        return self._weighted("window_mix", weights, values)

    def window_spread(self, weights: Tensor, rows: Tensor) -> Any:
        return self._weighted("window_spread", weights, rows)

    def _weighted(self, name: str, weights: Tensor, rows: Tensor) -> Any:
        if rows.dtype != torch.float32:
            return NotImplemented
        (batch, n, channels), window = rows.shape, weights.shape[2]
        out = torch.empty_like(rows)
        self.call(name, weights, rows, batch, n, window, channels, out)
        return out
