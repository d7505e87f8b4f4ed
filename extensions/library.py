"""The operators `torch.ops.pointsmith.*`: their schemas, shapes and gradients, and who computes them.

The functions of `extensions.ops` check arguments and call these. An operator runs the kernel that its device offers
(`extensions.native`: C++ for the CPU; `extensions.cuda`), else the plain PyTorch of `extensions.reference`, which
defines every result. The environment variable POINT_OPS chooses: "auto" (default), "torch" (the reference alone),
"native" (an error if no kernels can be had for the device).

For kernels: tensors arrive contiguous, clouds as (B, N, C) of one floating dtype (float32 or float64), indices are
int64 in and out. A kernel that does not take a dtype or a number of channels returns NotImplemented, and the reference
runs instead. `extensions.cuda.register()` is called once, at the first call with CUDA tensors, and returns its kernels
by operator name; without a compiler or a device it logs one line and returns {}.
B clouds, N (n, m) points, M queries, C channels.
"""

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from extensions import reference
from utils.errors import UserError

SCHEMAS = {
    # start: an index, or -1 for the mean of the cloud acting as a choice before the first
    "farthest_point_sample": "(Tensor points, int num_samples, int start, bool skip_near_origin) -> Tensor",
    "knn": "(Tensor query, Tensor points, int k) -> (Tensor distances, Tensor indices)",
    "ball_query": "(Tensor query, Tensor points, float radius, int k) -> (Tensor indices, Tensor counts)",
    "group": "(Tensor points, int num_group, int group_size, bool skip_near_origin)"
    " -> (Tensor neighborhood, Tensor center, Tensor indices)",
    "three_nn": "(Tensor unknown, Tensor known) -> (Tensor distances, Tensor indices)",
    "three_interpolate": "(Tensor features, Tensor indices, Tensor weights) -> Tensor",
    "three_interpolate_backward": "(Tensor grad, Tensor features, Tensor indices, Tensor weights)"
    " -> (Tensor grad_features, Tensor grad_weights)",
    "chamfer": "(Tensor x, Tensor y) -> (Tensor dist1, Tensor dist2, Tensor idx1, Tensor idx2)",
    "chamfer_backward": "(Tensor grad1, Tensor grad2, Tensor x, Tensor y, Tensor idx1, Tensor idx2)"
    " -> (Tensor grad_x, Tensor grad_y)",
    # means of those distances, or of their roots: of each cloud (B,), or of the whole batch ()
    "chamfer_loss": "(Tensor x, Tensor y, bool root, bool whole)"
    " -> (Tensor mean1, Tensor mean2, Tensor idx1, Tensor idx2)",
    "chamfer_loss_backward": "(Tensor grad1, Tensor grad2, Tensor x, Tensor y, Tensor idx1, Tensor idx2, bool root)"
    " -> (Tensor grad_x, Tensor grad_y)",
    # the same where no gradient is asked for: without indices it takes half the time
    "chamfer_means": "(Tensor x, Tensor y, bool root, bool whole) -> (Tensor mean1, Tensor mean2)",
    # cost (B,) of the approxmatch plan, and its gradients with the plan held constant
    "approx_match_cost": "(Tensor x, Tensor y, bool squared) -> (Tensor cost, Tensor grad_x, Tensor grad_y)",
    "auction": "(Tensor x, Tensor y, bool squared, float eps) -> Tensor",
    "normalize": "(Tensor points) -> Tensor",
    "sort_order": "(Tensor keys) -> Tensor",
    "window_scores": "(Tensor rows, Tensor keys, int window) -> Tensor",
    "window_mix": "(Tensor weights, Tensor values) -> Tensor",
    "window_spread": "(Tensor weights, Tensor rows) -> Tensor",
}
WINDOWS = ("window_scores", "window_mix", "window_spread")
DIFFERENTIABLE = ("chamfer", "chamfer_loss", "three_interpolate", "approx_match_cost", *WINDOWS)
CHOICES = ("auto", "torch", "native")


