"""The segmentation tasks with networks whose answers are known."""

import contextlib
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from datasets import DATASETS
from datasets.base import PointClouds
from datasets.rooms import Room, RoomBlocks
from tools.splits import DataSplits
from tools.tasks.segment import PartSegmentation, SemanticSegmentation, allowed_parts
from utils.errors import UserError
from utils.random import BatchRandom

pytestmark = pytest.mark.usefixtures("restored")
PARTS, CATEGORY = ("cup/body", "cup/handle", "ball/ball"), (0, 0, 1)


@pytest.fixture
def restored(monkeypatch):
    """What a test registers is gone after it."""
    monkeypatch.setattr(DATASETS, "_entries", dict(DATASETS._entries))


class ByCoordinate(nn.Module):
    """Part 1 where x is positive, else part 0; part 2, which a cup cannot have, would win everywhere."""

    def __init__(self, parts=3):
        super().__init__()
        self.parts, self.scale = parts, nn.Parameter(torch.ones(()))
        self.calls = 0

    def forward(self, points, category):
        self.calls += 1
        logits = torch.zeros(*points.shape[:2], self.parts)
        logits[..., 1] = points[..., 0].sign()
        logits[..., 2:] = 9
        return logits * self.scale


def clouds(seg=None, category=CATEGORY):
    rng = np.random.default_rng(0)
    points = rng.normal(size=(6, 20, 3)).astype(np.float32)
    labels = np.array([0, 0, 0, 0, 1, 1])
    truth = np.where(labels[:, None] == 1, 2, points[..., 0] > 0) if seg is None else seg
    return PointClouds(
        points, labels, ("cup", "ball"), name="t", split="test", seg=truth, part_names=PARTS, part_category=category
    )


def splits(data, **options):
    DATASETS._entries["cups"] = lambda: data
    given: Any = {"val_fraction": 0, "batch_size": 2, "eval_batch_size": 4, **options}
    return DataSplits({"name": "cups"}, {"name": "cups"}, **given)


def value(rows, metric):
    return next(row["value"] for row in rows if row["metric"] == metric)


def test_predictions_are_restricted_and_figures_cover_the_whole_set():
    data = splits(clouds())
    rows = PartSegmentation().conclude(ByCoordinate(), data, contextlib.nullcontext)
    assert [value(rows, key) for key in ("instance_iou", "class_iou", "acc", "macc")] == [100] * 4
    assert rows[0]["per_class"] == {"cup": 100, "ball": 100}


@pytest.mark.parametrize("augment", [{"name": "random_points", "num_points": 20}, {"name": "dropout"}])
def test_votes_reach_the_point_they_belong_to(augment):
    """The augmentation reorders and repeats points; a network that sees each point right must stay right."""
    data, model = splits(clouds(), augment=[augment]), ByCoordinate()
    rows = PartSegmentation(vote_times=3).conclude(model, data, contextlib.nullcontext)
    assert value(rows, "instance_iou_vote") == 100
    assert model.calls == 2 * (1 + 3)  # two batches


def test_evaluation_is_the_same_at_every_call():
    data = splits(clouds(), eval_transform=[{"name": "random_points", "num_points": 7}])
    task = PartSegmentation()
    twice = [task.evaluate(ByCoordinate(), data.test, data, contextlib.nullcontext) for _ in range(2)]
    assert twice[0] == twice[1]


def test_background_enters_neither_loss_nor_figures():
    seg = clouds().seg.copy()
    wrong = seg.copy()
    seg[:, ::2] = -1
    wrong[:, ::2] = 1 - wrong[:, ::2].clip(0, 1)
    task = PartSegmentation()
    data = splits(clouds(seg))
    assert task.evaluate(ByCoordinate(), data.test, data, contextlib.nullcontext)["acc"] == 100
    batch = clouds(seg).fetch([0, 1])
    loss = task.losses(ByCoordinate(), batch, BatchRandom(0))["loss"]
    kept = {**batch, "points": batch["points"][:, 1::2], "seg": batch["seg"][:, 1::2]}
    torch.testing.assert_close(loss, task.losses(ByCoordinate(), kept, BatchRandom(0))["loss"])


