"""Segmentation: a label for every point. Parts of objects, judged cloud by cloud, and classes of points in rooms.

B clouds, N points, S parts or classes. A negative label is none: it enters neither loss nor figures.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.rooms import each_room
from datasets.transforms import apply_all
from tools.draw import draw_clouds
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task, checked_smoothing, evaluating, extra_inputs, prepared
from utils import dist
from utils.errors import UserError
from utils.metrics import Confusion, PartScores
from utils.random import BatchRandom

CLOUDS_DRAWN = 4


class Segmentation(Task):
    """What both kinds share: cross entropy over the labelled points, votes, pictures."""

    higher_is_better = True

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = checked_smoothing(label_smoothing)

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        if "seg" not in batch:
            raise UserError("data: segmentation needs a label for every point, and these data have none ('seg')")
        logits = scores_of(model, batch).float().flatten(0, 1)  # (B * N, S)
        truth = batch["seg"].flatten()
        total = F.cross_entropy(
            logits, truth.clamp(min=-1), ignore_index=-1, label_smoothing=self.label_smoothing, reduction="sum"
        )
        labelled = truth >= 0
        share = dist.all_sum(labelled.sum().float()) / dist.world_size()  # processes may hold unequal numbers of labels
        right = (logits.detach().argmax(-1) == truth).sum()
        return {"loss": total / share.clamp(min=1), "acc": 100 * right / labelled.sum().clamp(min=1)}

    def predict(self, scores: Tensor, category: Tensor, data: DataSplits) -> Tensor:
        """(B, N, S), (B,) -> labels (B, N)."""
        return scores.argmax(dim=-1)

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        """segmentation.png: a row a cloud; the truth, the prediction, and in colour the points that are wrong."""
        loader = data.test or data.val or data.fit_set
        chosen = np.linspace(0, len(loader.dataset) - 1, min(CLOUDS_DRAWN, len(loader.dataset))).astype(int)
        batch = {key: value.to(loader.device) for key, value in loader.dataset.fetch(chosen).items()}
        with evaluating(autocast):
            batch = apply_all(data.eval_transform, batch, BatchRandom(0, loader.device, rank=0, world=1))
            prediction = self.predict(scores_of(model, batch).float(), batch["label"], data)
        clouds, colors = [], []
        for points, truth, found in zip(batch["points"].cpu().numpy(), batch["seg"].cpu(), prediction.cpu()):
            clouds += [points] * 3
            wrong = found.where((found != truth) & (truth >= 0), -1)
            colors += [each.numpy() for each in (truth, found, wrong)]
        draw_clouds(clouds, colors, folder / "segmentation.png", columns=3)


class PartSegmentation(Segmentation):
    """Parts of objects of known category; a point is given one of the parts that its cloud's category has.

    vote_times: scores are averaged over the cloud as it is and that many draws, less one, of the training augmentation.
    """

    watch = "instance_iou"

    def __init__(self, label_smoothing: float = 0.0, vote_times: int = 0):
        super().__init__(label_smoothing)
        self.vote_times = vote_times

    def predict(self, scores: Tensor, category: Tensor, data: DataSplits) -> Tensor:
        return PartScores(allowed_parts(data, scores.device)).predict(scores, category)

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        return self._scores(model, loader, data, autocast, votes=1).figures()

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        if data.test is None:
            return []
        rows = self._rows(self._scores(model, data.test, data, autocast, votes=1), data)
        if self.vote_times:
            voted = self._rows(self._scores(model, data.test, data, autocast, self.vote_times), data)
            voting = f"{self.vote_times} draws, the first without augmentation"
            rows += [{**row, "metric": f"{row['metric']}_vote", "voting": voting} for row in voted]
        return rows

    def _rows(self, scores: PartScores, data: DataSplits) -> list[dict]:
        per_class = dict(zip(data.class_names, scores.category_iou().tolist()))
        rows: list[dict] = [{"metric": key, "value": value, "split": "test"} for key, value in scores.figures().items()]
        rows[0]["per_class"] = per_class
        return rows

    def _scores(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast, votes: int) -> PartScores:
        scores = PartScores(allowed_parts(data, loader.device))
        rng = BatchRandom(0, loader.device)
        with evaluating(autocast):
            for batch in prepared(loader, data):
                summed = self._votes(model, batch, data, rng, votes)
                scores.add(scores.predict(summed, batch["label"]), batch["seg"], batch["label"])
        return scores.reduce()

    def _votes(
        self, model: nn.Module, batch: dict[str, Tensor], data: DataSplits, rng: BatchRandom, votes: int
    ) -> Tensor:
        """Sum of the probabilities (B, N, S), each at the point it belongs to, whatever the augmentation reorders."""
        summed = scores_of(model, batch).float().softmax(dim=-1)
        own = torch.arange(summed.shape[1], device=summed.device).expand(len(summed), -1)
        for _ in range(votes - 1):
            draw = apply_all(data.augment, {**batch, "source": own}, rng)
            again = scores_of(model, draw).float().softmax(dim=-1)
            summed = summed.scatter_add(1, draw["source"][..., None].expand_as(again), again)
        return summed


class SemanticSegmentation(Segmentation):
    """Classes of points. Where the test data are whole rooms, overlapping blocks vote for every point of a room."""

    watch = "miou"

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        return figures(self._blocks(model, loader, data, autocast))

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        if data.test is None:
            return []
        confusion = self._whole_rooms(model, data.test, data, autocast)
        protocol = "whole rooms, overlapping blocks vote"
        if confusion is None:
            confusion, protocol = self._blocks(model, data.test, data, autocast), "points of the blocks"
        common = {"split": "test", "protocol": protocol}
        rows: list[dict] = [{"metric": key, "value": value, **common} for key, value in figures(confusion).items()]
        rows[0]["per_class"] = dict(zip(data.part_names, confusion.class_iou().tolist()))
        return rows

    def _blocks(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> Confusion:
        """Over the points of the blocks as they come, so a point in several blocks counts several times."""
        confusion = Confusion(data.num_parts, loader.device)
        with evaluating(autocast):
            for batch in prepared(loader, data):
                confusion.add(scores_of(model, batch).argmax(dim=-1).flatten(), batch["seg"].flatten())
        return confusion.reduce()

    def _whole_rooms(self, model: nn.Module, test: Loader, data: DataSplits, autocast: Autocast) -> Confusion | None:
        """Every point of every room once; None where the data are no rooms."""
        found = each_room(test.dataset)
        if found is None:
            return None
        confusion = Confusion(data.num_parts, test.device)
        for blocks, first, truth in found:
            loader = Loader(blocks, test.batch_size, test.device)
            votes = self._room_votes(model, loader, data, autocast, first, len(truth))
            labels = torch.from_numpy(truth).to(votes.device)
            if (votes.sum(dim=1) == 0)[labels >= 0].any():
                raise UserError("data.eval_transform: leaves points of a room without a prediction; keep all points")
            confusion.add(votes.argmax(dim=-1), labels)
        return confusion

    def _room_votes(
        self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast, first: int, size: int
    ) -> Tensor:
        """Sum of the probabilities that the blocks give each point of one room (n, S), over all processes."""
        votes = torch.zeros(size, data.num_parts, device=loader.device)
        with evaluating(autocast):
            for batch in prepared(loader, data):
                scores = scores_of(model, batch).float().softmax(dim=-1)
                votes.index_add_(0, (batch["source"] - first).flatten(), scores.flatten(0, 1))
        return dist.all_sum(votes)


def scores_of(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Logits of every point (B, N, S)."""
    return model(batch["points"], batch["label"], **extra_inputs(model, batch))


def figures(confusion: Confusion) -> dict[str, float]:
    """Percent: mean IoU over classes, points right, mean over classes."""
    return {
        "miou": confusion.mean_iou(),
        "acc": confusion.accuracy(),
        "macc": confusion.mean_class_accuracy(),
    }


def allowed_parts(data: DataSplits, device: torch.device) -> Tensor:
    """(categories, parts): true where a cloud of the category can have the part; all of them where nobody says."""
    if not data.part_category:
        return torch.ones(data.num_classes, data.num_parts, dtype=torch.bool, device=device)
    allowed = torch.zeros(data.num_classes, data.num_parts, dtype=torch.bool)
    allowed[torch.tensor(data.part_category), torch.arange(data.num_parts)] = True
    without = [name for name, parts in zip(data.class_names, allowed.any(dim=1).tolist()) if not parts]
    if without:
        raise UserError(f"data: no part belongs to the category {without[0]}; correct part_category")
    return allowed.to(device)
