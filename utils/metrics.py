"""Counts that add up over batches and processes, and the figures made of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils import dist
from utils.errors import UserError


def widest(device: torch.device) -> torch.dtype:
    """float64 where there is one; Apple's devices have none."""
    return torch.float32 if device.type == "mps" else torch.float64


class Mean:
    """Running means of named scalars, kept on their device; one synchronisation when they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            value = value.detach().to(widest(value.device))
            self.sums[key] = self.sums[key] + value if key in self.sums else value
        self.count += 1

    def compute(self) -> dict[str, float]:
        return {key: float(total) / max(self.count, 1) for key, total in self.sums.items()}

    def reduced(self) -> dict[str, float]:
        """Means over all processes, each of which adds equally often."""
        totals = {key: float(dist.all_sum(total.clone())) for key, total in self.sums.items()}
        return {key: total / dist.world_size() / self.count for key, total in totals.items()}

    def state(self) -> dict:
        return {"sums": {key: total.cpu() for key, total in self.sums.items()}, "count": self.count}

    def set_state(self, state: dict) -> None:
        self.sums, self.count = dict(state["sums"]), state["count"]


class Confusion:
    """Confusion matrix over a whole set, of clouds or of points; a negative truth is no label and does not count."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.long, device=device)  # [truth, prediction]

    def add(self, prediction: Tensor, truth: Tensor) -> None:
        size, labelled = len(self.matrix), truth >= 0
        cells = truth[labelled] * size + prediction[labelled]
        self.matrix += torch.bincount(cells, minlength=size * size).reshape(size, size)

    def reduce(self) -> Confusion:
        dist.all_sum(self.matrix)
        return self

    def accuracy(self) -> float:
        """Percent classified correctly."""
        return 100.0 * float(self.matrix.diag().sum()) / max(int(self.matrix.sum()), 1)

    @property
    def _counts(self) -> Tensor:
        """On the CPU in float64, which not every device has."""
        return self.matrix.cpu().double()

    def class_accuracy(self) -> Tensor:
        """Percent per class; NaN for a class that does not occur."""
        counts = self._counts
        return 100.0 * counts.diag() / counts.sum(1)

    def mean_class_accuracy(self) -> float:
        return float(torch.nanmean(self.class_accuracy()))

    def class_iou(self) -> Tensor:
        """Intersection over union per class in percent; NaN for a class that neither occurs nor is predicted."""
        counts = self._counts
        both = counts.diag()
        return 100.0 * both / (counts.sum(0) + counts.sum(1) - both)

    def mean_iou(self) -> float:
        return float(torch.nanmean(self.class_iou()))


class PartScores:
    """Intersection over union (IoU) of parts, cloud by cloud, and accuracy over points; negative labels do not count.

    allowed: (categories, parts), true where a cloud of the category can have the part. The IoU of a cloud is the mean
    over the parts of its category, 1 for a part that is neither there nor predicted.
    """

    def __init__(self, allowed: Tensor):
        self.allowed = allowed
        wide = widest(allowed.device)
        self.sums = torch.zeros(len(allowed), dtype=wide, device=allowed.device)  # of the clouds' IoU, a category
        self.clouds = torch.zeros(len(allowed), dtype=torch.long, device=allowed.device)
        self.points = Confusion(allowed.shape[1], allowed.device)

    def predict(self, scores: Tensor, category: Tensor) -> Tensor:
        """(B, N, parts), (B,) -> the best part of every point (B, N) among those of the cloud's category."""
        return scores.masked_fill(~self.allowed[category][:, None], -torch.inf).argmax(dim=-1)

    def add(self, prediction: Tensor, truth: Tensor, category: Tensor) -> None:
        """(B, N), (B, N), (B,)."""
        own = self.allowed[category]  # (B, parts)
        iou = part_iou(prediction, truth, own.shape[1])
        labelled = (truth >= 0).any(dim=1)  # a cloud without any label cannot be judged
        mean = (iou * own).sum(dim=1) / own.sum(dim=1)
        self.sums.index_add_(0, category[labelled], mean[labelled])
        self.clouds += torch.bincount(category[labelled], minlength=len(self.clouds))
        self.points.add(prediction, truth)

    def reduce(self) -> PartScores:
        for total in (self.sums, self.clouds, self.points.matrix):
            dist.all_sum(total)
        return self

    def category_iou(self) -> Tensor:
        """Mean IoU of the clouds of each category in percent; NaN for a category without clouds."""
        return 100.0 * self.sums / self.clouds

    def figures(self) -> dict[str, float]:
        """Percent: mean over clouds, mean over categories, points right, mean over parts that occur."""
        return {
            "instance_iou": 100.0 * float(self.sums.sum()) / max(int(self.clouds.sum()), 1),
            "class_iou": float(torch.nanmean(self.category_iou())),
            "acc": self.points.accuracy(),
            "macc": self.points.mean_class_accuracy(),
        }


