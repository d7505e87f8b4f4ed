"""Learning rates as functions of training progress, in epochs (fractions allowed): no state to save."""

from __future__ import annotations

import math
from collections.abc import Sequence

from utils.errors import UserError


class Cosine:
    """Linear warm-up from `warmup_lr`, then half a cosine down to `min_lr`.

    shifted: the cosine starts where the warm-up ends; else, as timm and Point-MAE have it, at epoch 0.
    period: the epoch at which it is down; by default the run's last. Point-M2AE was published with 400 of 300.
    """

    def __init__(
        self,
        warmup_epochs: float = 10,
        min_lr: float = 1e-6,
        warmup_lr: float = 1e-6,
        shifted: bool = False,
        period: float | None = None,
    ):
        if period is not None and period <= warmup_epochs:
            raise UserError(f"period: {period} epochs end within the warm-up of {warmup_epochs}; use more")
        self.warmup_epochs, self.min_lr, self.warmup_lr, self.shifted = warmup_epochs, min_lr, warmup_lr, shifted
        self.period = period

    def __call__(self, base_lr: float, epoch: float, epochs: float) -> float:
        epochs = self.period or epochs
        if epoch < self.warmup_epochs:
            return self.warmup_lr + epoch * (base_lr - self.warmup_lr) / self.warmup_epochs
        if epoch >= epochs:
            return self.min_lr
        start = self.warmup_epochs if self.shifted else 0
        phase = (epoch - start) / (epochs - start)
        return self.min_lr + (base_lr - self.min_lr) * (1 + math.cos(math.pi * phase)) / 2


class Step:
    """Multiply by `gamma` every `step_epochs`, down to a share of the base rate: max(gamma ^ steps, lowest)."""

    def __init__(self, step_epochs: int = 30, gamma: float = 0.1, lowest: float = 0.0):
        if step_epochs < 1:
            raise UserError(f"step_epochs: {step_epochs}; use at least 1")
        self.step_epochs, self.gamma, self.lowest = step_epochs, gamma, lowest

    def __call__(self, base_lr: float, epoch: float, epochs: int) -> float:
        return base_lr * max(self.gamma ** (int(epoch) // self.step_epochs), self.lowest)


class Milestones:
    """Multiply by `gamma` at each of the `shares` of training, numbers from 0 to 1."""

    def __init__(self, shares: Sequence[float] = (0.6, 0.8), gamma: float = 0.1):
        if not all(0 < share < 1 for share in shares):
            raise UserError(f"shares: {shares}; each is a share of training, between 0 and 1")
        self.shares, self.gamma = shares, gamma

    def __call__(self, base_lr: float, epoch: float, epochs: int) -> float:
        return base_lr * self.gamma ** sum(epoch >= share * epochs for share in self.shares)


class Decay:
    """Exponential decay down to a share of the base rate: max(decay ^ (epoch / decay_epochs), lowest)."""

    def __init__(self, decay: float = 0.7, decay_epochs: float = 20, lowest: float = 0.01):
        if decay_epochs <= 0:
            raise UserError(f"decay_epochs: {decay_epochs}; use more than 0")
        self.decay, self.decay_epochs, self.lowest = decay, decay_epochs, lowest

    def __call__(self, base_lr: float, epoch: float, epochs: int) -> float:
        return base_lr * max(self.decay ** (epoch / self.decay_epochs), self.lowest)


class Constant:
    def __call__(self, base_lr: float, epoch: float, epochs: int) -> float:
        return base_lr


def progress(epoch: int, step: int, steps: int, point_mae: bool = False) -> float:
    """Where training stands, in epochs. `point_mae`: as upstream steps its scheduler, whole epochs and one late."""
    return float(max(epoch - 1, 0)) if point_mae else epoch + step / steps
