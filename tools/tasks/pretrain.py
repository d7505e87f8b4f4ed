"""Self-supervised pre-training: the model's own loss, and how well its frozen features separate classes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from datasets.loader import Loader
from tools.probe import PROBES, extract_features, run_probes, svm
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task, evaluating, prepared
from utils import dist
from utils.random import BatchRandom


class Pretrain(Task):
    """probe: at every validation fit a linear SVM on the training features and score it on the validation data."""

    def __init__(self, probe: bool = True):
        self.probe = probe
        self.watch, self.higher_is_better = ("svm_acc", True) if probe else ("loss", False)

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        return {"loss": model(batch["points"], rng=rng)["loss"]}

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        figures = {"loss": self._loss(model, loader, data, autocast)}
        if self.probe:
            train = extract_features(model, data.fit_set, data, autocast)
            held_out = extract_features(model, loader, data, autocast)
            figures["svm_acc"] = svm(train, held_out).accuracy
        return figures

    def _loss(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> float:
        """Mean loss over the clouds, with the same masks at every call."""
        rng, total = BatchRandom(0, loader.device, rank=0, world=1), torch.zeros(2, device=loader.device)
        with evaluating(autocast):
            for batch in prepared(loader, data):
                size = len(batch["points"])
                total += torch.stack([model(batch["points"], rng=rng)["loss"].float() * size, total.new_tensor(size)])
        dist.all_sum(total)
        return float(total[0] / total[1])

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        """Every probe on the test set, fitted on the training data without the validation part."""
        return run_probes(model, data, autocast, PROBES) if data.test is not None else []
