"""Means, confusion matrices, IoU of parts and classes, counted by hand."""

from __future__ import annotations

import math

import pytest
import torch

from utils.metrics import Confusion, Mean, PartScores, part_iou

ALLOWED = torch.tensor([[True, True, False], [False, False, True]])  # category 1 has one part


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


def test_part_iou_counts_each_cloud_alone():
    prediction = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 2]])
    truth = torch.tensor([[0, 1, 1, 1], [2, 2, -1, -1]])
    # a part neither there nor predicted: 1
    expected = torch.tensor([[1 / 2, 2 / 3, 1.0], [1.0, 1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(part_iou(prediction, truth, 3), expected)


def test_unlabelled_points_do_not_enter_the_union():
    prediction, truth = torch.tensor([[0, 1, 1]]), torch.tensor([[0, 1, -1]])
    assert part_iou(prediction, truth, 2).tolist() == [[1.0, 1.0]]


def test_predictions_stay_within_the_category():
    scores = PartScores(ALLOWED)
    best_everywhere = torch.tensor([0.0, 1.0, 5.0]).expand(2, 4, 3)
    assert scores.predict(best_everywhere, torch.tensor([0, 1])).tolist() == [[1] * 4, [2] * 4]


def test_scores_over_the_whole_set_do_not_depend_on_the_batches():
    torch.manual_seed(0)
    category = torch.randint(2, (11,))
    logits, truth = torch.randn(11, 6, 3), torch.where(category[:, None] == 1, 2, torch.randint(2, (11, 6)))
    at_once, in_parts = PartScores(ALLOWED), PartScores(ALLOWED)
    at_once.add(at_once.predict(logits, category), truth, category)
    for rows in torch.arange(11).split(4):
        in_parts.add(in_parts.predict(logits[rows], category[rows]), truth[rows], category[rows])
    assert at_once.reduce().figures() == pytest.approx(in_parts.reduce().figures())
    assert at_once.category_iou()[1] == 100  # one part: always right


def test_one_point_one_cloud():
    scores = PartScores(ALLOWED)
    scores.add(torch.tensor([[1]]), torch.tensor([[0]]), torch.tensor([0]))
    assert scores.figures() == {"instance_iou": 0.0, "class_iou": 0.0, "acc": 0.0, "macc": 0.0}
    assert math.isnan(scores.category_iou()[1])  # no cloud of it: not in the mean


def test_a_cloud_without_labels_is_not_judged():
    scores = PartScores(ALLOWED)
    scores.add(torch.tensor([[0, 0], [0, 1]]), torch.tensor([[-1, -1], [0, 1]]), torch.tensor([0, 0]))
    assert scores.clouds.tolist() == [1, 0] and scores.figures()["instance_iou"] == 100


def test_classes_that_do_not_occur():
    confusion = Confusion(3)
    confusion.add(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]))
    assert confusion.class_iou()[:2].tolist() == pytest.approx([50, 50]) and math.isnan(confusion.class_iou()[2])
    assert confusion.mean_iou() == pytest.approx(50)
    confusion.add(torch.tensor([2]), torch.tensor([0]))  # predicted, never there: IoU 0 counts
    assert confusion.class_iou()[2] == 0


def test_negative_truth_is_no_label():
    confusion = Confusion(2)
    confusion.add(torch.tensor([0, 1, 1]), torch.tensor([0, -1, -1]))
    assert confusion.matrix.sum() == 1 and confusion.accuracy() == 100
