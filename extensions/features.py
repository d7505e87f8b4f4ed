"""Passes over features that PointNets make on the CPU, fused: fewer trips to memory, less kept for backward.

    x = lift_norm_relu(points, linear, norm, dtype)   relu(norm(linear(points))), points (rows, 3)
    y = norm_relu(x, norm)                            relu(norm(x))
    y = norm_relu_linear(x, norm, linear, shared)     linear(relu(norm(x + shared of the patch)))
    m = group_max(y)                                  maximum over K of (..., K, C)

The kernels of `extensions/csrc/features.cpp` serve training on a CPU in float32 and bfloat16. `fits` says whether they
apply; where they do not (CUDA, float64, evaluation, a compiler that traces, POINT_OPS=torch) plain modules run, which
are the definition. Sums over rows are kept in double, so batch statistics are nearer to the exact ones than PyTorch's.
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from extensions import library

TYPES = (torch.float32, torch.bfloat16)


def kernels(x: Tensor) -> Any:
    """The compiled passes for a tensor of this device and dtype, or None."""
    if x.device.type != "cpu" or x.dtype not in TYPES or torch.compiler.is_compiling() or library.choice() == "torch":
        return None
    return library.kernels("cpu").get("features")


def fits(norm: nn.Module, x: Tensor) -> TypeGuard[nn.BatchNorm1d]:
    """Whether the fused passes replace this norm: training, plain BatchNorm, and nothing watches the module."""
    return (
        type(norm) is nn.BatchNorm1d
        and norm.training
        and norm.affine
        and norm.track_running_stats
        and norm.momentum is not None
        and norm.weight.dtype == torch.float32
        and not (norm._forward_hooks or norm._forward_pre_hooks)
        and len(x) > 1
        and kernels(x) is not None
    )


def norm_relu(x: Tensor, norm: nn.BatchNorm1d) -> Tensor:
    """relu(norm(x)) of (rows, C), where `fits` allows."""
    y, mean, variance = _NormRelu.apply(x.contiguous(), None, norm.weight, norm.bias, norm.eps, 1)
    track(norm, mean, variance, len(x))
    return y


def plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether this layer computes as nn.Linear does, and nothing watches it."""
    hooks = linear._forward_hooks or linear._forward_pre_hooks
    return isinstance(linear, nn.Linear) and type(linear).forward is nn.Linear.forward and not hooks


def norm_relu_linear(x: Tensor, norm: nn.BatchNorm1d, linear: nn.Linear, shared: Tensor | None = None) -> Tensor:
    """linear(relu(norm(x))) of (rows, C) or, with `shared` (patches, C), of (patches, K, C) plus what a patch shares;
    where norm `fits` and linear is `plain`. Returns (rows, D), in the dtype of x. What goes into the linear layer is
    not kept but made again for backward, in memory that its gradient then takes."""
    size = 1 if shared is None else x.shape[1]
    x = x.flatten(0, -2).contiguous()
    shared = None if shared is None else shared.to(x.dtype).contiguous()
    weight, bias = linear.weight.to(x.dtype), None if linear.bias is None else linear.bias.to(x.dtype)
    out, mean, variance = _NormReluLinear.apply(x, shared, size, norm.weight, norm.bias, norm.eps, weight, bias)
    track(norm, mean, variance, len(x))
    return out


def lift_norm_relu(points: Tensor, linear: nn.Linear, norm: nn.BatchNorm1d, dtype: torch.dtype) -> Tensor:
    """relu(norm(linear(points))) of coordinates (rows, 3) that need no gradient, given in `dtype`, one of TYPES:
    (rows, C)."""
    y, mean, variance = _Lift.apply(points, linear.weight, linear.bias, norm.weight, norm.bias, norm.eps, dtype)
    track(norm, mean, variance, len(y))
    return y


