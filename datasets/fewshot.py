"""N-way K-shot episodes from any labelled data set: a few clouds of a few classes to learn from, others to ask about.

An episode is a function of its fold: the same on every machine.
"""

from __future__ import annotations

import numpy as np

from datasets.base import PointClouds
from utils.errors import UserError


class Episode:
    """`way` classes, `shot` training clouds each, up to `queries` test clouds each; `fold` is the seed."""

    def __init__(self, way: int, shot: int, fold: int = 0, queries: int = 20):
        for name, value, least in (("way", way, 2), ("shot", shot, 1), ("fold", fold, 0), ("queries", queries, 1)):
            if value < least:
                raise UserError(f"few_shot.{name}: {value}; use at least {least}")
        self.way, self.shot, self.fold, self.queries = way, shot, fold, queries

    def cut(self, train: PointClouds, test: PointClouds) -> tuple[PointClouds, PointClouds]:
        """Training clouds and test clouds of the episode; its classes are numbered anew."""
        rng = np.random.default_rng([self.fold, self.way, self.shot])
        classes = rng.permutation(self._large_enough(train, test))[: self.way]
        return self._pick(train, classes, self.shot, rng), self._pick(test, classes, self.queries, rng)

    def _large_enough(self, train: PointClouds, test: PointClouds) -> np.ndarray:
        """Classes with enough clouds to learn from and any to ask about."""
        learn = np.bincount(train.class_labels, minlength=train.num_classes)
        ask = np.bincount(test.class_labels, minlength=train.num_classes)
        classes = np.flatnonzero((learn >= self.shot) & (ask > 0))
        if len(classes) < self.way:
            most = np.sort(learn[ask > 0])[::-1]
            tip = f"--shot {most[self.way - 1]} or less" if len(most) >= self.way else f"--way {len(most)} or less"
            raise UserError(
                f"few-shot: {len(classes)} classes of '{train.name}' have {self.shot} training clouds, "
                f"but {self.way} are wanted; use {tip}"
            )
        return classes

    def _pick(self, data: PointClouds, classes: np.ndarray, number: int, rng: np.random.Generator) -> PointClouds:
        positions = [rng.permutation(np.flatnonzero(data.class_labels == label))[:number] for label in classes]
        chosen = data.subset(np.concatenate(positions), data.split)
        renumbered = np.zeros(data.num_classes, dtype=np.int64)
        renumbered[classes] = np.arange(len(classes))
        return PointClouds(
            chosen.points,
            renumbered[chosen.labels],
            [data.class_names[label] for label in classes],
            name=f"{data.name}, {self.way}-way {self.shot}-shot, fold {self.fold}",
            split=data.split,
            normals=chosen.normals,
            groups=chosen.groups,
            index=chosen.index,
        )
