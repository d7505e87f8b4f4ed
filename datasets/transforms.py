"""Augmentation and resampling of whole batches on their device, drawing from a saved generator.

A transform takes and returns a batch: a dictionary with points (B, N, 3) and whatever else belongs to each point
(`PER_POINT`). The formulas are functions of recorded draws; the classes draw and call them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from extensions import ops
from utils import quaternion
from utils.errors import UserError
from utils.random import BatchRandom

Batch = dict[str, Tensor]
PER_POINT = ("points", "seg", "normals", "features", "source")
AXES = {"x": 0, "y": 1, "z": 2}


def rotate(points: Tensor, angle: Tensor, axis: int) -> Tensor:
    """Rotate (B, N, 3) by angle (B,) about an axis; about y: rows times [[c, 0, s], [0, 1, 0], [-s, 0, c]]."""
    first, second = (axis + 2) % 3, (axis + 1) % 3  # about y these are x and z
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    rotated = points.clone()
    rotated[..., second] = cos * points[..., second] + sin * points[..., first]
    rotated[..., first] = cos * points[..., first] - sin * points[..., second]
    return rotated


def drop_to_first(ratio: Tensor, draws: Tensor) -> Tensor:
    """Indices (B, N) that replace every point whose draw (B, N) is at most the ratio (B,) by the first of its cloud."""
    own = torch.arange(draws.shape[1], device=draws.device)
    return own.where(draws > ratio[:, None], 0)


def mirror(points: Tensor, axes: Tensor) -> Tensor:
    """coord -> max(coord) - coord along the axes that are true in (B, 3)."""
    return torch.where(axes[:, None], points.amax(dim=1, keepdim=True) - points, points)


def take(batch: Batch, indices: Tensor) -> Batch:
    """Keep the points at `indices` (B, M), together with everything that belongs to them."""
    taken = dict(batch)
    for key in PER_POINT:
        if key in batch:
            value = batch[key] if batch[key].ndim == 3 else batch[key][..., None]
            gathered = ops.gather_points(value, indices)
            taken[key] = gathered if batch[key].ndim == 3 else gathered[..., 0]
    return taken


class Scale:
    """Multiply each axis by its own factor in [low, high), or all by one."""

    def __init__(self, low: float = 2 / 3, high: float = 3 / 2, isotropic: bool = False):
        if not 0 < low <= high:
            raise UserError(f"low {low}, high {high}: factors from low to high, above 0")
        self.low, self.high, self.axes = low, high, 1 if isotropic else 3

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        factors = rng.uniform(len(batch["points"]), 1, self.axes, low=self.low, high=self.high)
        scaled = {**batch, "points": batch["points"] * factors}
        if "normals" in batch:  # planes that widen along an axis turn away from it
            scaled["normals"] = F.normalize(batch["normals"] / factors, dim=-1)
        return scaled


class Translate:
    """Shift by up to `distance` along each axis."""

    def __init__(self, distance: float = 0.2):
        self.distance = _at_least_zero(distance, "distance")

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        shift = rng.uniform(len(batch["points"]), 1, 3, low=-self.distance, high=self.distance)
        return {**batch, "points": batch["points"] + shift}


class ScaleTranslate:
    """Scale, then translate: the augmentation of Point-MAE and its family.

    Its part segmentation has low 0.8, high 1.25, distance 0.1 and is isotropic.
    """

    def __init__(self, low: float = 2 / 3, high: float = 3 / 2, distance: float = 0.2, isotropic: bool = False):
        self.scale, self.translate = Scale(low, high, isotropic), Translate(distance)

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        return self.translate(self.scale(batch, rng), rng)


class Center:
    """Put the mean at the origin; sizes stay."""

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        return {**batch, "points": batch["points"] - batch["points"].mean(dim=1, keepdim=True)}


class Rotate:
    """Rotate about the vertical axis by a uniform angle within +- `degrees`."""

    def __init__(self, axis: str = "y", degrees: float = 180.0):
        if axis not in AXES:
            raise UserError(f"axis: '{axis}' is not one of x, y, z")
        self.axis, self.limit = AXES[axis], math.radians(degrees)

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        angle = rng.uniform(len(batch["points"]), low=-self.limit, high=self.limit)
        turned = dict(batch)
        for key in ("points", "normals"):
            if key in batch:
                turned[key] = rotate(batch[key], angle, self.axis)
        return turned


class RotateFreely:
    """Turn by a rotation drawn evenly from all of them: for shapes whose poses mean nothing."""

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        turn = F.normalize(rng.normal(len(batch["points"]), 4), dim=1)  # a quaternion on its sphere
        turned = dict(batch)
        for key in ("points", "normals"):
            if key in batch:
                turned[key] = quaternion.rotate_cloud(turn, batch[key])
        return turned


class Jitter:
    """Add Gaussian noise, clipped."""

    def __init__(self, sigma: float = 0.01, clip: float = 0.05):
        self.sigma, self.clip = _at_least_zero(sigma, "sigma"), _at_least_zero(clip, "clip")

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        points = batch["points"]
        noise = (self.sigma * rng.normal(*points.shape)).clamp(-self.clip, self.clip)
        return {**batch, "points": points + noise}


class Dropout:
    """Replace a random share of the points, up to `max_ratio`, by the first point."""

    def __init__(self, max_ratio: float = 0.5):
        if not 0 <= max_ratio <= 1:
            raise UserError(f"max_ratio: {max_ratio}; use a share from 0 to 1")
        self.max_ratio = max_ratio

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        size, num_points, _ = batch["points"].shape
        ratio = rng.uniform(size, high=self.max_ratio)
        return take(batch, drop_to_first(ratio, rng.uniform(size, num_points)))


class Flip:
    """With probability 0.95 mirror x and y, each with probability 0.5; z is up."""

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        size = len(batch["points"])
        gate, draws = rng.uniform(size, 1), rng.uniform(size, 2)
        axes = F.pad((gate < 0.95) & (draws < 0.5), (0, 1))  # (B, 3), never z
        flipped = {**batch, "points": mirror(batch["points"], axes)}
        if "normals" in batch:
            flipped["normals"] = torch.where(axes[:, None], -batch["normals"], batch["normals"])
        return flipped


class Normalize:
    """Centre on the mean and scale the largest radius to 1."""

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        return {**batch, "points": ops.normalize(batch["points"])}


class UnitCube:
    """Scale the largest extent along x, y, z to 1, then centre on the mean: what registration works on."""

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        points = batch["points"]
        extent = (points.amax(dim=1) - points.amin(dim=1)).amax(dim=1)[:, None, None]
        points = points / extent.clamp(min=1e-12)
        return {**batch, "points": points - points.mean(dim=1, keepdim=True)}


class RandomPoints:
    """Keep a random subset, another one for every cloud."""

    def __init__(self, num_points: int):
        self.num_points = num_points

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        size, available, _ = batch["points"].shape
        _check_available(self.num_points, available)
        order = rng.uniform(size, available).argsort(dim=1)
        return take(batch, order[:, : self.num_points])


class FarthestPoints:
    """Keep an even sample: the first `num_points` of farthest-point sampling. No randomness."""

    def __init__(self, num_points: int, skip_near_origin: bool = True):
        self.num_points, self.skip_near_origin = num_points, skip_near_origin

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        _check_available(self.num_points, batch["points"].shape[1])
        indices = ops.farthest_point_sample(batch["points"], self.num_points, skip_near_origin=self.skip_near_origin)
        return take(batch, indices)


class Resample:
    """Fine-tuning's sampling: farthest points to a pool, then a random subset of it that the whole batch shares."""

    def __init__(self, num_points: int, pool: int | None = None, skip_near_origin: bool = True):
        self.num_points, self.skip_near_origin = num_points, skip_near_origin
        self.pool = default_pool(num_points) if pool is None else pool
        if self.pool < num_points:
            raise UserError(f"pool: {self.pool} points cannot give num_points {num_points}")

    def __call__(self, batch: Batch, rng: BatchRandom) -> Batch:
        available = batch["points"].shape[1]
        _check_available(self.num_points, available)
        pool = FarthestPoints(min(self.pool, available), self.skip_near_origin)(batch, rng)
        choice = rng.permutation(pool["points"].shape[1])[: self.num_points]
        return take(pool, choice.expand(len(pool["points"]), -1))


def default_pool(num_points: int) -> int:
    """The pool sizes of Point-MAE: 1024 of 1200, 2048 of 2400, 4096 of 4800, all of 8192; else the same share."""
    return num_points if num_points >= 8192 else num_points + num_points * 176 // 1024


def apply_all(transforms: Sequence, batch: Batch, rng: BatchRandom) -> Batch:
    for transform in transforms:
        batch = transform(batch, rng)
    return batch


def _at_least_zero(value: float, name: str) -> float:
    if not value >= 0:
        raise UserError(f"{name}: {value}; use 0 or more")
    return value


def _check_available(wanted: int, available: int) -> None:
    if wanted > available:
        raise UserError(f"num_points: {wanted} asked for, but the clouds hold {available} points")
