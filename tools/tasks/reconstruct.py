"""Reconstruction: an autoencoder's output against the whole cloud, also from a sample of it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.transforms import apply_all
from extensions import ops
from models.sampled import SampledNetwork
from tools.draw import draw_clouds
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task, evaluating, judged, prepared
from utils import dist
from utils.random import BatchRandom

CLOUDS_DRAWN = 4


class Reconstruct(Task):
    """loss: Chamfer distance (squared distances, both ways), or "emd", the published approximate matching: distances
    summed over the points of a cloud.

    Behind a sampler also the normalised reconstruction error (NRE): for every cloud the error from its sample over the
    error from all its points, and the mean of these ratios.
    """

    watch, higher_is_better = "error", False

    def __init__(self, loss: Literal["chamfer", "emd"] = "chamfer"):
        self.loss = loss

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        points = batch["points"]
        return judged(model(points), lambda rebuilt: {"loss": self.errors(rebuilt, points).mean()})

    def errors(self, rebuilt: Tensor, points: Tensor) -> Tensor:
        """Of every cloud (B,)."""
        if self.loss == "chamfer":
            return ops.chamfer_distance(rebuilt.float(), points, reduction="patch")
        distance = ops.earth_mover_distance(rebuilt.float(), points, squared=False, reduction="none")
        return distance * rebuilt.shape[1]

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        """Mean error; behind a sampler also NRE, and the error from all points."""
        total = torch.zeros(4, device=loader.device)
        with evaluating(autocast):
            for batch in prepared(loader, data):
                points = batch["points"]
                errors = self.errors(model(points), points)
                whole = self.errors(model.unsampled(points), points) if isinstance(model, SampledNetwork) else errors
                count = errors.new_tensor(len(points))
                total += torch.stack([errors.sum(), (errors / whole).sum(), whole.sum(), count])
        error, ratio, whole, count = dist.all_sum(total).tolist()
        figures = {"error": error / count}
        if isinstance(model, SampledNetwork):
            figures |= {"nre": ratio / count, "error_all_points": whole / count}
        return figures

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        if data.test is None:
            return []
        figures = self.evaluate(model, data.test, data, autocast)
        return [{"metric": key, "value": figures[key], "split": "test", "protocol": self.loss} for key in figures]

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        """reconstruction.png: a row a cloud; the cloud, its sample where there is one, what was made of it."""
        loader = data.test or data.val or data.fit_set
        chosen = np.linspace(0, len(loader.dataset) - 1, min(CLOUDS_DRAWN, len(loader.dataset))).astype(int)
        batch = {key: value.to(loader.device) for key, value in loader.dataset.fetch(chosen).items()}
        with evaluating(autocast):
            points = apply_all(data.eval_transform, batch, BatchRandom(0, loader.device, rank=0, world=1))["points"]
            columns = [points, *(each.points for each in sampled(model, points)), model(points)]
        clouds = [cloud.float().cpu().numpy() for row in zip(*columns) for cloud in row]
        draw_clouds(clouds, None, folder / "reconstruction.png", columns=len(columns))


def sampled(model: nn.Module, points: Tensor) -> list:
    return model.sample(points) if isinstance(model, SampledNetwork) else []