def group_max(x: Tensor) -> Tensor:
    """(..., K, C) -> (..., C). Where a gradient is wanted, the index of the maximum is kept for it."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return x.amax(dim=-2)
    if kernels(x) is None:
        return x.max(dim=-2).values
    return _GroupMax.apply(x.flatten(0, -3)).unflatten(0, x.shape[:-2])


@torch.no_grad()
def track(norm: nn.BatchNorm1d, mean: Tensor, variance: Tensor, rows: int) -> None:
    """The running statistics, as BatchNorm moves them."""
    assert norm.running_mean is not None and norm.running_var is not None and norm.num_batches_tracked is not None
    assert norm.momentum is not None
    norm.num_batches_tracked += 1
    norm.running_mean.lerp_(mean, norm.momentum)
    norm.running_var.lerp_(variance * (rows / (rows - 1)), norm.momentum)


class _NormRelu(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shared, weight, bias, eps, size):
        found = kernels(x)
        mean, variance = found.norm_statistics(x, shared, size)
        inverse = torch.rsqrt(variance + eps)
        y = found.norm_relu(x, shared, size, weight, bias, mean, inverse)
        ctx.save_for_backward(x, shared, weight, bias, mean, inverse)
        ctx.size = size
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx, grad, *_):
        x, shared, weight, bias, mean, inverse = ctx.saved_tensors
        found = kernels(x)
        arguments = (grad.contiguous(), x, shared, ctx.size, weight, bias, mean, inverse)
        grad_x, grad_shared, grad_weight, grad_bias = found.norm_relu_backward(*arguments)
        return grad_x, grad_shared, grad_weight, grad_bias, None, None


class _NormReluLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, shared, size, norm_weight, norm_bias, eps, weight, bias):
        found = kernels(x)
        mean, variance = found.norm_statistics(x, shared, size)
        affine = norm_weight, norm_bias, mean, torch.rsqrt(variance + eps)
        ctx.save_for_backward(x, shared, weight, *affine)
        ctx.size, ctx.has_bias = size, bias is not None
        ctx.mark_non_differentiable(mean, variance)
        return F.linear(found.norm_relu(x, shared, size, *affine), weight, bias), mean, variance

    @staticmethod
    def backward(ctx, grad, *_):
        x, shared, weight, *affine = ctx.saved_tensors
        found = kernels(x)
        y = found.norm_relu(x, shared, ctx.size, *affine)
        grad_weight = grad.T @ y if ctx.needs_input_grad[6] else None
        grad_bias = grad.sum(0) if ctx.has_bias else None
        grad_y = torch.mm(grad, weight, out=y)
        grad_x, grad_shared, *grad_affine = found.norm_relu_backward(grad_y, x, shared, ctx.size, *affine, into=grad_y)
        return grad_x, grad_shared, None, *grad_affine, None, grad_weight, grad_bias


class _Lift(torch.autograd.Function):
    """The statistics follow from mean and covariance of the coordinates, the gradients from four sums a channel."""

    @staticmethod
    def forward(ctx, points, linear, offset, weight, bias, eps, dtype):
        points = points.contiguous()
        exact = points.double()
        center = exact.mean(0)
        spread = exact - center
        covariance = spread.T @ spread / len(points)
        wide = linear.double()
        mean = wide @ center + offset.double()
        variance = ((wide @ covariance) * wide).sum(1)
        inverse = torch.rsqrt(variance + eps)
        scale = weight.double() * inverse
        shift = bias.double() + (offset.double() - mean) * scale
        y = kernels(points).lift(points, linear, scale.float(), shift.float(), dtype)
        ctx.save_for_backward(points, linear, weight, center, covariance, inverse, scale, shift)
        mean, variance = mean.float(), variance.float()
        ctx.mark_non_differentiable(mean, variance)
        return y, mean, variance

    @staticmethod
    def backward(ctx, grad, *_):
        points, linear, weight, center, covariance, inverse, scale, shift = ctx.saved_tensors
        sums = kernels(points).lift_sums(grad.contiguous(), points, linear, scale.float(), shift.float())
        total, moments = sums[0], sums[1:].T - sums[0][:, None] * center  # (C,), (C, 3): against centred coordinates
        wide = linear.double()
        along = (moments * wide).sum(1) * inverse  # sum of gradient times normalised value
        spread = covariance * len(points)  # of the normalised value against centred coordinates: (wide @ spread) / sd
        grad_linear = scale[:, None] * (moments - (along * inverse / len(points))[:, None] * (wide @ spread))
        grads = grad_linear, torch.zeros_like(total), along, total
        return None, *(g.to(weight.dtype) for g in grads), None, None


class _GroupMax(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        y, index = kernels(x).group_max(x.contiguous())
        ctx.save_for_backward(index)
        ctx.size = x.shape[1]
        return y

    @staticmethod
    def backward(ctx, grad):
        (index,) = ctx.saved_tensors
        return kernels(grad).group_max_backward(grad.contiguous(), index, ctx.size)
