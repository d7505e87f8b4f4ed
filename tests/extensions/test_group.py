"""Gathering and grouping: values, gradients, any index shape, refusals."""

import pytest
import torch

from extensions.ops import farthest_point_sample, gather_points, group, group_points, knn
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")


def cloud(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("shape", [(2, 4), (2, 0), (2, 4, 3), (2, 1, 3, 2)])
def test_gather_takes_any_shape_of_indices(shape: tuple[int, ...]) -> None:
    points = cloud(2, 7, 5)
    indices = torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(0))
    out = gather_points(points, indices)
    assert out.shape == (*shape, 5)
    for b in range(2):
        assert torch.equal(out[b], points[b][indices[b]])


def test_gather_keeps_dtype_and_layout_does_not_matter() -> None:
    indices = torch.tensor([[1, 1, 0]])
    for dtype in (torch.bfloat16, torch.float64, torch.int64):
        points = (cloud(1, 3, 2) * 9).to(dtype)
        assert gather_points(points, indices).dtype == dtype
        assert torch.equal(gather_points(points.mT.contiguous().mT, indices), points[:, [1, 1, 0]])
    assert gather_points(cloud(1, 3, 2)[:0], indices[:0]).shape == (0, 3, 2)


def test_gather_gradient_adds_up_repeated_indices() -> None:
    points = cloud(1, 3, 2).requires_grad_()
    gather_points(points, torch.tensor([[1, 1, 0]])).sum().backward()
    assert points.grad is not None and points.grad.tolist() == [[[1, 1], [2, 2], [0, 0]]]


def test_gather_refuses_an_index_outside_instead_of_reading_the_next_cloud() -> None:
    with pytest.raises((IndexError, RuntimeError)):
        gather_points(cloud(2, 7, 3), torch.full((2, 1), 7))


def test_group_is_its_three_steps() -> None:
    points = cloud(2, 60, 3)
    for skip in (False, True):
        neighborhood, center, indices = group(points, 8, 5, skip_near_origin=skip)
        chosen = farthest_point_sample(points, 8, skip_near_origin=skip)
        assert torch.equal(center, gather_points(points, chosen))
        assert torch.equal(indices, knn(center, points, 5)[1]) and torch.equal(indices[..., 0], chosen)
        assert torch.equal(neighborhood, group_points(points, indices) - center[:, :, None])
        assert (neighborhood[:, :, 0] == 0).all()


def test_group_gradient_and_precision() -> None:
    points = cloud(2, 12, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda p: group(p, 3, 4)[:2], (points,))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        neighborhood, center, _ = group(cloud(1, 9, 3).half(), 9, 9)
    assert neighborhood.dtype == center.dtype == torch.float32
    assert group(cloud(1, 1, 3), 1, 1)[2].tolist() == [[[0]]]
    assert group(cloud(1, 4, 3)[:0], 2, 3)[0].shape == (0, 2, 3, 3)


def test_refuses() -> None:
    points, indices = cloud(2, 7, 3), torch.zeros(2, 4, 3, dtype=torch.int64)
    with pytest.raises(UserError, match=r"gather_points: indices must be an int64 tensor, got torch.int32"):
        gather_points(points, indices.int())
    with pytest.raises(UserError, match=r"gather_points: indices must be \(B, ...\) .* got \(1, 4, 3\)"):
        gather_points(points, indices[:1])
    with pytest.raises(UserError, match=r"gather_points: points must be \(B, N, C\), got \(7, 3\)"):
        gather_points(points[0], indices)
    with pytest.raises(UserError, match="gather_points: points is on cpu but indices is on meta"):
        gather_points(points, indices.to("meta"))
    with pytest.raises(UserError, match=r"group_points: center must be \(B, G, C\)"):
        group_points(points, indices, points)
    with pytest.raises(UserError, match="group_points: points is on cpu but center is on meta"):
        group_points(points, indices, points[:, :4].to("meta"))
    with pytest.raises(UserError, match="group: num_group = 8 is more than the 7 points"):
        group(points, 8, 2)
    with pytest.raises(UserError, match="group: group_size = 9 is more than the 7 points"):
        group(points, 2, 9)
