"""The interface between the training loop and a task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from numpy import ndarray
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.transforms import apply_all
from models.layers.extra import WithLosses
from tools.splits import DataSplits
from utils.errors import UserError
from utils.random import BatchRandom

Autocast = Callable[[], contextlib.AbstractContextManager]


@dataclass(frozen=True)
class Progress:
    """Where training stands: epochs and steps of this one that are over, and how many there are."""

    epoch: int
    epochs: int
    step: int
    steps: int


class Task:
    """Losses of a batch, figures of an evaluation, and the figure that model selection watches."""

    watch = "loss"
    higher_is_better = False
    wants_teacher = False  # whether `set_teacher` must be called before the first batch

    def set_teacher(self, teacher: nn.Module) -> None:
        """The finished network that a task compares with."""
        raise NotImplementedError

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        """Scalars to log; `loss` is the one to minimise. Those with a slash in the name are details, left out of
        progress lines. `model` may be wrapped for several processes."""
        raise NotImplementedError

    def before_step(self, model: nn.Module, progress: Progress) -> None:
        """For what changes in the course of training; nothing may follow from it but from the arguments."""

    def after_step(self, model: nn.Module) -> None:
        """The optimizer has changed the weights. State kept here belongs into the model, so that it is saved."""

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        """Figures of a model in eval mode on one labelled set, cheap enough for every validation."""
        raise NotImplementedError

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        """Result rows of the finished model: metric, value, split, protocol."""
        raise NotImplementedError

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        """Pictures of what the finished model does, where there is something to see."""

    def pictures(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> dict[str, ndarray]:
        """Images (H, W, 3) by name, made at every validation by the first process alone."""
        return {}


def checked_smoothing(share: float) -> float:
    """Label smoothing of a cross entropy."""
    if not 0 <= share <= 1:
        raise UserError(f"label_smoothing: {share} is not a share; use a number from 0 to 1")
    return share


def extra_inputs(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """What a point has besides coordinates, as the keyword `features`, for networks with `extra_channels`.

    Normals first, then the features of the data set, whichever the data have.
    """
    plain = getattr(model, "module", model)  # may be wrapped for several processes
    if not getattr(plain, "extra_channels", 0):
        return {}
    found = [batch[key] for key in ("normals", "features") if key in batch]
    return {"features": torch.cat(found, dim=-1)} if found else {}


def judged(output: Any, judge: Callable[[Any], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The task's losses of a model's output, with those that the model brings along (of a sampler, a regulariser).

    `task` is then the task's own share of the loss, over all answers where there are several.
    """
    if not isinstance(output, WithLosses):
        return judge(output)
    each = [judge(answer) for answer in output.answers]
    means = {key: torch.stack([figures[key] for figures in each]).mean() for key in each[0]}
    task = means["loss"] * (len(each) if output.summed else 1)
    return {**means, **output.losses, "task": task, "loss": task + output.losses.get("loss", 0)}


def prepared(loader: Loader, data: DataSplits) -> Iterator[dict[str, Tensor]]:
    """Batches for evaluation, the same at every call."""
    rng = BatchRandom(0, loader.device)
    for batch in loader.epoch():
        yield apply_all(data.eval_transform, batch, rng)


def evaluating(autocast: Autocast) -> contextlib.ExitStack:
    """No gradients, the run's precision."""
    stack = contextlib.ExitStack()
    stack.enter_context(torch.no_grad())
    stack.enter_context(autocast())
    return stack
