"""Self-supervised pre-training: the model's own loss, and how well its frozen features separate classes.

A model may have, besides `forward` and `encode`: `set_progress(epoch, epochs)` and `after_step()`, called around every
step; `figures` in what `forward` returns, scalars to log; `also_probed()`, encoders to probe beside it; `rate(points,
rng)`, how hard patches seem and are, to draw.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.transforms import apply_all
from tools.draw import draw_clouds, heat, sheet_of
from tools.probe import PROBES, extract_features, has_classes, run_probes, svm_cv
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Progress, Task, evaluating, prepared
from utils import dist
from utils.random import BatchRandom

CLOUDS_DRAWN = 6


class Pretrain(Task):
    """probe: at every validation fit a linear SVM on the training features and score it on the validation data; at the
    end, and with --svm, the whole set of probes runs on the test set. Clouds of one class go without."""

    def __init__(self, probe: bool = True):
        self.probe = probe
        self.watch, self.higher_is_better = ("probe_acc", True) if probe else ("loss", False)

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        if hasattr(model, "set_progress"):
            model.set_progress(progress.epoch, progress.epochs)  # type: ignore[operator]

    def after_step(self, model: nn.Module) -> None:
        if hasattr(model, "after_step"):
            model.after_step()  # type: ignore[operator]

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        out = model(batch["points"], rng=rng)
        return {"loss": out["loss"], **out.get("figures", {})}

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        figures = self._means(model, loader, data, autocast)
        if self.probe and has_classes(data):
            for name, encoder in {"": model, **also_probed(model)}.items():
                train = extract_features(encoder, data.fit_set, data, autocast)
                held_out = extract_features(encoder, loader, data, autocast)
                figures[prefixed(name, "probe_acc")] = svm_cv(train, held_out, grid=(1.0,)).accuracy
        return figures

    def _means(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        """Losses and figures, means over the clouds, with the same masks at every call."""
        rng, clouds = BatchRandom(0, loader.device, rank=0, world=1), 0
        totals: dict[str, Tensor] = {}
        with evaluating(autocast):
            for batch in prepared(loader, data):
                size = len(batch["points"])
                clouds += size
                for name, value in self.losses(model, batch, rng).items():
                    totals[name] = totals.get(name, 0) + value.float() * size
        shares = dist.gather_objects((clouds, {name: float(total) for name, total in totals.items()}))
        clouds = sum(number for number, _ in shares)
        names = max((share for _, share in shares), key=len)  # a process may have had no batch
        return {name: sum(share.get(name, 0.0) for _, share in shares) / clouds for name in names}

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        """Every probe on the test set, fitted on the training data without the validation part."""
        if data.test is None or not has_classes(data):
            return []
        rows = run_probes(model, data, autocast, PROBES)
        for name, encoder in also_probed(model).items():
            probed = run_probes(encoder, data, autocast, ("svm", "svm_cv"))
            rows += [{**row, "metric": prefixed(name, row["metric"])} for row in probed]
        return rows

    def pictures(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> dict[str, np.ndarray]:
        """difficulty: a row a cloud; the cloud, how hard its patches are thought to be, how hard they are."""
        if not hasattr(model, "rate"):
            return {}
        points, rng = clouds_to_draw(data)
        with evaluating(autocast):
            center, thought, real = model.rate(points, rng)  # type: ignore[operator]
        nearest = torch.cdist(points, center).argmin(dim=-1).cpu().numpy()  # (B, N)
        pictures, colors = [], []
        for cloud, place, *ratings in zip(points.cpu().numpy(), nearest, thought.cpu().numpy(), real.cpu().numpy()):
            pictures += [cloud] * 3
            colors += [np.full(len(cloud), -1), *(heat(rating)[place] for rating in ratings)]
        return {"difficulty": sheet_of(pictures, colors, columns=3)}

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        """reconstruction.png: a row a cloud; input, visible patches, rebuilt patches, visible and rebuilt together."""
        points, rng = clouds_to_draw(data)
        with evaluating(autocast):
            seen, rebuilt = model.reconstruct(points, rng=rng)  # type: ignore[operator]
        rows = zip(*(clouds.float().cpu().numpy() for clouds in (points, seen, rebuilt)))
        pictures, colors = [], []
        for cloud, visible, hidden in rows:
            pictures += [cloud, visible, hidden, np.concatenate([visible, hidden])]
            joint = np.repeat([0, 1], [len(visible), len(hidden)])
            colors += [np.full(len(cloud), -1), np.zeros(len(visible), int), np.ones(len(hidden), int), joint]
        draw_clouds(pictures, colors, folder / "reconstruction.png", columns=4)


def also_probed(model: nn.Module) -> dict[str, nn.Module]:
    """Encoders to probe beside the model, by the word that stands before their figures."""
    return model.also_probed() if hasattr(model, "also_probed") else {}  # type: ignore[operator]


def prefixed(name: str, metric: str) -> str:
    return f"{name}_{metric}" if name else metric


def clouds_to_draw(data: DataSplits) -> tuple[Tensor, BatchRandom]:
    """The same few clouds at every call, from the beginning to the end of a set, and random numbers to go with them."""
    loader = data.test or data.val or data.fit_set
    chosen = np.linspace(0, len(loader.dataset) - 1, min(CLOUDS_DRAWN, len(loader.dataset))).astype(int)
    batch = {key: value.to(loader.device) for key, value in loader.dataset.fetch(chosen).items()}
    rng = BatchRandom(0, loader.device, rank=0, world=1)
    return apply_all(data.eval_transform, batch, rng)["points"], rng
