"""Training, validation and test parts."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.base import PointClouds
from tests.helpers import write_data
from tools.splits import DataSplits, hold_out, keep_share
from utils.errors import UserError


def clouds(count: int = 60, classes: int = 3, groups: np.ndarray | None = None) -> PointClouds:
    points, labels = np.zeros((count, 4, 3), np.float32), np.arange(count) % classes
    names = [f"c{i}" for i in range(classes)]
    return PointClouds(points, labels, names, name="some", split="train", groups=groups)


def test_a_share_of_every_class_is_held_out():
    train, val = hold_out(clouds(), 0.1, seed=0)
    assert sorted([*train.index, *val.index]) == list(range(60))
    assert np.bincount(val.class_labels).tolist() == [2, 2, 2] and val.split == "val"
    assert hold_out(clouds(), 0.1, seed=0)[1].index.tolist() == val.index.tolist()
    assert hold_out(clouds(), 0.1, seed=1)[1].index.tolist() != val.index.tolist()


def test_near_duplicates_stay_on_one_side():
    train, val = hold_out(clouds(groups=np.arange(60) // 6), 0.2, seed=0)
    assert not set(train.index // 6) & set(val.index // 6)


@pytest.mark.parametrize("fraction", [0.0, 0.01, 1.0])
def test_a_side_that_is_empty_is_told(fraction):
    with pytest.raises(UserError, match=r"data\.val_fraction"):
        hold_out(clouds(), fraction, seed=0)


def test_a_share_of_the_labels_keeps_every_class():
    kept = keep_share(clouds(), 0.01, seed=0)
    assert sorted(kept.class_labels) == [0, 1, 2]
    assert np.bincount(keep_share(clouds(), 0.5, seed=0).class_labels).tolist() == [10, 10, 10]


def packed(path) -> dict:
    return {"name": "packed", "path": str(path)}


def test_the_held_out_part_does_not_depend_on_seed_or_share(tmp_path):
    """Runs with other seeds and shares of labels are judged on the same validation clouds."""
    train = packed(write_data(tmp_path / "train.npz"))
    one, two = DataSplits(train, batch_size=4, seed=0), DataSplits(train, batch_size=4, seed=7, label_fraction=0.5)
    assert one.val is not None and two.val is not None
    assert one.val.dataset.index.tolist() == two.val.dataset.index.tolist()
    assert len(two.train.dataset) == 18 - 3 or len(two.train.dataset) < len(one.train.dataset)
    assert not set(one.train.dataset.index) & set(one.val.dataset.index)


def test_classes_must_mean_the_same(tmp_path):
    train = packed(write_data(tmp_path / "train.npz"))
    other = write_data(tmp_path / "other.npz", names=np.array(["class1", "class0", "class2"]))
    with pytest.raises(UserError, match=r"data\.val: 'other' has 3 classes.*in another order"):
        DataSplits(train, val=packed(other), batch_size=4)


def test_named_validation_data_are_used_whole(tmp_path):
    train = packed(write_data(tmp_path / "train.npz"))
    data = DataSplits(train, val=packed(write_data(tmp_path / "val.npz", clouds=6)), batch_size=4)
    assert data.val is not None and len(data.val.dataset) == 6 and len(data.train.dataset) == 36
    assert DataSplits(train, val_fraction=0.0, batch_size=4).val is None
