"""Random numbers that do not depend on the number of processes."""

from __future__ import annotations

import torch

from utils.random import BatchRandom, global_rng_state, seed_everything, set_global_rng_state


def test_processes_draw_their_rows_of_one_batch():
    whole = BatchRandom(3, rank=0, world=1)
    parts = [BatchRandom(3, rank=rank, world=4) for rank in range(4)]
    for draw in (
        lambda r, b: r.uniform(b, 5),
        lambda r, b: r.normal(b, 2, 3),
        lambda r, b: r.uniform(b, low=-2, high=9),
    ):
        assert torch.equal(torch.cat([draw(part, 3) for part in parts]), draw(whole, 12))
    order = whole.permutation(9)
    assert all(torch.equal(part.permutation(9), order) for part in parts)


def test_the_state_continues():
    rng = BatchRandom(1, rank=0, world=1)
    rng.uniform(7)
    state = rng.state()
    numbers = rng.normal(4, 2)
    other = BatchRandom(99, rank=0, world=1)
    other.set_state(state)
    assert torch.equal(other.normal(4, 2), numbers)


def test_bounds():
    numbers = BatchRandom(0, rank=0, world=1).uniform(1000, low=-0.5, high=0.25)
    assert numbers.min() >= -0.5 and numbers.max() < 0.25 and numbers.min() < -0.45 and numbers.max() > 0.2


def test_global_generators():
    seed_everything(5, rank=1)
    state = global_rng_state()
    numbers = torch.rand(3)
    set_global_rng_state(state)
    assert torch.equal(torch.rand(3), numbers)
    seed_everything(5, rank=2)
    assert not torch.equal(torch.rand(3), numbers)
