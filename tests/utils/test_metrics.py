"""Means and confusion matrices."""

from __future__ import annotations

import math

import pytest
import torch

from utils.metrics import Confusion, Mean


def test_mean_and_its_state():
    mean = Mean()
    assert mean.compute() == mean.reduced() == {}
    for value in (1.0, 2.0):
        mean.add({"loss": torch.tensor(value, requires_grad=True)})
    copy = Mean()
    copy.set_state(mean.state())
    mean.add({"loss": torch.tensor(6.0)})
    copy.add({"loss": torch.tensor(6.0)})
    assert mean.compute() == mean.reduced() == copy.compute() == {"loss": 3.0}


def test_many_small_numbers_do_not_get_lost():
    mean = Mean()
    mean.add({"x": torch.tensor(1e8)})
    for _ in range(99):
        mean.add({"x": torch.tensor(1.0)})
    assert mean.compute()["x"] == (1e8 + 99) / 100


def test_confusion():
    confusion = Confusion(4)
    confusion.add(torch.tensor([0, 0, 1, 2]), torch.tensor([0, 1, 1, 2]))
    confusion.add(torch.tensor([0]), torch.tensor([0]))
    assert confusion.reduce().accuracy() == 80.0
    assert confusion.class_accuracy()[:3].tolist() == [100.0, 50.0, 100.0] and math.isnan(confusion.class_accuracy()[3])
    assert confusion.mean_class_accuracy() == pytest.approx(250 / 3)  # a class without clouds does not count
    assert confusion.matrix[1, 0] == 1  # truth, prediction
    assert Confusion(3).accuracy() == 0.0
