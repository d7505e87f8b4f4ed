"""Registration: by which rotation does a template become the source?

B pairs, N points, R repeats, n clouds of a set.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn

from datasets.loader import Loader
from extensions import ops
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task, evaluating, judged, prepared
from utils import dist
from utils.errors import UserError
from utils.quaternion import angle_between, from_euler, inverse, matrix, rotate_cloud
from utils.random import BatchRandom


class Register(Task):
    """The cloud is the template; the source is the cloud turned by angles about x, y and z within +- max_angle degrees,
    drawn anew at every training step. Evaluation draws them once: a number for every cloud, test_repeats for the test.

    supervised: with the distance of the estimated rotation to the true one; else only the Chamfer distance between the
    source and the template turned as estimated.
    """

    watch, higher_is_better = "loss", False

    def __init__(self, max_angle: float = 45.0, supervised: bool = True, test_repeats: int = 5):
        if not 0 < max_angle <= 180 or test_repeats < 1:
            raise UserError(f"max_angle {max_angle} must lie in (0, 180], test_repeats {test_repeats} above 0")
        self.limit, self.supervised, self.test_repeats = math.radians(max_angle), supervised, test_repeats

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        template = batch["points"]
        truth = from_euler(rng.uniform(len(template), 3, low=-self.limit, high=self.limit))
        pose = model(template, rotate_cloud(truth, template))
        return judged(pose, lambda pose: self.judge(pose, truth))

    def judge(self, pose: dict[str, Tensor], truth: Tensor) -> dict[str, Tensor]:
        loss = alignment(pose)
        if self.supervised:
            loss = loss + rotation_loss(pose["quaternion"], truth)
        return {"loss": loss, "rot_err": torch.rad2deg(angle_between(pose["quaternion"].detach(), truth)).mean()}

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        return self._figures(model, loader, data, autocast, repeats=1, seed=0)

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        if data.test is None:
            return []
        figures = self._figures(model, data.test, data, autocast, self.test_repeats, seed=1)
        common = {"split": "test", "protocol": f"{self.test_repeats} rotations a cloud"}
        return [{"metric": key, "value": value, **common} for key, value in figures.items()]

    def _figures(
        self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast, repeats: int, seed: int
    ) -> dict[str, float]:
        """rot_err: degrees between the rotations; rot_err_samplenet: twice that, the figure that was published; auc:
        share of pairs below a threshold, mean over thresholds of 0 to 180 degrees, of each of the two."""
        poses = from_euler(fixed_angles(repeats * len(loader.dataset), self.limit, seed)).float()
        poses = poses.unflatten(0, (repeats, -1)).to(loader.device)  # (R, n, 4)
        place = torch.zeros(int(loader.dataset.index.max()) + 1, dtype=torch.long, device=loader.device)
        place[torch.from_numpy(loader.dataset.index).to(loader.device)] = torch.arange(len(loader.dataset)).to(place)
        rows = []
        with evaluating(autocast):
            for batch in prepared(loader, data):
                template = batch["points"]
                for truth in poses[:, place[batch["index"]]]:
                    rows.append(self._rows(model(template, rotate_cloud(truth, template)), truth))
        own = torch.cat(rows).cpu().numpy() if rows else np.zeros((0, 4), np.float32)
        everyone = np.concatenate(dist.gather_objects(own))
        loss, error, apart, shift = everyone.T
        return {
            "rot_err": float(error.mean()), "rot_err_std": float(error.std()), "auc": area(error),
            "rot_err_samplenet": float(2 * error.mean()), "auc_samplenet": area(2 * error),
            "consistency": float(apart.mean()), "trans_err": float(shift.mean()), "loss": float(loss.mean()),
        }  # fmt: skip

    def _rows(self, pose: dict[str, Tensor], truth: Tensor) -> Tensor:
        """Loss, error in degrees, consistency, error of the translation of every pair (B, 4)."""
        moved = rotate_cloud(pose["quaternion"], pose["template"])
        loss = ops.chamfer_distance(pose["source"], moved, reduction="patch")
        if self.supervised:
            loss = loss + (relative(pose["quaternion"], truth)).square().sum(dim=(1, 2))
        error = torch.rad2deg(angle_between(pose["quaternion"], truth))
        return torch.stack([loss, error, consistency(pose, truth), pose["translation"].abs().mean(dim=1)], dim=1)


def alignment(pose: dict[str, Tensor]) -> Tensor:
    """Chamfer distance between the source and the template turned as estimated."""
    return ops.chamfer_distance(pose["source"], rotate_cloud(pose["quaternion"], pose["template"]))


def relative(estimate: Tensor, truth: Tensor) -> Tensor:
    """R_estimate R_truth^T - I (B, 3, 3)."""
    with torch.autocast(estimate.device.type, enabled=False):
        return matrix(estimate) @ matrix(truth).mT - torch.eye(3, device=estimate.device)


def rotation_loss(estimate: Tensor, truth: Tensor) -> Tensor:
    """Squared Frobenius norm of `relative`, mean over the batch."""
    return relative(estimate, truth).square().sum(dim=(1, 2)).mean()


def consistency(pose: dict[str, Tensor], truth: Tensor) -> Tensor:
    """Chamfer distance (B,) between the two clouds as the network got them, the source turned back as it truly lies:
    small where a sampler takes the same points of a cloud however it is turned."""
    back = rotate_cloud(inverse(truth), pose["source"])
    return ops.chamfer_distance(pose["template"], back, reduction="patch")


def area(errors: np.ndarray) -> float:
    """Share of errors (degrees) up to a threshold, mean over the thresholds 0, 0.5, ... 179.5."""
    thresholds = np.arange(0, 180, 0.5)
    return float(np.searchsorted(np.sort(errors), thresholds, side="right").mean() / len(errors))


def fixed_angles(number: int, limit: float, seed: int) -> Tensor:
    """Angles (number, 3) about x, y, z as the official code draws its sets; it draws translations of zero between."""
    generator = np.random.RandomState(seed)
    drawn = generator.uniform(-1, 1, (number, 2, 3))
    return torch.from_numpy(drawn[:, 0] * limit)
