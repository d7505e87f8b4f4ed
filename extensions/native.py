"""The C++ kernels of `extensions/csrc` for the CPU: float32, three channels. `build` compiles them at first use."""

import ctypes
import logging
from collections.abc import Callable, Mapping
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
    "chamfer_loss": "ppiiiiippppi",
    "chamfer_means": "ppiiiiippi",
    "chamfer_backward": "ppppppiiippi",
    "chamfer_loss_backward": "ppppppiiiiippi",
    "approx_match_cost": "ppiiiipppi",
    "auction": "ppiiidpi",
    "normalize": "piipi",
    "sort_order": "piipi",
    "window_scores": "ppiiiipi",
    "window_mix": "ppiiiipi",
    "window_spread": "ppiiiipi",
}
# passes over features: see `extensions.features`
FEATURES = {
    "norm_statistics": "ppiiiippi",
    "norm_relu": "ppiiiipppppi",
    "norm_relu_backward": "pppiiiippppppppi",
    "group_max": "piiiippi",
    "group_max_backward": "ppiiiipi",
    "lift": "piiippppi",
    "lift_sums": "ppiiippppi",
}
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float, "d": ctypes.c_double}
NO_KERNEL = 1  # what a C function returns if it leaves the work to the reference


def register() -> dict[str, Any]:
    """The kernels by operator name; none, and one line in the log that says why, if they cannot be compiled."""
    try:
        library = ctypes.CDLL(str(build.library()))
    except (build.BuildError, OSError) as error:
        logging.getLogger("pointsmith.extensions").warning(
            "point operations run in plain PyTorch, many times slower than compiled: %s", error
        )
        return {}
    return Kernels(library).table() | {"features": FeatureKernels(library)}


class Functions:
    """The C functions of a table of signatures: takes tensors as pointers, adds the number of threads."""

    def __init__(self, library: ctypes.CDLL, signatures: Mapping[str, str]) -> None:
        self.functions = {}
        for name, signature in signatures.items():
            function = getattr(library, f"pointsmith_{name}")
            function.argtypes = [TYPES[letter] for letter in signature]
            function.restype = ctypes.c_int64
            self.functions[name] = function

    def call(self, name: str, *args: Any) -> int:
        plain = [arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args]
        return self.functions[name](*plain, torch.get_num_threads())


class Kernels(Functions):
    """Python side of the point operations: allocates the results."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library, SIGNATURES)

    def table(self) -> dict[str, Callable[..., Any]]:
        return {name: getattr(self, name) for name in SIGNATURES}

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

    def chamfer_loss(self, x: Tensor, y: Tensor, root: bool, whole: bool) -> Any:
        indices = [cloud.new_empty(cloud.shape[:2], dtype=torch.int64) for cloud in (x, y)]
        return self._means("chamfer_loss", x, y, root, whole, *indices)

    def chamfer_means(self, x: Tensor, y: Tensor, root: bool, whole: bool) -> Any:
        return self._means("chamfer_means", x, y, root, whole)

    def _means(self, name: str, x: Tensor, y: Tensor, root: bool, whole: bool, *indices: Tensor) -> Any:
        if x.dtype != torch.float32:
            return NotImplemented
        (batch, n, _), m = x.shape, y.shape[1]
        shape = () if whole else (batch,)
        out = x.new_empty(shape), x.new_empty(shape), *indices
        self.call(name, x, y, batch, n, m, root, whole, *out)
        return out

    def chamfer_backward(self, *inputs: Tensor) -> Any:
        x, y = inputs[2:4]
        if x.dtype != torch.float32:
            return NotImplemented
        gradients = torch.empty_like(x), torch.empty_like(y)
        status = self.call("chamfer_backward", *inputs, x.shape[0], x.shape[1], y.shape[1], *gradients)
        return NotImplemented if status == NO_KERNEL else gradients

    def chamfer_loss_backward(self, *inputs: Any) -> Any:
        *tensors, root = inputs
        grad1, _, x, y, _, _ = tensors
        if x.dtype != torch.float32:
            return NotImplemented
        gradients, whole = (torch.empty_like(x), torch.empty_like(y)), grad1.ndim == 0
        (batch, n, _), m = x.shape, y.shape[1]
        status = self.call("chamfer_loss_backward", *tensors, batch, n, m, root, whole, *gradients)
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


class FeatureKernels(Functions):
    """Python side of the passes over features, float32 or bfloat16, contiguous; rows and channels as in the C code."""

    def __init__(self, library: ctypes.CDLL) -> None:
        super().__init__(library, FEATURES)

    def norm_statistics(self, x: Tensor, shared: Tensor | None, size: int) -> tuple[Tensor, Tensor]:
        mean, variance = (torch.empty(x.shape[1]) for _ in range(2))
        self.call("norm_statistics", x, shared, len(x), size, x.shape[1], _half(x), mean, variance)
        return mean, variance

    def norm_relu(self, x: Tensor, shared: Tensor | None, size: int, *affine: Tensor) -> Tensor:
        y = torch.empty_like(x)
        self.call("norm_relu", x, shared, len(x), size, x.shape[1], _half(x), *affine, y)
        return y

    def norm_relu_backward(
        self, grad: Tensor, x: Tensor, shared: Tensor | None, size: int, *affine: Tensor, into: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """into: memory for the gradient of x, which may be that of grad."""
        grad_x = torch.empty_like(x) if into is None else into
        grad_shared = None if shared is None else torch.empty_like(shared)
        gradients = grad_x, grad_shared, torch.empty(x.shape[1]), torch.empty(x.shape[1])
        self.call("norm_relu_backward", grad, x, shared, len(x), size, x.shape[1], _half(x), *affine, *gradients)
        return gradients

    def group_max(self, x: Tensor) -> tuple[Tensor, Tensor]:
        patches, size, channels = x.shape
        y, index = x.new_empty(patches, channels), torch.empty(patches, channels, dtype=torch.int32)
        self.call("group_max", x, patches, size, channels, _half(x), y, index)
        return y, index

    def group_max_backward(self, grad: Tensor, index: Tensor, size: int) -> Tensor:
        grad_x = grad.new_empty(len(grad), size, grad.shape[1])
        self.call("group_max_backward", grad, index, len(grad), size, grad.shape[1], _half(grad), grad_x)
        return grad_x

    def lift(self, points: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype) -> Tensor:
        y = points.new_empty(len(points), len(weight), dtype=dtype)
        self.call("lift", points, len(points), len(weight), _half(y), weight, scale, shift, y)
        return y

    def lift_sums(self, grad: Tensor, points: Tensor, weight: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
        sums = torch.empty(4, len(weight), dtype=torch.float64)
        self.call("lift_sums", grad, points, len(points), len(weight), _half(grad), weight, scale, shift, sums)
        return sums


def _half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16
