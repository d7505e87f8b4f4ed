"""Steps that are not finite: they leave no trace in the model, only a count and their clouds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from utils import dist
from utils.checkpoint import save_checkpoint
from utils.errors import UserError
from utils.logging import get_logger

ADVICE = "lower optimizer.lr, set runner.clip_grad or use runner.precision fp32"


@dataclass(frozen=True)
class Taken:
    """A step as it was taken."""

    epoch: int  # from 1
    number: int  # from 1
    batches: list[dict[str, Tensor]]
    losses: list[dict[str, Tensor]]
    norm: Tensor  # of the gradient
    rate: float  # of learning


class LeftOut:
    """Counts the steps that were left out, keeps the clouds of the last for a look, and gives up after too many in a
    row. expected: steps overflow now and then, as they do in fp16; then only giving up is worth a warning."""

    def __init__(self, folder: Path, most: int, expected: bool):
        self.folder, self.most, self.expected = folder, most, expected
        self.number = self.in_a_row = 0

    def went_well(self) -> None:
        self.in_a_row = 0

    def check(self, steps: int) -> None:
        """At the end of a run of so many steps: one that learned nothing is no result."""
        if self.number >= steps:
            raise UserError(f"none of the {steps} steps was finite, so nothing was learned; {ADVICE}")

    def add(self, step: Taken) -> None:
        self.number += 1
        self.in_a_row += 1
        log, where = get_logger(), f"epoch {step.epoch}, step {step.number}"
        if self.expected and self.in_a_row < self.most:
            log.info(f"{where}: fp16 overflow, step left out and loss scale lowered")
            return
        worst = next((losses for losses in step.losses if not torch.isfinite(losses["loss"])), step.losses[-1])
        figures = ", ".join(f"{key} {float(value.detach()):.4g}" for key, value in worst.items())
        path = self.folder / f"nonfinite-rank{dist.rank()}.pth"
        clouds = {key: torch.cat([batch[key] for batch in step.batches]).cpu() for key in step.batches[0]}
        save_checkpoint(path, clouds)
        log.warning(f"{where}: gradient norm {float(step.norm)} ({figures}); step left out, the batch is in {path}")
        if self.in_a_row >= self.most:
            raise UserError(
                f"{self.in_a_row} steps in a row were not finite, last at {where} ({figures}, lr {step.rate:.2e}); "
                f"the batch is in {path}; {ADVICE}"
            )
