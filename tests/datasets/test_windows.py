"""Windows of clouds: which points are read is a function of seed, epoch and cloud, whatever was read before."""

import numpy as np
import pytest
import torch

from datasets.base import PointClouds
from datasets.loader import Loader
from datasets.windows import Windows

CPU = torch.device("cpu")


def windows(num_points: int, sizes=(5, 9, 1)) -> Windows:
    return Windows(np.arange(sum(sizes)), np.cumsum([0, *sizes]), num_points)


@pytest.mark.parametrize("num_points", [1, 4, 5, 9, 23])
def test_windows_go_round(num_points):
    sizes, first = (5, 9, 1), (0, 5, 14)
    draws = np.array([0.99, 0.5, 0.3])
    taken = windows(num_points, sizes).take(np.array([0, 1, 2]), draws)
    for row, (size, begin, draw) in enumerate(zip(sizes, first, draws)):
        assert taken[row].tolist() == [begin + (int(draw * size) + i) % size for i in range(num_points)]
    assert windows(num_points)[1].tolist() == [5 + i % 9 for i in range(num_points)]


def clouds(count: int = 24, points: int = 64, window: int = 16) -> PointClouds:
    flat = np.random.default_rng(0).normal(size=(count * points, 3)).astype(np.float32)
    seg = np.arange(count * points)
    offsets = np.arange(count + 1) * points
    parts = Windows(seg, offsets, window)
    return PointClouds(Windows(flat, offsets, window), np.zeros(count, int), ["a"], name="w", split="train", seg=parts)


def seen(loader: Loader, epoch: int, skip: int = 0) -> list[list[int]]:
    return [batch["seg"].flatten().tolist() for batch in loader.epoch(epoch, skip)]


@pytest.mark.parametrize("resident", [False, True])
def test_a_run_continues_with_the_same_points(resident):
    loader = Loader(clouds(), 4, CPU, train=True, seed=3, resident=resident)
    first, second = seen(loader, 0), seen(loader, 1)
    fresh = Loader(clouds(), 4, CPU, train=True, seed=3, resident=resident)
    assert seen(fresh, 1, skip=2) == second[2:] and seen(fresh, 0) == first
    assert {tuple(sorted(batch)) for batch in first}.isdisjoint(tuple(sorted(batch)) for batch in second)
    assert seen(loader, 0) == seen(Loader(clouds(), 4, CPU, train=True, seed=3, resident=not resident), 0)
    assert seen(loader, 0) != seen(Loader(clouds(), 4, CPU, train=True, seed=4), 0)


def test_points_and_labels_of_a_window_belong_together():
    data = clouds()
    for batch in Loader(data, 4, CPU, train=True).epoch(2):
        assert torch.equal(batch["points"], torch.from_numpy(data.points.flat)[batch["seg"]])


def test_evaluation_reads_the_first_points():
    data = clouds()
    batch = next(Loader(data, 24, CPU).epoch(5))
    assert torch.equal(batch["seg"], torch.arange(24)[:, None] * 64 + torch.arange(16))


def test_every_point_comes_up():
    loader = Loader(clouds(count=4), 4, CPU, train=True)
    assert len({point for epoch in range(60) for batch in seen(loader, epoch) for point in batch}) == 4 * 64
