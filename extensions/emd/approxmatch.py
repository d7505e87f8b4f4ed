"""The approximate matching of H. Fan, H. Su and L. Guibas (2017) between clouds of any two sizes.

Mass flows from x to y in ten rounds, first only to very near points, at last to any. The plan is soft and dearer than
the best one (by 10 to 25 % for distances, up to twice for squared distances), and equals it for nearly equal clouds.
B clouds, n points of x, m points of y.
"""

from typing import Any

import torch
from torch import Tensor

from extensions import reference
from extensions.pointops.check import check_clouds, check_not_empty, check_same_device
from utils.errors import UserError


@torch.no_grad()
def approx_match(x: Tensor, y: Tensor) -> Tensor:
    """The plan (B, m, n): how much of every x (B, n, 3) goes to every y (B, m, 3). Not differentiable.

    A point of x has max(1, m // n) to give, a point of y room for max(1, n // m): whole numbers, so that with sizes
    that do not divide each other some mass is left over. Memory is a few times that of the plan.
    """
    x, y = check_clouds("approx_match", x=x, y=y)
    check_not_empty("approx_match", x=x, y=y)
    return reference.approx_match(x, y)


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
    """Keeps the gradients alone for the backward pass, not the distances and differences of all pairs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, y: Tensor, plan: Tensor, squared: bool) -> Tensor:
        cost, *gradients = reference.match_cost_gradients(x, y, plan, squared)
        ctx.save_for_backward(*gradients)
        return cost

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        grad_x, grad_y = ctx.saved_tensors
        return grad[:, None, None] * grad_x, grad[:, None, None] * grad_y, None, None
