"""The approximate matching of H. Fan, H. Su and L. Guibas (2017) between clouds of any two sizes.

Mass flows from x to y in ten rounds, first only to very near points, at last to any. The plan is soft and dearer than
the best one (by 10 to 25 % for distances, up to twice for squared distances), and equals it for nearly equal clouds.
B clouds, n points of x, m points of y.
"""

from typing import Any

import torch
from torch import Tensor

from extensions.pointops.check import check_clouds, check_not_empty, check_same_device
from extensions.pointops.reference import pair_distances
from utils.errors import UserError

LEVELS = (*(4.0**power for power in range(7, -2, -1)), 0.0)
TINY = 1e-9


@torch.no_grad()
def approx_match(x: Tensor, y: Tensor) -> Tensor:
    """The plan (B, m, n): how much of every x (B, n, 3) goes to every y (B, m, 3). Not differentiable.

    A point of x has max(1, m // n) to give, a point of y room for max(1, n // m): whole numbers, so that with sizes
    that do not divide each other some mass is left over. Memory is a few times that of the plan.
    """
    x, y = check_clouds("approx_match", x=x, y=y)
    check_not_empty("approx_match", x=x, y=y)
    n, m = x.shape[1], y.shape[1]
    left, right = x.new_full(x.shape[:2], max(1, m // n)), y.new_full(y.shape[:2], max(1, n // m))
    squared = pair_distances(y, x)  # (B, m, n)
    plan = torch.zeros_like(squared)
    for level in LEVELS:
        kernel = torch.exp(squared * -level)
        share = left / ((kernel * right[:, :, None]).sum(1) + TINY)  # (B, n)
        flow = kernel.mul_(share[:, None])  # what x offers for a unit of room
        offered = flow.sum(2) * right  # (B, m)
        accepted = (right / (offered + TINY)).clamp_max(1)
        plan += flow.mul_((right * accepted)[:, :, None])
        left = (left - flow.sum(1)).clamp_min(0)
        # what is left of room that was fully taken decides the next round: a difference would round it away
        right = torch.where(accepted < 1, right * TINY / (offered + TINY), right - offered)
    return plan


def match_cost(x: Tensor, y: Tensor, plan: Tensor, *, squared: bool = True) -> Tensor:
    """Sum of plan (B, m, n) times squared distance, or distance, for every cloud: (B,), not divided by anything.

    Gradients reach x and y, the plan is a constant; a distance of zero has gradient zero.
    """
    x, y = check_clouds("match_cost", x=x, y=y)
    if plan.shape != (x.shape[0], y.shape[1], x.shape[1]):
        raise UserError(
            f"match_cost: plan must be (B, m, n) {(x.shape[0], y.shape[1], x.shape[1])}, got {tuple(plan.shape)}"
        )
    check_same_device("match_cost", "x", x, "plan", plan)
    return _MatchCost.apply(x, y, plan.detach().to(x.dtype), squared)


class _MatchCost(torch.autograd.Function):
    """Keeps the plan alone for the backward pass, not the distances and differences of all pairs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, plan: Tensor, squared: bool) -> Tensor:
        ctx.save_for_backward(x, y, plan)
        ctx.squared = squared
        distance = pair_distances(y, x)
        return (plan * (distance if squared else distance.sqrt())).sum((1, 2))

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        x, y, plan = ctx.saved_tensors
        weight = 2 * plan if ctx.squared else plan / pair_distances(y, x).sqrt().clamp_min(1e-10)
        weight = weight * grad[:, None, None]
        grad_x, grad_y = torch.empty_like(x), torch.empty_like(y)
        for channel in range(x.shape[2]):
            pull = weight * (x[:, None, :, channel] - y[:, :, None, channel])  # (B, m, n)
            grad_x[..., channel] = pull.sum(1)
            grad_y[..., channel] = -pull.sum(2)
        return grad_x, grad_y, None, None
