"""Counts that add up over batches and processes, and the figures made of them."""

from __future__ import annotations

import torch
from torch import Tensor

from utils import dist


class Mean:
    """Running means of named scalars, kept on their device; one synchronisation when they are read."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        for key, value in values.items():
            value = value.detach()
            value = value.float() if value.device.type == "mps" else value.double()  # Apple's has no float64
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
    """Confusion matrix of a classifier over a whole set: overall accuracy, mean class accuracy, per class recall."""

    def __init__(self, num_classes: int, device: torch.device | str = "cpu"):
        self.matrix = torch.zeros(num_classes, num_classes, dtype=torch.long, device=device)  # [truth, prediction]

    def add(self, prediction: Tensor, truth: Tensor) -> None:
        size = len(self.matrix)
        self.matrix += torch.bincount(truth * size + prediction, minlength=size * size).reshape(size, size)

    def reduce(self) -> Confusion:
        dist.all_sum(self.matrix)
        return self

    def accuracy(self) -> float:
        """Percent of clouds classified correctly."""
        return 100.0 * float(self.matrix.diag().sum()) / max(int(self.matrix.sum()), 1)

    def class_accuracy(self) -> Tensor:
        """Percent per class; NaN for a class without clouds."""
        return 100.0 * self.matrix.diag() / self.matrix.sum(1)

    def mean_class_accuracy(self) -> float:
        return float(torch.nanmean(self.class_accuracy()))