def choice() -> str:
    """What POINT_OPS asks for."""
    value = os.environ.get("POINT_OPS", "auto")
    if value not in CHOICES:
        raise UserError(f"POINT_OPS must be one of {CHOICES}, got {value!r}")
    return value


@functools.cache
def kernels(device_type: str) -> Mapping[str, Any]:
    """The kernels by operator name for a type of device, none if there are none; compiles at the first call. Those for
    the CPU have "features" too, see `extensions.features`."""
    module = {"cpu": "extensions.native", "cuda": "extensions.cuda"}.get(device_type)
    if module is None or importlib.util.find_spec(module) is None:
        return {}
    return importlib.import_module(module).register()


def status() -> dict[str, str]:
    """For a report: the choice, and for each device what computes the operations."""
    report = {"POINT_OPS": choice()}
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        count = sum(name in kernels(device) for name in SCHEMAS)
        report[device] = f"compiled ({count} of {len(SCHEMAS)} operations)" if count else "plain PyTorch"
    return report


def _run(name: str, *inputs: Any) -> Any:
    wanted = choice()
    args = [arg.contiguous() if isinstance(arg, Tensor) else arg for arg in inputs]
    if wanted != "torch":
        found = kernels(args[0].device.type)
        if wanted == "native" and not found:
            raise UserError(
                f"POINT_OPS=native: no compiled operations for {args[0].device.type}; "
                f"`python -m extensions.build` says why"
            )
        if name in found:
            result = found[name](*args)
            if result is not NotImplemented:
                return result
    return getattr(reference, name)(*args)


def _indices(like: Tensor, *shape: int) -> Tensor:
    return like.new_empty(shape, dtype=torch.int64)


SHAPES: dict[str, Callable[..., Any]] = {
    "farthest_point_sample": lambda points, num, start, skip: _indices(points, points.shape[0], num),
    "knn": lambda query, points, k: (query.new_empty(*query.shape[:2], k), _indices(query, *query.shape[:2], k)),
    "ball_query": lambda query, points, radius, k: (
        _indices(query, *query.shape[:2], k),
        _indices(query, *query.shape[:2]),
    ),
    "group": lambda points, num, size, skip: (
        points.new_empty(points.shape[0], num, size, 3),
        points.new_empty(points.shape[0], num, 3),
        _indices(points, points.shape[0], num, size),
    ),
    "three_nn": lambda unknown, known: (torch.empty_like(unknown), torch.empty_like(unknown, dtype=torch.int64)),
    "three_interpolate": lambda features, indices, weights: features.new_empty(*indices.shape[:2], features.shape[2]),
    "three_interpolate_backward": lambda grad, features, indices, weights: (
        torch.empty_like(features),
        torch.empty_like(weights),
    ),
    "chamfer": lambda x, y: (
        x.new_empty(x.shape[:2]),
        y.new_empty(y.shape[:2]),
        _indices(x, *x.shape[:2]),
        _indices(y, *y.shape[:2]),
    ),
    "chamfer_loss": lambda x, y, root, whole: (
        *SHAPES["chamfer_means"](x, y, root, whole),
        _indices(x, *x.shape[:2]),
        _indices(y, *y.shape[:2]),
    ),
    "chamfer_means": lambda x, y, root, whole: (
        x.new_empty(() if whole else x.shape[0]),
        y.new_empty(() if whole else y.shape[0]),
    ),
    "chamfer_loss_backward": lambda grad1, grad2, x, y, idx1, idx2, root: (torch.empty_like(x), torch.empty_like(y)),
    "chamfer_backward": lambda grad1, grad2, x, y, idx1, idx2: (torch.empty_like(x), torch.empty_like(y)),
    "approx_match_cost": lambda x, y, squared: (x.new_empty(x.shape[0]), torch.empty_like(x), torch.empty_like(y)),
    "auction": lambda x, y, squared, eps: _indices(x, *x.shape[:2]),
    "normalize": torch.empty_like,
    "sort_order": lambda keys: _indices(keys, *keys.shape),
    "window_scores": lambda rows, keys, window: rows.new_empty(*rows.shape[:2], window),
    "window_mix": lambda weights, values: torch.empty_like(values),
    "window_spread": lambda weights, rows: torch.empty_like(rows),
}

