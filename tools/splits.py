"""Training, validation and test data of a run, and what happens to their batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from datasets import DATASETS, TRANSFORMS
from datasets.base import PointClouds
from datasets.fewshot import Episode
from datasets.loader import Loader
from utils.errors import UserError
from utils.logging import get_logger
from utils.schema import check_arguments, check_required, hint, join


class DataSplits:
    """Loaders for train, val and test. Validation data are held out from the training data unless `val` names others.

    batch_size counts the clouds of all processes together. `augment` transforms training batches, `eval_transform` all
    others. classes: only clouds of these classes. label_fraction keeps a share of each class of the training data (at
    least one cloud). few_shot cuts an episode out of both: options as of `datasets.fewshot.Episode`.
    """

    def __init__(
        self,
        train: dict,
        test: dict | None = None,
        val: dict | None = None,
        val_fraction: float = 0.1,
        label_fraction: float = 1.0,
        classes: list[str] | None = None,
        few_shot: dict | None = None,
        batch_size: int = 32,
        eval_batch_size: int = 64,
        augment: list[dict] | None = None,
        eval_transform: list[dict] | None = None,
        resident: bool = False,
        *,
        seed: int = 0,
        device: torch.device | None = None,
    ):
        for name, value in (("val_fraction", val_fraction), ("label_fraction", label_fraction)):
            if not 0 <= value <= 1:
                raise UserError(f"data.{name}: {value} is not a share; use a number from 0 to 1")
        device = device or torch.device("cpu")
        self.augment = [TRANSFORMS.build(cfg, f"data.augment.{i}") for i, cfg in enumerate(augment or [])]
        self.eval_transform = [
            TRANSFORMS.build(cfg, f"data.eval_transform.{i}") for i, cfg in enumerate(eval_transform or [])
        ]
        full = DATASETS.build(train, "data.train")
        test_set = DATASETS.build(test, "data.test") if test else None
        val_set = DATASETS.build(val, "data.val") if val else None
        _check_classes(full, val=val_set, test=test_set)
        if classes is not None:
            full = only_classes(full, classes)
            val_set = val_set and only_classes(val_set, classes)
            test_set = test_set and only_classes(test_set, classes)
        if few_shot is not None:
            full, val_set, test_set = cut_episode(few_shot, full, val_set, test_set)
        train_set = full
        if val_set is None and val_fraction > 0:
            train_set, val_set = hold_out(full, val_fraction, seed=0)
        if label_fraction < 1:
            train_set = keep_share(train_set, label_fraction, seed)
        self.num_classes, self.class_names = full.num_classes, full.class_names
        self.part_names, self.part_category, self.num_parts = full.part_names, full.part_category, len(full.part_names)
        self.train = Loader(train_set, batch_size, device, train=True, seed=seed, resident=resident)
        self.fit_set = Loader(train_set, eval_batch_size, device)  # training data in order, for probes
        self.val = Loader(val_set, eval_batch_size, device) if val_set else None
        self.test = Loader(test_set, eval_batch_size, device) if test_set else None

    def describe(self) -> str:
        parts = []
        for name, loader in (("train", self.train), ("val", self.val), ("test", self.test)):
            if loader is not None:
                data = loader.dataset
                parts.append(f"{name} {len(data)} x {data.num_points} ({data.name}, {data.fingerprint()})")
        labels = f"{self.num_classes} classes" + (f", {self.num_parts} parts" if self.num_parts else "")
        return f"data: {', '.join(parts)}; {labels}; batch {self.train.batch_size}"


def check_data(cfg: dict[str, Any], where: str = "data") -> None:
    """Check every data set and transform that is named, before any file is read."""
    for key in ("train", "val", "test"):
        if cfg.get(key) is not None:
            DATASETS.check(cfg[key], join(where, key))
    for key in ("augment", "eval_transform"):
        for index, transform in enumerate(cfg.get(key) or []):
            TRANSFORMS.check(transform, f"{where}.{key}.{index}")
    if cfg.get("few_shot") is not None:
        place, what = join(where, "few_shot"), "section 'few_shot'"
        check_arguments(Episode, cfg["few_shot"], place, what)
        check_required(Episode, cfg["few_shot"], place, what)


def cut_episode(
    cfg: dict, train: PointClouds, val: PointClouds | None, test: PointClouds | None
) -> tuple[PointClouds, None, PointClouds]:
    """The clouds to learn from and to be asked about."""
    if test is None or val is not None:
        raise UserError(
            "data.few_shot: takes its queries from data.test, which must be there, and goes without data.val"
        )
    support, query = Episode(**cfg).cut(train, test)
    return support, None, query


def _check_classes(train: PointClouds, **others: PointClouds | None) -> None:
    """The same classes in the same order, or labels would mean different things."""
    for split, other in others.items():
        if other is not None and other.part_names != train.part_names:
            raise UserError(
                f"data.{split}: the parts of '{other.name}' are named otherwise than those of '{train.name}'"
            )
        if other is not None and other.class_names != train.class_names:
            odd = sorted(set(other.class_names) ^ set(train.class_names))
            what = f"not in both: {', '.join(odd[:5])}" if odd else "in another order"
            raise UserError(
                f"data.{split}: '{other.name}' has {other.num_classes} classes, the training data '{train.name}' have "
                f"{train.num_classes} ({what}); use data with the same class names"
            )


def only_classes(dataset: PointClouds, classes: list[str]) -> PointClouds:
    """The clouds of the named classes; the classes keep their numbers."""
    if not classes:
        raise UserError("data.classes: an empty list leaves no clouds; name classes, or leave it out for all")
    for name in classes:
        if name not in dataset.class_names:
            raise UserError(f"data.classes: '{dataset.name}' has no class '{name}'.{hint(name, dataset.class_names)}")
    wanted = [dataset.class_names.index(name) for name in classes]
    kept = np.flatnonzero(np.isin(dataset.class_labels, wanted))
    if not len(kept):
        raise UserError(f"data.classes: '{dataset.name}' ({dataset.split}) holds no cloud of {', '.join(classes)}")
    return dataset.subset(kept, dataset.split)


def hold_out(dataset: PointClouds, fraction: float, seed: int) -> tuple[PointClouds, PointClouds]:
    """Split off a share of every class; near-duplicates (equal `groups`) stay on one side."""
    labels = dataset.class_labels
    groups = np.arange(len(dataset)) if dataset.groups is None else dataset.groups[dataset.index]
    rng, held = np.random.default_rng(seed), np.zeros(len(dataset), dtype=bool)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        wanted = round(fraction * len(members))
        for group in rng.permutation(np.unique(groups[members])):
            if held[members].sum() >= wanted:
                break
            held |= groups == group
    if not held.any() or held.all():
        raise UserError(f"data.val_fraction: {fraction} of {len(dataset)} clouds leaves one side empty")
    return dataset.subset(np.flatnonzero(~held), dataset.split), dataset.subset(np.flatnonzero(held), "val")


def keep_share(dataset: PointClouds, fraction: float, seed: int) -> PointClouds:
    """A random share of every class, at least one cloud each."""
    labels, rng = dataset.class_labels, np.random.default_rng(seed)
    kept = []
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        kept.append(members[: max(1, round(fraction * len(members)))])
    positions = np.sort(np.concatenate(kept))
    get_logger().info(f"data.label_fraction {fraction}: {len(positions)} of {len(dataset)} training clouds")
    return dataset.subset(positions, dataset.split)