def test_a_batch_without_any_label_has_no_loss():
    batch = clouds(np.full((6, 20), -1)).fetch([0, 1])
    assert PartSegmentation().losses(ByCoordinate(), batch, BatchRandom(0))["loss"] == 0


def test_data_that_cannot_be_segmented():
    batch = {"points": torch.rand(2, 4, 3), "label": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(UserError, match="label for every point"):
        PartSegmentation().losses(ByCoordinate(), batch, BatchRandom(0))
    with pytest.raises(UserError, match="category ball"):
        allowed_parts(splits(clouds(category=(0, 0, 0))), torch.device("cpu"))


def test_all_parts_where_nobody_says_which_belong_to_what():
    assert allowed_parts(splits(clouds(category=())), torch.device("cpu")).all()


def test_a_picture_is_drawn(tmp_path):
    PartSegmentation().draw(ByCoordinate(), splits(clouds()), contextlib.nullcontext, tmp_path)
    assert (tmp_path / "segmentation.png").stat().st_size > 0


class Sided(nn.Module):
    """Right for blocks whose own points are mostly of one side; votes of other blocks settle the rest."""

    def forward(self, points, category):
        return torch.stack([-points[..., 2], points[..., 2] - 2], dim=-1)


def rooms_of(*sizes):
    rng = np.random.default_rng(1)
    found = []
    for size in sizes:
        points = rng.random((size, 3)).astype(np.float32) * 2
        points[0, 2] = 0  # the floor
        found.append(Room(points, (points[:, 2] > 1).astype(np.int64)))
    return RoomBlocks(found, ("low", "high"), name="rooms", split="test", num_points=32)


def test_whole_rooms_count_every_point_once():
    rooms = rooms_of(300, 120)
    data = splits(rooms)
    task = SemanticSegmentation()
    rows = task.conclude(Sided(), data, contextlib.nullcontext)
    assert value(rows, "miou") == pytest.approx(100) and value(rows, "acc") == 100
    confusion = task._whole_rooms(Sided(), data.test, data, contextlib.nullcontext)
    assert confusion is not None and int(confusion.matrix.sum()) == 420
    assert rows[0]["per_class"].keys() == {"low", "high"} and "vote" in rows[0]["protocol"]


def test_overlapping_blocks_vote():
    """Blocks left of the middle are sure of class 0, those on the right less sure of class 1: the sum decides."""

    class Weighted(nn.Module):
        def forward(self, points, category):
            first = points[..., 0].mean(dim=1) * 0 + torch.arange(len(points))
            sure = torch.where(first[:, None] == 0, 3.0, -0.1).expand(points.shape[:2])
            return torch.stack([sure, -sure], dim=-1)

    same = np.tile(np.random.default_rng(0).random((8, 3)).astype(np.float32) * 0.2 + 0.4, (1, 1))
    room = Room(np.concatenate([same, [[0, 0, 0]], [[1.5, 0, 0]]]).astype(np.float32), np.zeros(10, np.int64))
    rooms = RoomBlocks([room], ("a", "b"), name="r", split="test", num_points=10)
    data = splits(rooms)
    confusion = SemanticSegmentation()._whole_rooms(Weighted(), data.test, data, contextlib.nullcontext)
    assert confusion is not None
    assert confusion.matrix[0, 0] >= 9  # all points of the first block, although later blocks say otherwise


def test_points_without_a_prediction_are_an_error():
    data = splits(rooms_of(300), eval_transform=[{"name": "random_points", "num_points": 2}])
    with pytest.raises(UserError, match="without a prediction"):
        SemanticSegmentation().conclude(Sided(), data, contextlib.nullcontext)


def test_rooms_of_training_are_held_out_whole():
    rooms = rooms_of(100, 100, 100, 100)
    data = splits(rooms, val_fraction=0.25)
    assert data.val is not None and data.val.dataset.groups is not None
    held, kept = (set(loader.dataset.groups[loader.dataset.index]) for loader in (data.val, data.train))
    assert held and kept and not held & kept
    figures = SemanticSegmentation().evaluate(Sided(), data.val, data, contextlib.nullcontext)
    assert figures["acc"] == 100
