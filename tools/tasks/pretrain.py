"""Self-supervised pre-training: the model's own loss, and how well its frozen features separate classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.transforms import apply_all
from tools.draw import draw_clouds
from tools.probe import PROBES, extract_features, run_probes, svm_cv
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task, evaluating, prepared
from utils import dist
from utils.random import BatchRandom

CLOUDS_DRAWN = 6


class Pretrain(Task):
    """probe: at every validation fit a linear SVM on the training features and score it on the validation data; at the
    end, and with --svm, the whole set of probes runs on the test set."""

    def __init__(self, probe: bool = True):
        self.probe = probe
        self.watch, self.higher_is_better = ("probe_acc", True) if probe else ("loss", False)

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        return {"loss": model(batch["points"], rng=rng)["loss"]}

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        figures = {"loss": self._loss(model, loader, data, autocast)}
        if self.probe:
            train = extract_features(model, data.fit_set, data, autocast)
            held_out = extract_features(model, loader, data, autocast)
            figures["probe_acc"] = svm_cv(train, held_out, grid=(1.0,)).accuracy
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

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        """reconstruction.png: a row a cloud; input, visible patches, rebuilt patches, visible and rebuilt together."""
        loader = data.test or data.val or data.fit_set
        chosen = np.linspace(0, len(loader.dataset) - 1, min(CLOUDS_DRAWN, len(loader.dataset))).astype(int)
        batch = {key: value.to(loader.device) for key, value in loader.dataset.fetch(chosen).items()}
        rng = BatchRandom(0, loader.device, rank=0, world=1)
        points = apply_all(data.eval_transform, batch, rng)["points"]
        with evaluating(autocast):
            seen, rebuilt = model.reconstruct(points, rng=rng)  # type: ignore[operator]
        rows = zip(*(clouds.float().cpu().numpy() for clouds in (points, seen, rebuilt)))
        pictures, colors = [], []
        for cloud, visible, hidden in rows:
            pictures += [cloud, visible, hidden, np.concatenate([visible, hidden])]
            joint = np.repeat([0, 1], [len(visible), len(hidden)])
            colors += [np.full(len(cloud), -1), np.zeros(len(visible), int), np.ones(len(hidden), int), joint]
        draw_clouds(pictures, colors, folder / "reconstruction.png", columns=4)