def part_iou(prediction: Tensor, truth: Tensor, num_parts: int) -> Tensor:
    """(B, N), (B, N) -> IoU of every part in every cloud (B, parts); 1 where a part is neither there nor predicted."""
    labelled = truth >= 0

    def count(ids: Tensor, which: Tensor) -> Tensor:
        return which.new_zeros(len(ids), num_parts, dtype=torch.long).scatter_add_(1, ids, which.long())

    both = count(prediction, labelled & (prediction == truth))
    union = count(prediction, labelled) + count(truth.clamp(min=0), labelled) - both
    share = both.to(widest(both.device)) / union.clamp(min=1)
    return share.where(union > 0, 1.0)


class Ranking:
    """Average precision of every query, and precision at fixed recalls; queries of a class are averaged first."""

    RECALLS = np.linspace(0, 1, 21)

    def __init__(self, labels: np.ndarray, precision: np.ndarray, curves: np.ndarray):
        self.labels, self.precision, self.curves = labels, precision, curves  # (Q,), (Q,), (Q, 21)

    def class_precision(self) -> dict[int, float]:
        """Mean average precision of the queries of each class that has any."""
        return {int(label): float(self.precision[self.labels == label].mean()) for label in np.unique(self.labels)}

    def figures(self) -> dict[str, float]:
        """Percent: mean over classes, mean over queries."""
        return {
            "map": 100 * float(np.mean(list(self.class_precision().values()))),
            "map_micro": 100 * float(self.precision.mean()),
        }

    def curve(self) -> np.ndarray:
        """Recall and precision (2, 21), mean over classes; the precision at a recall is the best from there on."""
        means = [self.curves[self.labels == label].mean(axis=0) for label in np.unique(self.labels)]
        return np.stack([self.RECALLS, np.mean(means, axis=0)])


def rank_by_distance(vectors: np.ndarray, labels: np.ndarray) -> Ranking:
    """Every vector (n, C) against all others by Euclidean distance; of equally near ones the first comes first."""
    kept, precisions, curves = [], [], []
    counts = np.bincount(labels)
    wide = vectors.astype(np.float64)
    for query in np.flatnonzero(counts[labels] > 1):
        away = np.square(wide - wide[query]).sum(axis=1)
        away[query] = np.inf
        right = (labels == labels[query])[np.argsort(away, kind="stable")[:-1]]
        hits = np.flatnonzero(right)
        at_hits = np.arange(1, len(hits) + 1) / (hits + 1)
        best_from = np.maximum.accumulate(at_hits[::-1])[::-1]
        reached = np.arange(1, len(hits) + 1) / len(hits)
        place = np.searchsorted(reached, Ranking.RECALLS - 1e-9).clip(max=len(hits) - 1)
        kept.append(labels[query])
        precisions.append(at_hits.mean())
        curves.append(best_from[place])
    if not kept:
        raise UserError("retrieval: no class has two clouds, so there is nothing to find; use a larger set")
    return Ranking(np.array(kept), np.array(precisions), np.array(curves))
