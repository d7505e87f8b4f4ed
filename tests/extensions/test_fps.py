"""Farthest point sampling: the definition, its ties, its two habits, and what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from extensions.ops import farthest_point_sample
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")


def brute(points: NDArray[np.float32], num_samples: int, start: int = 0, skip: bool = False) -> list[int]:
    """The definition for one cloud, in float32 and one step at a time."""
    closest = np.full(len(points), 1e10, points.dtype)
    square = points * points
    closest[((square[:, 0] + square[:, 1]) + square[:, 2] <= 1e-3) & skip] = -1
    chosen = [start]
    while len(chosen) < num_samples:
        d = points - points[chosen[-1]]
        closest = np.minimum(closest, (d[:, 0] ** 2 + d[:, 1] ** 2) + d[:, 2] ** 2)
        chosen.append(int(closest.argmax()))
    return chosen


def random_points(seed: int, shape: tuple[int, ...], lattice: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(shape, generator=generator)
    return (points * 2).round() / 2 if lattice else points  # a lattice has ties, duplicates and the origin


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(1, 40), st.booleans(), st.booleans(), st.data())
def test_equals_definition(seed: int, batch: int, num: int, lattice: bool, skip: bool, data: st.DataObject) -> None:
    points = random_points(seed, (batch, num, 3), lattice)
    samples, start = data.draw(st.integers(1, num)), data.draw(st.integers(0, num - 1))
    indices = farthest_point_sample(points, samples, start=start, skip_near_origin=skip)
    assert indices.dtype == torch.int64 and indices.shape == (batch, samples)
    assert indices.tolist() == [brute(cloud, samples, start, skip) for cloud in points.numpy()]


@pytest.mark.parametrize("near_origin", [False, True])
@pytest.mark.parametrize(("num", "samples"), [(8200, 600), (2048, 256), (2050, 2050)])  # 8200: buckets not all full
def test_large_clouds_equal_the_definition(num: int, samples: int, near_origin: bool) -> None:
    points = random_points(0, (1, num, 3), lattice=True)
    if near_origin:  # nothing is left to choose
        points *= 1e-3
    indices = farthest_point_sample(points, samples, skip_near_origin=near_origin)
    assert indices[0].tolist() == brute(points[0].numpy(), samples, skip=near_origin)


def test_large_broken_clouds_from_their_mean() -> None:
    points = random_points(1, (2, 2100, 3), lattice=False)
    points[:, 5, 1], points[:, 700, 0], points[:, 2099, 2] = torch.nan, torch.inf, -torch.inf
    indices = farthest_point_sample(points, 2097)
    assert [sorted(row) for row in indices.tolist()] == [sorted({*range(2100)} - {5, 700, 2099})] * 2
    whole = points.nan_to_num(0, 0, 0)
    mean = whole.mean(1, keepdim=True)
    for row, cloud in zip(farthest_point_sample(whole, 300, start="mean"), torch.cat([mean, whole], 1), strict=True):
        assert row.tolist() == [index - 1 for index in brute(cloud.numpy(), 301)[1:]]


def test_mean_start_repels_and_does_not_depend_on_order() -> None:
    points = random_points(0, (1, 200, 3), lattice=False) + 5
    mean = points.mean(1, keepdim=True)
    expected = torch.tensor([brute(torch.cat([mean, points], 1)[0].numpy(), 21)]) - 1  # the mean as point 0
    indices = farthest_point_sample(points, 20, start="mean")
    assert torch.equal(indices, expected[:, 1:])
    order = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    assert torch.equal(order[farthest_point_sample(points[:, order], 20, start="mean")], indices)


def test_distinct_points_run_out() -> None:
    points = torch.eye(3).repeat(1, 3, 1)
    assert farthest_point_sample(points, 9).tolist() == [[0, 1, 2, 0, 0, 0, 0, 0, 0]]
    near = points * 0.01
    assert farthest_point_sample(near, 3, skip_near_origin=True).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("start", [0, 2, "mean"])
def test_broken_points_are_never_chosen(start: int | str) -> None:
    points = random_points(3, (1, 30, 3), lattice=False)
    points[0, 5, 1], points[0, 7, 0], points[0, 9, 2] = torch.nan, torch.inf, -torch.inf
    indices = farthest_point_sample(points, 27, start=start)
    assert not set(indices[0].tolist()) & {5, 7, 9} and len(set(indices[0].tolist())) == 27
    assert farthest_point_sample(torch.full((2, 4, 3), torch.nan), 4).tolist() == [[0] * 4] * 2


def test_layouts_and_precisions() -> None:
    points = random_points(4, (2, 50, 3), lattice=False).half().float()  # the same numbers in every precision
    expected = farthest_point_sample(points, 20)
    assert torch.equal(farthest_point_sample(points.mT.contiguous().mT, 20), expected)
    assert torch.equal(farthest_point_sample(points.double(), 20), expected)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(farthest_point_sample(points.half().requires_grad_(), 20), expected)
    assert farthest_point_sample(points[:0], 5).shape == (0, 5)
    assert farthest_point_sample(points[:, :1], 1).tolist() == [[0], [0]]


@pytest.mark.parametrize(
    ("points", "samples", "start", "message"),
    [
        (torch.zeros(5, 3), 2, 0, r"points must be \(B, N, 3\), got \(5, 3\)"),
        (torch.zeros(1, 5, 2), 2, 0, r"got \(1, 5, 2\)"),
        (torch.zeros(1, 5, 3, dtype=torch.int64), 2, 0, "floating point"),
        (np.zeros((1, 5, 3)), 2, 0, "floating point tensor, got ndarray"),
        (torch.zeros(1, 5, 3), 6, 0, "num_samples = 6 is more than the 5 points"),
        (torch.zeros(1, 5, 3), 0, 0, "num_samples must be at least 1"),
        (torch.zeros(1, 5, 3), 2.5, 0, "whole number, got 2.5"),
        (torch.zeros(1, 5, 3), 2, 5, "start must be"),
        (torch.zeros(1, 5, 3), 2, -1, "start must be"),
        (torch.zeros(1, 5, 3), 2, "median", "start must be"),
    ],
)
def test_refuses(points: torch.Tensor, samples: int, start: int | str, message: str) -> None:
    with pytest.raises(UserError, match=f"farthest_point_sample: .*{message}"):
        farthest_point_sample(points, samples, start=start)
