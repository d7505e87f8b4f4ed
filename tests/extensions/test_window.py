"""Attention in windows: against the formula, at the ends, gradients of every order, wrong shapes."""

import pytest
import torch
from torch import Tensor

from extensions import ops
from extensions.library import operators
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")
SIZES = [(1, 1), (2, 1), (3, 3), (9, 9), (10, 9), (40, 9), (12, 4), (7, 5)]


def index(n: int, window: int) -> Tensor:
    """(n, w): which rows a row sees."""
    start = (torch.arange(n) - (window - 1) // 2).clamp(0, n - window)
    return start[:, None] + torch.arange(window)


@pytest.mark.parametrize("n, window", SIZES)
def test_equals_the_gathered_form(n: int, window: int) -> None:
    rows, keys, weights = torch.randn(2, n, 21), torch.randn(2, n, 21), torch.rand(2, n, window)
    seen = index(n, window)
    torch.testing.assert_close(ops.window_scores(rows, keys, window), (rows[:, :, None] * keys[:, seen]).sum(3))
    torch.testing.assert_close(ops.window_mix(weights, rows), (weights[..., None] * rows[:, seen]).sum(2))
    spread = torch.zeros(2, n, 21)
    spread.index_add_(1, seen.flatten(), (weights[..., None] * rows[:, :, None]).flatten(1, 2))
    torch.testing.assert_close(operators.window_spread(weights, rows), spread)


@pytest.mark.parametrize("n, window", [(3, 3), (8, 5), (6, 4)])
def test_gradients_of_both_orders(n: int, window: int) -> None:
    rows, keys = torch.randn(2, 2, n, 3, dtype=torch.float64).requires_grad_().unbind(0)
    weights = torch.rand(2, n, window, dtype=torch.float64).requires_grad_()
    for call, inputs in (
        (lambda a, b: ops.window_scores(a, b, window), (rows, keys)),
        (ops.window_mix, (weights, keys)),
        (operators.window_spread, (weights, keys)),
    ):
        assert torch.autograd.gradcheck(call, inputs)
        assert torch.autograd.gradgradcheck(call, inputs)


def test_half_precision_is_computed_in_single() -> None:
    rows = torch.randn(1, 12, 4)
    scores = ops.window_scores(rows.bfloat16(), rows.bfloat16(), 3)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, ops.window_scores(rows, rows, 3), rtol=0.02, atol=0.02)


def test_wrong_arguments() -> None:
    rows = torch.randn(1, 4, 2)
    with pytest.raises(UserError, match="window = 5 is more than the 4 points"):
        ops.window_scores(rows, rows, 5)
    with pytest.raises(UserError, match="differ in clouds or rows"):
        ops.window_scores(rows, rows[:, :3], 3)
    with pytest.raises(UserError, match="differ in clouds or rows"):
        ops.window_mix(torch.rand(1, 3, 3), rows)
