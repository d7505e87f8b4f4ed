"""Earth mover's distance: the plan's mass, the auction's bound, gradients, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from extensions.ops import approx_match, auction_match, chamfer_distance, earth_mover_distance, match_cost
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")


def cloud(seed: int, *shape: int, lattice: bool = False) -> Tensor:
    points = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    return (points * 3).round() / 3 if lattice else points


def exact(x: Tensor, y: Tensor, squared: bool) -> Tensor:
    """Smallest mean cost of a one to one assignment, per cloud."""
    cost = torch.cdist(x.double(), y.double()) ** (2 if squared else 1)
    return torch.stack([matrix[linear_sum_assignment(matrix)].mean() for matrix in cost])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 30), st.booleans(), st.booleans())
def test_auction_is_a_bijection_within_eps(seed: int, batch: int, n: int, squared: bool, lattice: bool) -> None:
    x, y = cloud(seed, batch, n, 3, lattice=lattice), cloud(seed + 1, batch, n, 3, lattice=lattice)
    for eps in (0.1, 1e-3):
        partner = auction_match(x, y, squared=squared, eps=eps)
        assert torch.equal(partner.sort(1).values, torch.arange(n).expand(batch, n))
        value = earth_mover_distance(x, y, method="auction", squared=squared, eps=eps, reduction="none")
        excess = value.double() - exact(x, y, squared)
        assert (excess > -1e-5).all() and (excess < eps + 1e-5).all()


def test_order_of_the_bounds() -> None:
    x, y = cloud(0, 2, 64, 3), cloud(1, 2, 64, 3)
    soft = earth_mover_distance(x, y, reduction="none")
    best = exact(x, y, squared=True)
    assert (soft >= best - 1e-5).all()
    assert (chamfer_distance(x, y, reduction="none")[0].mean(1) <= best + 1e-5).all()


@pytest.mark.parametrize(("n", "m"), [(16, 16), (40, 10), (10, 40), (25, 10), (1, 1), (1, 7), (7, 1)])
def test_plan_respects_the_capacities(n: int, m: int) -> None:
    plan = approx_match(cloud(0, 2, n, 3), cloud(1, 2, m, 3))
    assert plan.shape == (2, m, n) and (plan >= 0).all()
    give, room = max(1, m // n), max(1, n // m)
    assert (plan.sum(1) <= give + 1e-4).all() and (plan.sum(2) <= room + 1e-4).all()
    torch.testing.assert_close(plan.sum((1, 2)), torch.full((2,), float(min(n * give, m * room))), rtol=1e-4, atol=1e-4)


def test_nearly_equal_clouds_are_matched_exactly() -> None:
    x = cloud(0, 1, 48, 3)
    order = torch.randperm(48, generator=torch.Generator().manual_seed(0))
    y = x[:, order] + 1e-4
    assert torch.equal(approx_match(x, y).argmax(2)[0], order)
    assert torch.equal(auction_match(x, y, eps=1e-9)[0], order.argsort())


@pytest.mark.parametrize("squared", [True, False])
def test_gradients(squared: bool) -> None:
    x, y = cloud(0, 2, 6, 3).double().requires_grad_(), cloud(1, 2, 4, 3).double().requires_grad_()
    plan = approx_match(x, y)
    assert not plan.requires_grad
    assert torch.autograd.gradcheck(lambda a, b: match_cost(a, b, plan, squared=squared), (x, y))
    z = cloud(2, 2, 6, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda a, b: earth_mover_distance(a, b, method="auction", squared=squared), (x, z))


@pytest.mark.parametrize("method", ["approxmatch", "auction"])
def test_coincident_points_have_sound_gradients(method: str) -> None:
    x = cloud(0, 1, 8, 3).requires_grad_()
    earth_mover_distance(x, x.detach().clone(), method=method, squared=False).backward()  # type: ignore[arg-type]
    assert x.grad is not None and x.grad.isfinite().all()


@pytest.mark.parametrize("method", ["approxmatch", "auction"])
def test_layouts_precisions_and_broken_coordinates(method: str) -> None:
    x, y = cloud(0, 2, 9, 3).half(), cloud(1, 2, 9, 3).half()
    expected = earth_mover_distance(x.float(), y.float(), method=method)  # type: ignore[arg-type]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = earth_mover_distance(x.mT.contiguous().mT, y, method=method)  # type: ignore[arg-type]
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, expected)
    double = earth_mover_distance(x.double(), y.double(), method=method)  # type: ignore[arg-type]
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), expected, rtol=1e-4, atol=1e-6)
    assert earth_mover_distance(x[:0], y[:0], method=method, reduction="none").shape == (0,)  # type: ignore[arg-type]
    for bad in (torch.nan, torch.inf, 1e18):
        broken = x.float()
        broken[0, 3, 1] = bad
        value = earth_mover_distance(broken, y, method=method, reduction="none")  # type: ignore[arg-type]
        assert value.isfinite().tolist() == [bad == 1e18, True]


def test_refuses() -> None:
    x = torch.zeros(2, 5, 3)
    with pytest.raises(UserError, match="auction_match: x and y must have equally many points"):
        earth_mover_distance(x, x[:, :4], method="auction")
    with pytest.raises(UserError, match="auction_match: eps must be above 0, got 0"):
        auction_match(x, x, eps=0)
    with pytest.raises(UserError, match=r"earth_mover_distance: method must be one of .* got 'sinkhorn'"):
        earth_mover_distance(x, x, method="sinkhorn")  # type: ignore[arg-type]
    with pytest.raises(UserError, match="earth_mover_distance: reduction must be one of"):
        earth_mover_distance(x, x, reduction="sum")  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"match_cost: plan must be \(B, m, n\) \(2, 4, 5\), got \(2, 5, 4\)"):
        match_cost(x, x[:, :4], torch.zeros(2, 5, 4))
    with pytest.raises(UserError, match="approx_match: y has no points"):
        approx_match(x, x[:, :0])
