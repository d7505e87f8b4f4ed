"""Clouds in their standard place: the definition, what has no radius, what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions.ops import normalize
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 70), st.floats(1e-3, 1e6), st.floats(-1e3, 1e3))
def test_equals_definition(seed: int, batch: int, num: int, size: float, shift: float) -> None:
    points = torch.randn(batch, num, 3, generator=torch.Generator().manual_seed(seed)) * size + shift
    exact = points.double() - points.double().mean(1, keepdim=True)
    radius = exact.norm(dim=2).amax(1)[:, None, None]
    lost = 1e-6 * points.abs().max() / radius  # what float32 does not know of the differences
    if num > 1 and lost.max() < 1e-2:
        assert ((normalize(points).double() - exact / radius).abs() <= 1e-5 + 4 * lost).all()


def test_mean_and_radius() -> None:
    for num in (2, 15, 16, 17, 1024):
        cloud = normalize(torch.rand(3, num, 3, generator=torch.Generator().manual_seed(num)) * 5 + 2)
        assert cloud.mean(1).abs().max() < 1e-6
        torch.testing.assert_close(cloud.norm(dim=2).amax(1), torch.ones(3), rtol=1e-6, atol=1e-6)


def test_no_radius() -> None:
    assert torch.equal(normalize(torch.full((2, 33, 3), 0.5)), torch.zeros(2, 33, 3))
    assert torch.equal(normalize(torch.rand(2, 1, 3)), torch.zeros(2, 1, 3))


def test_one_broken_cloud_leaves_the_others() -> None:
    points = torch.rand(2, 40, 3)
    points[0, 7, 1] = torch.nan
    normal = normalize(points)
    assert normal[0].isnan().all() and normal[1].isfinite().all()


def test_other_layouts_and_precision() -> None:
    points = torch.rand(2, 3, 50).transpose(1, 2)
    torch.testing.assert_close(normalize(points), normalize(points.contiguous()), rtol=0, atol=0)
    assert normalize(points.half()).dtype == torch.float32
    torch.testing.assert_close(normalize(points.double()).float(), normalize(points), rtol=1e-5, atol=1e-6)
    assert normalize(points[:0]).shape == (0, 50, 3)


def test_refusals() -> None:
    with pytest.raises(UserError, match=r"normalize: points must be \(B, N, 3\)"):
        normalize(torch.rand(2, 5, 4))
    with pytest.raises(UserError, match="normalize: points has no points"):
        normalize(torch.rand(2, 0, 3))
