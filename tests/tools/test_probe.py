"""Probes of frozen features."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
import torch
from torch import nn

from tests.helpers import write_data
from tools.probe import PROBES, Features, extract_features, knn, linear, run_probes, svm, svm_cv
from tools.splits import DataSplits
from tools.tasks.pretrain import Pretrain
from utils.errors import UserError


class MeanOfPoints(nn.Module):
    def encode(self, points: torch.Tensor) -> torch.Tensor:
        return torch.cat([points.mean(1), points.std(1)], dim=-1)


def splits(folder, **options) -> DataSplits:
    train = {"name": "packed", "path": str(write_data(folder / "train.npz"))}
    test = {"name": "packed", "path": str(write_data(folder / "test.npz", clouds=9, seed=1))}
    return DataSplits(train, test, batch_size=8, **options)


def clusters(count: int, seed: int, spread: float = 0.1) -> Features:
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    return Features(np.eye(3)[labels] + spread * rng.normal(size=(count, 3)), labels)


@pytest.mark.parametrize("probe", [svm, svm_cv, knn, linear])
def test_clear_classes_are_found(probe):
    score = probe(clusters(60, 0), clusters(30, 1))
    assert score.accuracy == 100.0 and score.protocol


@pytest.mark.parametrize("probe", [svm_cv, knn, linear])
def test_few_examples(probe):
    """One of each class: no cross-validation is possible, a figure is."""
    assert probe(clusters(3, 0), clusters(30, 1)).accuracy == 100.0


def test_choices_do_not_look_at_the_test_set():
    train, noise = clusters(60, 0, spread=0.5), np.random.default_rng(2)
    spoiled = Features(clusters(30, 1).x, noise.integers(0, 3, 30))
    for probe in (svm_cv, knn, linear):
        assert probe(train, clusters(30, 1)).protocol == probe(train, spoiled).protocol


def test_near_duplicates_stay_together():
    """The nearest neighbour is a copy; without it nothing beats naming the class of most."""
    rng = np.random.default_rng(0)
    x, y, groups = (
        rng.normal(size=(20, 8)).repeat(3, 0),
        (np.arange(20) % 5 == 0).astype(int).repeat(3),
        np.arange(20).repeat(3),
    )
    assert "k 1 " in knn(Features(x, y), Features(x, y)).protocol
    assert "k 1 " not in knn(Features(x, y, groups), Features(x, y)).protocol


def test_features_are_in_the_order_of_the_data(tmp_path):
    data = splits(tmp_path, eval_batch_size=5)
    features = extract_features(MeanOfPoints(), data.fit_set, data, contextlib.nullcontext)
    whole = data.fit_set.dataset.fetch(range(len(data.fit_set.dataset)))
    np.testing.assert_allclose(features.x, MeanOfPoints().encode(whole["points"]), rtol=1e-5)
    np.testing.assert_array_equal(features.y, whole["label"])


def test_rows(tmp_path):
    rows = run_probes(MeanOfPoints(), splits(tmp_path), contextlib.nullcontext, PROBES)
    assert [row["metric"] for row in rows] == [f"{name}_acc" for name in PROBES]
    assert all(row["split"] == "test" and row["protocol"] for row in rows)
    assert {row["metric"]: row["value"] for row in rows}["svm_cv_acc"] == 100.0


def test_pretraining_on_one_class_goes_without(tmp_path):
    data = splits(tmp_path, classes=["class1"])
    model = MeanOfPoints()
    model.forward = lambda points, rng: {"loss": points.mean()}
    assert data.val is not None
    assert set(Pretrain().evaluate(model, data.val, data, contextlib.nullcontext)) == {"loss"}
    assert Pretrain().conclude(model, data, contextlib.nullcontext) == []


def test_what_cannot_be_probed_is_told(tmp_path):
    data = splits(tmp_path)
    with pytest.raises(UserError, match="'Linear' has no encode"):
        run_probes(nn.Linear(3, 3), data, contextlib.nullcontext, PROBES)
    model = MeanOfPoints()
    model.encode = lambda points: points.mean(1) * float("nan")  # type: ignore[method-assign]
    with pytest.raises(UserError, match="diverged"):
        run_probes(model, data, contextlib.nullcontext, PROBES)
    alone = splits(tmp_path, classes=["class1"])
    with pytest.raises(UserError, match="one class"):
        run_probes(MeanOfPoints(), alone, contextlib.nullcontext, PROBES)
    data.test = None
    with pytest.raises(UserError, match=r"data\.test"):
        run_probes(MeanOfPoints(), data, contextlib.nullcontext, PROBES)
