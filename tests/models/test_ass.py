"""Adaptive Sparse Sampling: the published cells, any numbers, other axes, members."""

import pytest
import torch
from torch import Tensor

from models.samplers import SAMPLERS
from models.samplers.ass import adaptive_sparse_sample
from utils.errors import UserError


def cloud(batch: int = 2, num: int = 144, seed: int = 0) -> Tensor:
    return torch.randn(batch, num, 3, generator=torch.Generator().manual_seed(seed))


def test_the_published_cells() -> None:
    points = cloud()
    for sample, own in zip(adaptive_sparse_sample(points, 16)[0], points):
        expected = []
        for slab in own[own[:, 0].argsort()].split(36):
            expected += [cell.mean(dim=0) for cell in slab[slab[:, 1].argsort()].split(9)]
        torch.testing.assert_close(sample, torch.stack(expected))


@pytest.mark.parametrize("axes", ["xy", "variance", "all"])
@pytest.mark.parametrize("num, samples", [(144, 16), (100, 7), (65, 64), (30, 30), (5, 1), (1, 1), (50, 27)])
def test_any_numbers(axes, num: int, samples: int) -> None:
    points = cloud(3, num)
    found, index = adaptive_sparse_sample(points, samples, axes=axes, member=True)
    assert index is not None and found.shape == (3, samples, 3)
    assert torch.equal(found, torch.stack([own[i] for own, i in zip(points, index)]))
    assert all(len(set(row.tolist())) == samples for row in index)
    means, none = adaptive_sparse_sample(points, samples, axes=axes)
    assert none is None
    if num == samples:  # every point is a cell
        assert all(torch.equal(a[a[:, 0].argsort()], b[b[:, 0].argsort()]) for a, b in zip(means, points))
    sizes = [num * (i + 1) // samples - num * i // samples for i in range(samples)]
    weighted = (means * torch.tensor(sizes)[:, None]).sum(1) / num
    torch.testing.assert_close(weighted, points.mean(dim=1), atol=1e-5, rtol=1e-4)


def test_axes_of_largest_variance() -> None:
    points = cloud()
    stretched = points * torch.tensor([1.0, 10.0, 100.0])  # cut along z, then y
    expected = adaptive_sparse_sample(stretched.flip(2), 16)[0].flip(2)
    torch.testing.assert_close(adaptive_sparse_sample(stretched, 16, axes="variance")[0], expected)


def test_three_axes_cut_cubes() -> None:
    """27 cells of a cloud of 3 x 3 x 3 clusters are the clusters."""
    steps = torch.cartesian_prod(*[torch.arange(3.0)] * 3)
    points = (10 * steps[:, None] + torch.rand(27, 8, 3)).flatten(0, 1)[torch.randperm(216)][None]
    means = adaptive_sparse_sample(points, 27, axes="all")[0][0]
    assert (torch.cdist(10 * steps + 0.5, means).amin(dim=1) < 1).all()


@pytest.mark.parametrize("member", [False, True])
def test_order_of_points_is_of_no_account(member: bool) -> None:
    points, order = cloud(), torch.randperm(144)
    first, second = (adaptive_sparse_sample(each, 20, member=member)[0] for each in (points, points[:, order]))
    torch.testing.assert_close(first, second)


def test_gradients_reach_the_points() -> None:
    points = cloud().requires_grad_()
    adaptive_sparse_sample(points, 16)[0].sum().backward()
    assert points.grad is not None
    torch.testing.assert_close(points.grad, torch.full_like(points, 1 / 9))


def test_as_a_sampler() -> None:
    sampler = SAMPLERS.build({"name": "ass", "num_out": 16, "axes": "variance", "member": True})
    sampled = sampler(cloud())
    assert torch.equal(sampled.points, sampled.simplified) and sampled.indices.shape == (2, 16)
    assert sampled.losses == {} and float(sampled.loss) == 0
    assert SAMPLERS.build({"name": "ass"})(cloud()).indices is None


def test_too_many_samples() -> None:
    with pytest.raises(UserError, match="num_samples = 150 is more than the 144 points"):
        adaptive_sparse_sample(cloud(), 150)
    with pytest.raises(UserError, match="num_out 150 is more than the 144 points"):
        SAMPLERS.build({"name": "ass", "num_out": 150})(cloud())
