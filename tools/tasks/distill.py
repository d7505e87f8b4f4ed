"""Knowledge distillation: any task's loss, and how far the outputs are from those of a teacher."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.loader import Loader
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task
from utils.errors import UserError
from utils.random import BatchRandom


class Distill(Task):
    """The loss of `task` plus `weight` times the distance of the logits to the teacher's.

    loss: "mse" over all logits (published, weight 0.1), or "kl" of the distributions, softened by `temperature` and
    scaled by its square. teacher: a checkpoint; left out, it is the float network that the run starts from.
    """

    def __init__(
        self,
        task: Task,
        weight: float = 0.1,
        loss: Literal["mse", "kl"] = "mse",
        temperature: float = 1.0,
        teacher: str | None = None,
    ):
        if weight < 0 or temperature <= 0:
            raise UserError(f"weight {weight} must be 0 or more, temperature {temperature} above 0")
        self.task, self.weight, self.loss, self.temperature = task, weight, loss, temperature
        self.teacher_checkpoint, self.wants_teacher = teacher, True
        self.watch, self.higher_is_better = task.watch, task.higher_is_better
        self.teacher: nn.Module | None = None

    def set_teacher(self, teacher: nn.Module) -> None:
        self.teacher = teacher.eval().requires_grad_(False)

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        if self.teacher is None:
            raise UserError("task distill: no teacher; name one in task.teacher, or start from a float --ckpts")
        student = Recorder(model)
        losses = self.task.losses(student, batch, rng)
        with torch.no_grad():
            truth = self.teacher(*student.inputs, **student.options)
        distance = self.distance(logits_of(student.output), logits_of(truth))
        return {**losses, "loss": losses["loss"] + self.weight * distance, "distance": distance.detach()}

    def distance(self, student: Tensor, teacher: Tensor) -> Tensor:
        if self.loss == "mse":
            return F.mse_loss(student, teacher)
        ours, theirs = (x.flatten(0, -2) / self.temperature for x in (student, teacher))
        divergence = F.kl_div(ours.log_softmax(-1), theirs.log_softmax(-1), reduction="batchmean", log_target=True)
        return divergence * self.temperature**2

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        return self.task.evaluate(model, loader, data, autocast)

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        return self.task.conclude(model, data, autocast)

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        self.task.draw(model, data, autocast, folder)


class Recorder(nn.Module):
    """A network that remembers what went in and what came out last."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.inputs: tuple[Any, ...] = ()
        self.options: dict[str, Any] = {}
        self.output: Any = None

    def forward(self, *inputs: Any, **options: Any) -> Any:
        self.inputs, self.options = inputs, options
        self.output = self.model(*inputs, **options)
        return self.output


def logits_of(output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise UserError("this network does not return logits; distillation and sensitivities need a network that does")
    return output.float()
