"""Retrieval: a classifier's vectors, every cloud of a set ranked against all others of it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from datasets.loader import Loader
from tools.plot import plot_lines
from tools.probe import extract_features
from tools.splits import DataSplits
from tools.tasks.base import Autocast
from tools.tasks.classify import Classify
from utils.metrics import Ranking, rank_by_distance


class Retrieve(Classify):
    """Trained as a classifier; judged by mean average precision (mAP), the mean over classes, of the vectors before a
    network's last layer (`model.retrieval_vector`, else `model.encode`).

    Every cloud is a query once, the others of the same set are ranked by Euclidean distance, those of its class are
    right. Clouds that are alone in their class are no queries.
    """

    watch, higher_is_better = "map", True

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        accuracy = super().evaluate(model, loader, data, autocast)
        return {**self._ranking(model, loader, data, autocast).figures(), **accuracy}

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        if data.test is None:
            return []
        ranking = self._ranking(model, data.test, data, autocast)
        common = {"split": "test", "protocol": "each against all others, Euclidean"}
        rows: list[dict] = [{"metric": key, "value": value, **common} for key, value in ranking.figures().items()]
        rows[0]["per_class"] = {data.class_names[i]: 100 * value for i, value in ranking.class_precision().items()}
        rows[0]["curve"] = ranking.curve().tolist()
        return rows + super().conclude(model, data, autocast)

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        """precision_recall.png of the test set."""
        if data.test is None:
            return
        curve = self._ranking(model, data.test, data, autocast).curve()
        lines = {"mean over classes": list(zip(*curve))}
        plot_lines(lines, folder / "precision_recall.png", title="precision against recall", x="recall", y="precision")

    def _ranking(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> Ranking:
        features = extract_features(model, loader, data, autocast, "retrieval_vector")
        return rank_by_distance(features.x, features.y)