_library = torch.library.Library("pointsmith", "DEF")
operators = torch.ops.pointsmith
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema)
    _library.impl(_name, functools.partial(_run, _name), "CompositeExplicitAutograd")
    torch.library.register_fake(f"pointsmith::{_name}", SHAPES[_name], lib=_library)
    if _name not in DIFFERENTIABLE:
        _library.impl(_name, torch.library.fallthrough_kernel, "Autograd")


def _save_chamfer(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:2], *output[2:])
    ctx.mark_non_differentiable(*output[2:])
    ctx.set_materialize_grads(False)  # else indices get gradients of zeros
    ctx.options, ctx.shapes = inputs[2:], [one_way.shape for one_way in output[:2]]


def _chamfer_grads(ctx: Any, grads: tuple[Tensor | None, ...]) -> list[Tensor]:
    """Gradients of both ways, zeros for one that is not used."""
    like = ctx.saved_tensors[0]
    return [like.new_zeros(shape) if grad is None else grad for shape, grad in zip(ctx.shapes, grads)]


def _chamfer_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor, Tensor]:
    # asked for a graph of the gradient, compute it by differentiable steps
    backward = reference.chamfer_backward if torch.is_grad_enabled() else operators.chamfer_backward
    return backward(*_chamfer_grads(ctx, grads), *ctx.saved_tensors)


def _loss_backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
    backward = (reference if torch.is_grad_enabled() else operators).chamfer_loss_backward
    return *backward(*_chamfer_grads(ctx, grads), *ctx.saved_tensors, ctx.options[0]), None, None


def _save_interpolate(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _interpolate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, Tensor]:
    name = "three_interpolate_backward"
    backward = getattr(reference if torch.is_grad_enabled() else operators, name)
    grad_features, grad_weights = backward(grad, *ctx.saved_tensors)
    return grad_features, None, grad_weights


def _save_cost(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*output[1:])
    ctx.mark_non_differentiable(*output[1:])


@torch.autograd.function.once_differentiable
def _cost_backward(ctx: Any, grad: Tensor, *_: None) -> tuple[Tensor, Tensor, None]:
    grad_x, grad_y = ctx.saved_tensors
    return grad[:, None, None] * grad_x, grad[:, None, None] * grad_y, None


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:2])


def _scores_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (rows, keys), (of_rows, of_keys, _) = ctx.saved_tensors, ctx.needs_input_grad
    grad_rows = operators.window_mix(grad, keys) if of_rows else None
    return grad_rows, operators.window_spread(grad, rows) if of_keys else None, None


def _mix_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (weights, values), (of_weights, of_values) = ctx.saved_tensors, ctx.needs_input_grad
    grad_weights = operators.window_scores(grad, values, weights.shape[2]) if of_weights else None
    return grad_weights, operators.window_spread(weights, grad) if of_values else None


def _spread_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    (weights, rows), (of_weights, of_rows) = ctx.saved_tensors, ctx.needs_input_grad
    grad_weights = operators.window_scores(rows, grad, weights.shape[2]) if of_weights else None
    return grad_weights, operators.window_mix(weights, grad) if of_rows else None


for _name, _backward, _save in (
    ("window_scores", _scores_backward, _save_inputs),
    ("window_mix", _mix_backward, _save_inputs),
    ("window_spread", _spread_backward, _save_inputs),
    ("chamfer", _chamfer_backward, _save_chamfer),
    ("chamfer_loss", _loss_backward, _save_chamfer),
    ("three_interpolate", _interpolate_backward, _save_interpolate),
    ("approx_match_cost", _cost_backward, _save_cost),
):
    torch.library.register_autograd(f"pointsmith::{_name}", _backward, setup_context=_save, lib=_library)
