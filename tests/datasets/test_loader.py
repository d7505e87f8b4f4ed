"""Batches: a function of seed and epoch, shared by processes, continued anywhere."""

from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
import torch

from datasets.base import PointClouds
from datasets.loader import Loader
from utils.errors import UserError

CPU = torch.device("cpu")


def clouds(count: int) -> PointClouds:
    points = np.arange(count, dtype=np.float32)[:, None, None] * np.ones((1, 4, 3), np.float32)
    return PointClouds(points, np.zeros(count), ["a"], name="some", split="train")


def loader(count: int, batch_size: int, rank: int = 0, world: int = 1, **options) -> Loader:
    made = Loader(clouds(count), batch_size, CPU, **options)
    made.rank, made.world = rank, world
    return made


def order(made: Loader, *args, **kwargs) -> list[list[int]]:
    return [batch["index"].tolist() for batch in made.epoch(*args, **kwargs)]


@pytest.mark.parametrize("resident", [False, True])
def test_order_is_a_function_of_seed_and_epoch(resident):
    made = loader(23, 4, train=True, seed=1, resident=resident)
    assert order(made, 3) == order(made, 3) == order(loader(23, 4, train=True, seed=1), 3)
    assert order(made, 3) != order(made, 4) and order(made, 3) != order(loader(23, 4, train=True, seed=2), 3)
    assert len(made) == 5 and len(set(chain(*order(made)))) == 20  # the incomplete batch is left out
    batch = next(iter(made.epoch()))
    assert batch["points"][:, 0, 0].tolist() == batch["index"].tolist()


@pytest.mark.parametrize("skip", [0, 1, 4, 5])
def test_skipping_is_continuing(skip):
    made = loader(23, 4, train=True)
    assert order(made, 2, skip=skip) == order(made, 2)[skip:]


@pytest.mark.parametrize("world", [2, 4])
def test_processes_share_every_batch(world):
    whole = order(loader(40, 8, train=True), 1)
    parts = [order(loader(40, 8, rank, world, train=True), 1) for rank in range(world)]
    assert [list(chain(*batches)) for batches in zip(*parts)] == whole
    assert {len(batch) for part in parts for batch in part} == {8 // world}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 8, 9])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_evaluation_reads_everything_once(count, world):
    """Also with fewer clouds than processes: some get nothing."""
    parts = [list(chain(*order(loader(count, 4, rank, world)))) for rank in range(world)]
    assert sorted(chain(*parts)) == list(range(count))


def test_batches_that_cannot_be(monkeypatch):
    monkeypatch.setattr("utils.dist.world_size", lambda: 2)
    for count, size, words in [(40, 5, "shared by 2 processes"), (40, 2, "at least 2 clouds"), (3, 4, "the 3 clouds")]:
        with pytest.raises(UserError, match=words):
            loader(count, size, train=True)
    with pytest.raises(UserError, match=r"data\.eval_batch_size: 0"):
        loader(4, 0)


def test_a_bad_cloud_names_itself():
    data = clouds(10)
    data.points[7, 2] = np.nan
    with pytest.raises(UserError, match="cloud 7 holds NaN"):
        list(Loader(data, 4, CPU).epoch())


def test_an_abandoned_epoch_ends():
    batches = loader(100, 4, train=True).epoch()
    next(batches)
    batches.close()  # type: ignore[attr-defined]
