"""Learning rates over a run."""

import math
from itertools import pairwise

import pytest

from tools import SCHEDULERS
from tools.schedule import Constant, Cosine, Decay, Milestones, Step, progress
from utils.errors import UserError

BASE, EPOCHS = 1e-3, 100


@pytest.mark.parametrize("name", SCHEDULERS.names())
@pytest.mark.parametrize("epochs", [1, 10, 100])
def test_every_rate_is_positive_and_at_most_the_base(name: str, epochs: int) -> None:
    schedule = SCHEDULERS.build({"name": name})
    rates = [schedule(BASE, epochs * i / 50, epochs) for i in range(51)]
    assert all(0 < rate <= BASE for rate in rates)


@pytest.mark.parametrize("shifted", [False, True])
def test_cosine_meets_its_corners(shifted: bool) -> None:
    cosine = Cosine(warmup_epochs=10, min_lr=1e-5, warmup_lr=1e-6, shifted=shifted)
    assert cosine(BASE, 0, EPOCHS) == 1e-6
    assert cosine(BASE, 5, EPOCHS) == pytest.approx((1e-6 + BASE) / 2)
    assert cosine(BASE, 10 - 1e-9, EPOCHS) == pytest.approx(BASE)
    assert cosine(BASE, EPOCHS - 1e-6, EPOCHS) == pytest.approx(1e-5)
    assert cosine(BASE, EPOCHS, EPOCHS) == cosine(BASE, EPOCHS + 7, EPOCHS) == 1e-5


def test_where_the_cosine_starts() -> None:
    after, from_start = Cosine(10, min_lr=0.0, shifted=True), Cosine(10, min_lr=0.0)
    assert after(BASE, 10, EPOCHS) == BASE
    assert after(BASE, 55, EPOCHS) == pytest.approx(BASE / 2)
    assert from_start(BASE, 10, EPOCHS) == pytest.approx(BASE * (1 + math.cos(math.pi / 10)) / 2)
    assert from_start(BASE, 50, EPOCHS) == pytest.approx(BASE / 2)


def test_a_period_longer_than_the_run() -> None:
    """Point-M2AE as published: a cosine of 400 epochs, of which 300 are run, one epoch late."""
    cosine = Cosine(10, period=400)
    rates = [cosine(BASE, progress(epoch, 0, 1, point_mae=True), 300) for epoch in (1, 2, 11, 50, 100, 200, 300)]
    assert rates == pytest.approx([1e-6, 1.009e-4, 9.985e-4, 9.635e-4, 8.565e-4, 5.044e-4, 1.501e-4], rel=1e-3)
    with pytest.raises(UserError, match="within the warm-up"):
        Cosine(10, period=10)


@pytest.mark.parametrize("shifted", [False, True])
def test_cosine_falls_after_the_warm_up(shifted: bool) -> None:
    cosine = Cosine(10, shifted=shifted)
    rates = [cosine(BASE, epoch / 4, EPOCHS) for epoch in range(40, 401)]
    assert all(later < earlier for earlier, later in pairwise(rates))


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("warmup, epochs", [(0, 5), (5, 5), (10, 5)])
def test_warm_up_of_any_length(shifted: bool, warmup: int, epochs: int) -> None:
    cosine = Cosine(warmup, shifted=shifted)
    rates = [cosine(BASE, epoch / 2, epochs) for epoch in range(2 * epochs + 1)]
    assert all(1e-6 <= rate <= BASE for rate in rates)
    assert rates[0] == (BASE if warmup == 0 else 1e-6)


def test_step() -> None:
    step = Step(step_epochs=30, gamma=0.1)
    assert [step(BASE, epoch, EPOCHS) for epoch in (0, 29.9)] == [BASE, BASE]
    assert step(BASE, 30, EPOCHS) == pytest.approx(1e-4) and step(BASE, 65, EPOCHS) == pytest.approx(1e-5)


def test_step_has_a_floor() -> None:
    step = Step(step_epochs=20, gamma=0.5, lowest=0.01)
    assert step(1e-3, 45, 200) == pytest.approx(2.5e-4) and step(1e-3, 199, 200) == pytest.approx(1e-5)


def test_milestones() -> None:
    milestones = Milestones([0.6, 0.8])
    rates = [milestones(BASE, epoch, 100) for epoch in (0, 59.9, 60, 79, 80, 99)]
    assert rates == pytest.approx([BASE, BASE, BASE / 10, BASE / 10, BASE / 100, BASE / 100])
    with pytest.raises(UserError, match="share of training"):
        Milestones([120])


def test_decay() -> None:
    decay = Decay(decay=0.5, decay_epochs=10, lowest=0.1)
    assert decay(BASE, 10, EPOCHS) == pytest.approx(BASE / 2)
    assert decay(BASE, 15, EPOCHS) == pytest.approx(BASE * 0.5**1.5)
    assert decay(BASE, 90, EPOCHS) == pytest.approx(BASE / 10)


def test_constant() -> None:
    assert Constant()(BASE, 3, EPOCHS) == BASE


def test_progress() -> None:
    assert progress(3, 5, 20) == 3.25
    assert [progress(epoch, 5, 20, point_mae=True) for epoch in range(4)] == [0, 0, 1, 2]
