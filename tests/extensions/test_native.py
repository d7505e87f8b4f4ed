"""Compiled kernels against the reference: indices to the bit, values to rounding, whatever the coordinates."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from extensions import library, ops, reference, selfcheck
from utils.errors import UserError

KINDS = ("normal", "lattice", "outlier", "one point", "tiny", "huge", "overflowing", "NaN", "infinite")


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if not library.kernels("cpu"):
        pytest.skip("no compiled operations here; `python -m extensions.build` says why")


def cloud(seed: int, batch: int, num: int, kind: str) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(batch, num, 3, generator=generator)
    scale = {"tiny": 1e-23, "huge": 1e19, "overflowing": 3e38}.get(kind, 1)
    some = torch.rand(batch, num, 3, generator=generator) < 0.05
    if kind == "lattice":
        return (points * 2).round() / 2
    if kind == "outlier":
        return torch.cat([points[:, 1:], points[:, :1] * 1e4], 1)
    if kind == "one point":
        return points[:, :1].repeat(1, num, 1)
    return points.masked_fill(some, {"NaN": torch.nan, "infinite": torch.inf}.get(kind, 1)) * scale


def same(name: str, *args: Any) -> None:
    """The kernel's result is the reference's, bit for bit (the index of a NaN distance is open)."""
    actual, expected = library.kernels("cpu")[name](*args), getattr(reference, name)(*args)
    if actual is NotImplemented:
        return
    pairs = [(actual, expected)] if isinstance(actual, Tensor) else list(zip(actual, expected))
    open_places = torch.tensor(False)
    if name == "knn":
        open_places = expected[0].isnan()
    for a, b in pairs:
        assert torch.equal(a.masked_fill(open_places, 0).nan_to_num(7), b.masked_fill(open_places, 0).nan_to_num(7)), (
            name
        )


def close(name: str, *args: Any) -> None:
    """The same to rounding, for sums."""
    actual, expected = library.kernels("cpu")[name](*args), getattr(reference, name)(*args)
    for a, b in zip(actual, expected):
        torch.testing.assert_close(a, b, rtol=2e-6 if a.is_floating_point() else 0, atol=0, equal_nan=True)


sizes = st.one_of(st.integers(1, 70), st.integers(1, 70), st.sampled_from([127, 128, 129, 300, 1030, 2050]))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 9999), sizes, sizes, st.sampled_from(KINDS), st.sampled_from(KINDS), st.data())
def test_equals_reference(seed: int, n: int, m: int, kind: str, other: str, data: st.DataObject) -> None:
    batch, k = data.draw(st.integers(0, 3)), data.draw(st.integers(1, min(n, 150)))
    x, y = cloud(seed, batch, n, kind), cloud(seed + 1, batch, m, other)
    same("farthest_point_sample", x, k, data.draw(st.integers(-1, n - 1)), data.draw(st.booleans()))
    same("knn", y, x, k)
    same("ball_query", y, x, data.draw(st.sampled_from([1e-30, 0.3, 1.0, 1e19])), k)
    same("three_nn", y, x)
    same("chamfer", x, y)
    close(
        data.draw(st.sampled_from(["chamfer_loss", "chamfer_means"])),
        x,
        y,
        data.draw(st.booleans()),
        data.draw(st.booleans()),
    )
    if kind not in ("NaN", "infinite", "overflowing"):
        same("group", x, k, k, False)


@pytest.mark.parametrize("kind", ["normal", "lattice", "outlier", "huge", "NaN", "infinite"])
def test_large_clouds_take_the_bucketed_paths(kind: str) -> None:
    x = cloud(0, 1, 8500, kind)
    same("farthest_point_sample", x, 600, 3, True)
    same("knn", x[:, :200], x, 16)
    same("chamfer", x[:, :1500], cloud(1, 1, 1100, "normal"))
    close("chamfer_means", x[:, :1500], cloud(1, 1, 1100, "normal"), False, False)


@pytest.mark.parametrize("value", [torch.nan, -torch.nan, torch.inf, -torch.inf, 1e30])
@pytest.mark.parametrize("n, num", [(100, 20), (2500, 260)])
def test_sampling_may_start_at_a_broken_point(n: int, num: int, value: float) -> None:
    x = cloud(0, 2, n, "normal")
    x[:, 3, 1], x[1, 10:40] = value, value
    for start in (3, -1):
        same("farthest_point_sample", x, num, start, False)


@pytest.mark.parametrize("name", library.SCHEMAS)
def test_selfcheck(name: str) -> None:
    assert selfcheck.agrees(name, "cpu")


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_change_nothing(threads: int) -> None:
    before, x, y = torch.get_num_threads(), cloud(0, 5, 300, "lattice"), cloud(1, 5, 200, "normal")
    try:
        torch.set_num_threads(threads)
        for batch in (1, 5):
            same("farthest_point_sample", x[:batch], 50, 0, False)
            same("knn", y[:batch], x[:batch], 9)
            same("ball_query", y[:batch], x[:batch], 0.5, 9)
            same("chamfer", x[:batch], y[:batch])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["chamfer", "chamfer_loss", "three_interpolate", "approx_match_cost"])
def test_gradients_equal_those_of_the_reference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    gradients = []
    for choice in ("torch", "native"):
        monkeypatch.setenv("POINT_OPS", choice)
        args = [
            a.clone().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor) else a
            for a in selfcheck.examples("cpu")[name]
        ]
        out = getattr(library.operators, name)(*args)
        total = sum(o.square().sum() for o in ((out,) if isinstance(out, Tensor) else out) if o.requires_grad)
        assert isinstance(total, Tensor)
        leaves = [a for a in args if isinstance(a, Tensor) and a.requires_grad]
        gradients.append(torch.autograd.grad(total, leaves))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("squared", [True, False])
@pytest.mark.parametrize(
    ("n", "m", "kind", "scale"),
    [
        (1, 1, "normal", 1.0),
        (1, 9, "normal", 1.0),
        (9, 1, "normal", 1.0),
        (300, 300, "normal", 1.0),
        (300, 300, "normal", 1e-3),
        (300, 300, "normal", 30.0),  # most pairs are too far apart for all rounds but the last
        (300, 300, "lattice", 1.0),
        (130, 700, "normal", 0.3),
        (700, 130, "normal", 3.0),
        (65, 64, "one point", 1.0),
        (40, 50, "normal", 1e15),
    ],
)
def test_approximate_matching(n: int, m: int, kind: str, scale: float, squared: bool) -> None:
    x, y = cloud(0, 3, n, kind) * scale, cloud(1, 3, m, "lattice" if kind == "lattice" else "normal") * scale
    actual = library.kernels("cpu")["approx_match_cost"](x, y, squared)
    cost, *gradients = reference.approx_match_cost(x.double(), y.double(), squared)
    torch.testing.assert_close(actual[0].double(), cost, rtol=1e-4, atol=0)
    for a, b in zip(actual[1:], gradients):
        # what is left of a point that gave nearly all is rounding: which way it goes is seen in few gradients
        assert (a - b).norm() <= 5e-4 * b.norm()
    for alone, a in zip(library.kernels("cpu")["approx_match_cost"](x[1:2], y[1:2], squared), actual):
        assert torch.equal(alone, a[1:2])


@pytest.mark.parametrize("kind", ["normal", "lattice", "NaN", "infinite", "overflowing"])
@pytest.mark.parametrize("n", [1, 7, 16, 17, 32, 33, 48, 64, 65, 700])
def test_chamfer_of_patches(n: int, kind: str) -> None:
    x = cloud(0, 3, n, kind)
    for m in (1, 5, 16, 31, 64, 600):
        y = cloud(1, 3, m, "normal")
        same("chamfer", x, y)
        same("chamfer", y, x)
        for name in ("chamfer_loss", "chamfer_means"):
            close(name, x, y, n % 2 == 0, m % 2 == 0)


@pytest.mark.parametrize("kind", ["normal", "lattice", "NaN", "infinite"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (7, 5), (32, 32), (90, 40), (600, 700)])
def test_gradients_of_the_loss(n: int, m: int, kind: str) -> None:
    x, y = cloud(0, 3, n, kind), cloud(1, 3, m, "lattice")
    nearest = reference.chamfer(x, y)[2:]
    for root in (False, True):
        for shape in ((3,), ()):
            args = torch.rand(shape), torch.rand(shape), x, y, *nearest, root
            expected = reference.chamfer_loss_backward(*args)
            for a, b in zip(library.kernels("cpu")["chamfer_loss_backward"](*args), expected):
                torch.testing.assert_close(a, b, rtol=2e-5, atol=1e-6, equal_nan=True)


def test_one_way_alone_has_a_gradient() -> None:
    x, y = cloud(0, 2, 9, "normal").requires_grad_(), cloud(1, 2, 7, "normal").requires_grad_()
    for way in range(2):
        distance = ops.chamfer_distance(x, y, reduction="none")[way]
        one = torch.autograd.grad(distance.mean(), (x, y))
        two = torch.autograd.grad(ops.chamfer_distance(x, y, reduction="split")[way], (x, y))
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize("norm", ["l2", "l1"])
@pytest.mark.parametrize("reduction", ["patch", "mean"])
def test_gradient_of_a_gradient(reduction: Any, norm: Any) -> None:
    x, y = cloud(0, 2, 5, "normal").double().requires_grad_(), cloud(1, 2, 4, "normal").double().requires_grad_()
    assert torch.autograd.gradgradcheck(lambda a, b: ops.chamfer_distance(a, b, reduction=reduction, norm=norm), (x, y))


@pytest.mark.parametrize("name", library.SCHEMAS)
def test_operator_contract(name: str) -> None:
    args = [
        a.clone().requires_grad_(a.is_floating_point() and name in library.DIFFERENTIABLE)
        if isinstance(a, Tensor)
        else a
        for a in selfcheck.examples("cpu")[name]
    ]
    operator = getattr(library.operators, name).default
    torch.library.opcheck(
        operator, tuple(args), test_utils=("test_schema", "test_faketensor", "test_aot_dispatch_dynamic")
    )


def test_exports() -> None:
    class Groups(torch.nn.Module):
        def forward(self, points: Tensor) -> Tensor:
            return ops.group(points, 8, 4)[0]

    points = cloud(0, 2, 40, "normal")
    program = torch.export.export(Groups(), (points,))
    assert torch.equal(program.module()(points), ops.group(points, 8, 4)[0])


def test_an_index_outside_is_refused_and_minus_one_counts_from_the_end() -> None:
    features, weights = torch.randn(1, 4, 2), torch.ones(1, 1, 3)
    indices = torch.tensor([[[0, -1, 3]]])
    expected = reference.three_interpolate(features, indices, weights)
    assert torch.equal(ops.three_interpolate(features, indices, weights), expected)
    with pytest.raises((IndexError, RuntimeError)):
        ops.three_interpolate(features, indices + 1, weights)


def test_a_wrong_choice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POINT_OPS", "fast")
    with pytest.raises(UserError, match="POINT_OPS must be one of"):
        ops.farthest_point_sample(torch.rand(1, 4, 3), 2)


@pytest.mark.parametrize("bad", [-8, 7])
def test_a_partner_outside_is_refused(bad: int) -> None:
    x, y = cloud(0, 2, 9, "normal"), cloud(1, 2, 7, "normal")
    _, _, idx1, idx2 = reference.chamfer(x, y)
    idx1[1, 3] = bad
    with pytest.raises((IndexError, RuntimeError)):
        library.operators.chamfer_backward(x[..., 0], y[..., 0], x, y, idx1, idx2)
    with pytest.raises((IndexError, RuntimeError)):
        library.operators.chamfer_loss_backward(torch.ones(()), torch.ones(()), x, y, idx1, idx2, True)
