"""Classification of whole clouds."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.transforms import apply_all
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task, checked_smoothing, evaluating, extra_inputs, judged, prepared
from utils.errors import UserError
from utils.metrics import Confusion
from utils.random import BatchRandom


class Classify(Task):
    """Cross entropy; accuracy over clouds and over classes.

    vote_times: mean logits over that many random draws of the training augmentation. vote_repeats: how often the vote
    is repeated; the mean is the result, the maximum, which some papers print, stands beside it under its name.
    """

    watch, higher_is_better = "acc", True

    def __init__(self, label_smoothing: float = 0.0, vote_times: int = 0, vote_repeats: int = 1):
        if vote_repeats < 1:
            raise UserError(f"vote_repeats: {vote_repeats}; use at least 1")
        self.label_smoothing = checked_smoothing(label_smoothing)
        self.vote_times, self.vote_repeats = vote_times, vote_repeats

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        def judge(logits: Tensor) -> dict[str, Tensor]:
            loss = F.cross_entropy(logits.float(), batch["label"], label_smoothing=self.label_smoothing)
            return {"loss": loss, "acc": 100 * (logits.detach().argmax(-1) == batch["label"]).float().mean()}

        return judged(model(batch["points"], **extra_inputs(model, batch)), judge)

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        confusion = self._confusion(model, loader, data, autocast)
        return {"acc": confusion.accuracy(), "macc": confusion.mean_class_accuracy()}

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        if data.test is None:
            return []
        confusion = self._confusion(model, data.test, data, autocast)
        per_class = dict(zip(data.class_names, confusion.class_accuracy().tolist()))
        rows: list[dict] = [
            {"metric": "acc", "value": confusion.accuracy(), "split": "test", "per_class": per_class},
            {"metric": "macc", "value": confusion.mean_class_accuracy(), "split": "test"},
        ]
        return rows + (self._vote_rows(model, data, autocast) if self.vote_times else [])

    def _confusion(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> Confusion:
        confusion = Confusion(data.num_classes, loader.device)
        with evaluating(autocast):
            for batch in prepared(loader, data):
                logits = model(batch["points"], **extra_inputs(model, batch))
                confusion.add(logits.argmax(dim=-1), batch["label"])
        return confusion.reduce()

    def _vote_rows(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        assert data.test is not None
        passes = [self._vote(model, data.test, data, autocast, seed) for seed in range(self.vote_repeats)]
        common = {"split": "test", "voting": f"{self.vote_times} draws, {self.vote_repeats} repeats"}
        rows = [{"metric": "acc_vote_mean", "value": sum(passes) / len(passes), **common}]
        return rows + ([{"metric": "acc_vote_max", "value": max(passes), **common}] if len(passes) > 1 else [])

    def _vote(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast, seed: int) -> float:
        """Accuracy of the mean logits over `vote_times` draws of the training augmentation."""
        rng, confusion = BatchRandom(seed, loader.device), Confusion(data.num_classes, loader.device)
        with evaluating(autocast):
            for batch in loader.epoch():
                draws = (apply_all(data.augment, batch, rng) for _ in range(self.vote_times))
                votes = [model(draw["points"], **extra_inputs(model, draw)).float() for draw in draws]
                logits = torch.stack(votes).mean(dim=0)
                confusion.add(logits.argmax(dim=-1), batch["label"])
        return confusion.reduce().accuracy()
