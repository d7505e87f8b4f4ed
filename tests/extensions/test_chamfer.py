"""Chamfer distance: values, reductions, padding, gradients, refusals."""

from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions.chamfer_dist.chamfer import Norm, Reduction
from extensions.ops import ChamferDistanceL1, ChamferDistanceL2, ChamferDistanceL2Split, chamfer_distance
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")

NORMS: tuple[Norm, ...] = get_args(Norm)


def cloud(seed: int, *shape: int, lattice: bool = False) -> Tensor:
    points = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return points.round() if lattice else points


def brute(x: Tensor, y: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Squared nearest distances both ways in float64."""
    matrix = ((x.double().numpy()[:, :, None] - y.double().numpy()[:, None]) ** 2).sum(3)
    return matrix.min(2), matrix.min(1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 20), st.integers(1, 20), st.booleans())
def test_equals_definition(seed: int, batch: int, n: int, m: int, lattice: bool) -> None:
    x, y = cloud(seed, batch, n, 3, lattice=lattice), cloud(seed + 1, batch, m, 3, lattice=lattice)
    one, two = brute(x, y)
    dist1, dist2 = chamfer_distance(x, y, reduction="none")
    np.testing.assert_allclose(dist1, one, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(dist2, two, rtol=1e-5, atol=1e-6)
    values = {"l2": one.mean(1) + two.mean(1), "l1": (one**0.5).mean(1) / 2 + (two**0.5).mean(1) / 2}
    for norm in NORMS:
        patch = chamfer_distance(x, y, reduction="patch", norm=norm)
        np.testing.assert_allclose(patch, values[norm], rtol=1e-5, atol=1e-6)
        mean = chamfer_distance(x, y, norm=norm)
        np.testing.assert_allclose(mean, values[norm].mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
def test_the_value_is_the_same_with_a_gradient_and_without(norm: Norm) -> None:
    x, y = cloud(0, 4, 33, 3), cloud(1, 4, 70, 3)
    for reduction in ("mean", "patch", "split"):
        with_gradient = chamfer_distance(x, y.requires_grad_(), reduction=reduction, norm=norm)
        with torch.no_grad():
            without = chamfer_distance(x, y, reduction=reduction, norm=norm)
        torch.testing.assert_close(without, with_gradient, rtol=1e-6, atol=0)


def test_modules() -> None:
    x, y = cloud(0, 2, 9, 3), cloud(1, 2, 7, 3)
    first, second = ChamferDistanceL2Split()(x, y)
    assert torch.allclose(first + second, ChamferDistanceL2()(x, y))
    assert torch.allclose(first, chamfer_distance(x, y, reduction="none")[0].mean())
    assert torch.equal(ChamferDistanceL1()(x, y), chamfer_distance(x, y, norm="l1"))
    assert torch.equal(ChamferDistanceL1(ignore_zeros=True)(x, y), chamfer_distance(x, y, norm="l1", ignore_zeros=True))


@pytest.mark.parametrize("ignore", [False, True])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("reduction", get_args(Reduction))
def test_gradients(norm: Norm, reduction: Any, ignore: bool) -> None:
    x, y = (cloud(seed, 2, 6, 3).double().requires_grad_() for seed in range(2))
    keep = (
        torch.tensor([6, 3])[:, None, None] > torch.arange(6)[:, None]
    )  # the second cloud has three points of padding

    def distance(x: Tensor, y: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return chamfer_distance(x * keep, y * keep, reduction=reduction, norm=norm, ignore_zeros=ignore)

    assert torch.autograd.gradcheck(distance, (x, y))


def test_coincident_points_have_gradient_zero() -> None:
    x = cloud(0, 1, 5, 3).requires_grad_()
    y = x.detach().clone().requires_grad_()
    chamfer_distance(x, y, norm="l1").backward()
    assert x.grad is not None and y.grad is not None
    assert (x.grad == 0).all() and (y.grad == 0).all()


@pytest.mark.parametrize("norm", NORMS)
def test_padding_equals_the_clouds_without_it(norm: Norm) -> None:
    x, y = cloud(0, 3, 8, 3), cloud(1, 3, 6, 3)
    sizes = [(8, 6), (5, 4), (1, 2)]
    for i, (n, m) in enumerate(sizes):
        x[i, n:], y[i, m:] = 0, 0
    x[0, 0] = torch.tensor([0.5, -0.25, -0.25])  # sums to zero, and is a point all the same
    alone = [chamfer_distance(x[i : i + 1, :n], y[i : i + 1, :m], norm=norm) for i, (n, m) in enumerate(sizes)]
    patch = chamfer_distance(x, y, norm=norm, reduction="patch", ignore_zeros=True)
    torch.testing.assert_close(patch, torch.stack(alone))
    dist1, dist2 = chamfer_distance(x, y, reduction="none", ignore_zeros=True)
    assert (dist1[1, 5:] == 0).all() and (dist2[2, 2:] == 0).all()
    summed = chamfer_distance(x[:1], y[:1], ignore_zeros="sum")
    torch.testing.assert_close(summed, chamfer_distance(x[:1, 1:], y[:1]))


def test_cloud_of_padding_alone_costs_nothing() -> None:
    x, y = cloud(0, 2, 4, 3).requires_grad_(), cloud(1, 2, 5, 3)
    y[0] = 0
    patch = chamfer_distance(x, y, reduction="patch", norm="l1", ignore_zeros=True)
    assert patch[0] == 0 and patch[1] > 0
    patch.sum().backward()
    assert x.grad is not None and x.grad.isfinite().all() and (x.grad[0] == 0).all()


def test_layouts_and_precisions() -> None:
    x, y = cloud(0, 2, 9, 3).half(), cloud(1, 2, 7, 3).half()
    expected = chamfer_distance(x.float(), y.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for a in (x, x.float().mT.contiguous().mT):
            value = chamfer_distance(a, y)
            assert value.dtype == torch.float32
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    assert chamfer_distance(x[:0], y[:0], reduction="patch").shape == (0,)
    torch.testing.assert_close(chamfer_distance(x[:, :1], x[:, :1]), torch.zeros(()))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_broken_coordinates_show_in_the_loss(bad: float) -> None:
    x, y = cloud(0, 1, 9, 3), cloud(1, 1, 7, 3)
    x[0, 4, 1] = bad
    for a, b in ((x, y), (y, x)):
        assert not chamfer_distance(a, b).isfinite()


def test_refuses() -> None:
    x = torch.zeros(2, 5, 3)
    with pytest.raises(
        UserError, match=r"chamfer_distance: x and y differ in batch or channels: \(2, 5, 3\) and \(1, 5, 3\)"
    ):
        chamfer_distance(x, x[:1])
    with pytest.raises(UserError, match="chamfer_distance: y has no points"):
        chamfer_distance(x, x[:, :0])
    with pytest.raises(UserError, match=r"chamfer_distance: reduction must be one of .* got 'total'"):
        chamfer_distance(x, x, reduction="total")  # type: ignore[call-overload]
    with pytest.raises(UserError, match=r"chamfer_distance: norm must be one of .* got 'l3'"):
        chamfer_distance(x, x, norm="l3")  # type: ignore[call-overload]
    with pytest.raises(UserError, match="chamfer_distance: x is on cpu but y is on meta"):
        chamfer_distance(x, x.to("meta"))
