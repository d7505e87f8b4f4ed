"""Nearest neighbours and ball query: order, ties, gradients, blocks, refusals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from extensions.ops import ball_query, ball_query_count, knn
from extensions.reference import points as reference
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")


def random_points(seed: int, shape: tuple[int, ...], lattice: bool) -> torch.Tensor:
    points = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return points.round() if lattice else points


def brute_distances(query: torch.Tensor, points: torch.Tensor) -> np.ndarray:
    """Squared distances in the tensors' own precision, added channel by channel."""
    a, b = query.numpy()[:, :, None], points.numpy()[:, None]
    total = np.zeros(np.broadcast_shapes(a.shape, b.shape)[:3], a.dtype)
    for channel in range(a.shape[3]):
        total += (a[..., channel] - b[..., channel]) ** 2
    return total


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 999), st.integers(1, 3), st.integers(0, 9), st.integers(1, 30), st.booleans(), st.data())
def test_knn_equals_stable_sort(seed: int, batch: int, m: int, n: int, lattice: bool, data: st.DataObject) -> None:
    k, channels = data.draw(st.integers(1, n)), data.draw(st.sampled_from([1, 3, 7]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64]))
    query = random_points(seed, (batch, m, channels), lattice).to(dtype)
    points = random_points(seed + 1, (batch, n, channels), lattice).to(dtype)
    expected = brute_distances(query, points)
    order = expected.argsort(2, kind="stable")[..., :k]
    distances, indices = knn(query, points, k)
    assert distances.dtype == dtype and indices.dtype == torch.int64
    np.testing.assert_array_equal(indices.numpy(), order)
    np.testing.assert_array_equal(distances.numpy(), np.take_along_axis(expected, order, 2))


def test_ties_at_the_last_place_take_the_lowest_indices() -> None:
    distances, indices = knn(torch.zeros(1, 1, 3), torch.eye(3).repeat(1, 200, 1), 5)  # 600 points at distance 1
    assert indices.tolist() == [[[0, 1, 2, 3, 4]]] and distances.tolist() == [[[1.0] * 5]]


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    query, points = random_points(0, (5, 17, 3), True), random_points(1, (5, 23, 3), True)
    whole = (*knn(query, points, 4), ball_query(query, points, 1.5, 4), *reference.nearest(query, points))
    for block in (1, 50, 500, 1000):
        monkeypatch.setattr(reference, "BLOCK", block)
        parts = (*knn(query, points, 4), ball_query(query, points, 1.5, 4), *reference.nearest(query, points))
        assert all(torch.equal(a, b) for a, b in zip(whole, parts))


def test_distances_are_differentiable() -> None:
    query, points = (random_points(i, (2, 6, 3), False).double().requires_grad_() for i in range(2))
    assert torch.autograd.gradcheck(lambda q, p: knn(q, p, 3)[0], (query, points))
    assert not knn(query, points, 3)[1].requires_grad
    with torch.no_grad():
        assert not knn(query, points, 3)[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_nan_comes_last(dtype: torch.dtype) -> None:
    points = torch.zeros(1, 4, 3, dtype=dtype)
    points[0, 1, 0], points[0, 2, 0] = torch.nan, 9
    points[0, 3, 0] = torch.inf
    distances, indices = knn(points[:, :1], points, 4)
    assert indices.tolist() == [[[0, 2, 3, 1]]] and distances[0, 0, 3].isnan()
    assert knn(points[:, 3:], points, 4)[1].sort().values.tolist() == [[[0, 1, 2, 3]]]  # inf - inf: a NaN with a sign
    assert knn(points[:, 1:2], points, 4)[1].sort().values.tolist() == [[[0, 1, 2, 3]]]


def test_layouts_and_precisions() -> None:
    points = random_points(5, (2, 40, 3), False).half().float()
    expected = knn(points, points, 40)  # k = N
    assert (expected[1][..., 0] == torch.arange(40)).all() and (expected[0][..., 0] == 0).all()
    turned = points.mT.contiguous().mT
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for query in (turned, points.half()):
            distances, indices = knn(query, turned, 40)
            assert distances.dtype == torch.float32
            assert torch.equal(distances, expected[0]) and torch.equal(indices, expected[1])
    assert knn(points, points.double(), 2)[0].dtype == torch.float64
    assert knn(points[:0], points[:0], 2)[1].shape == (0, 40, 2)
    assert knn(points[:, :0], points, 2)[1].shape == (2, 0, 2)
    assert knn(points[:, :1], points[:, :1], 1)[1].tolist() == [[[0]], [[0]]]


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 999), st.integers(1, 25), st.integers(1, 30), st.sampled_from([0.5, 1.0, 1.5, 9.0]))
def test_ball_query_equals_scan(seed: int, n: int, k: int, radius: float) -> None:
    query, points = random_points(seed, (2, 5, 3), True), random_points(seed + 1, (2, n, 3), True)
    indices, count = ball_query_count(query, points, radius, k)
    for row, found, distances in zip(
        indices.view(-1, k), count.view(-1), brute_distances(query, points).reshape(-1, n)
    ):
        hits = [i for i in range(n) if distances[i] < radius * radius][:k]
        assert found == len(hits)
        assert row.tolist() == (hits + hits[:1] * k)[:k] if hits else [0] * k


def test_refuses() -> None:
    cloud = torch.zeros(2, 5, 3)
    with pytest.raises(UserError, match="knn: k = 6 is more than the 5 points there are"):
        knn(cloud, cloud, 6)
    with pytest.raises(UserError, match="knn: k must be at least 1, got -1"):
        knn(cloud, cloud, -1)
    with pytest.raises(
        UserError, match=r"knn: query and points differ in batch or channels: \(2, 5, 3\) and \(1, 5, 3\)"
    ):
        knn(cloud, cloud[:1], 2)
    with pytest.raises(UserError, match="knn: query and points differ in batch or channels"):
        knn(cloud, cloud[..., :2], 2)
    with pytest.raises(UserError, match=r"knn: query must be \(B, N, C\), got \(2, 5, 0\)"):
        knn(cloud[..., :0], cloud[..., :0], 2)
    with pytest.raises(UserError, match="knn: query is on cpu but points is on meta"):
        knn(cloud, cloud.to("meta"), 2)
    with pytest.raises(UserError, match="ball_query: radius must be above 0, got 0"):
        ball_query(cloud, cloud, 0, 2)
    with pytest.raises(UserError, match="ball_query: points has no points"):
        ball_query(cloud, cloud[:, :0], 1, 2)
    with pytest.raises(UserError, match="ball_query: k must be at least 1"):
        ball_query(cloud, cloud, 1, 0)
