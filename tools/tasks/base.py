"""The interface between the training loop and a task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.transforms import apply_all
from models.layers.extra import WithLosses
from tools.splits import DataSplits
from utils.random import BatchRandom

Autocast = Callable[[], contextlib.AbstractContextManager]


class Task:
    """Losses of a batch, figures of an evaluation, and the figure that model selection watches."""

    watch = "loss"
    higher_is_better = False

    def losses(self, model: nn.Module, batch: dict[str, Tensor], rng: BatchRandom) -> dict[str, Tensor]:
        """Scalars to log; `loss` is the one to minimise. `model` may be wrapped for several processes."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module, loader: Loader, data: DataSplits, autocast: Autocast) -> dict[str, float]:
        """Figures of a model in eval mode on one labelled set, cheap enough for every validation."""
        raise NotImplementedError

    def conclude(self, model: nn.Module, data: DataSplits, autocast: Autocast) -> list[dict]:
        """Result rows of the finished model: metric, value, split, protocol."""
        raise NotImplementedError

    def draw(self, model: nn.Module, data: DataSplits, autocast: Autocast, folder: Path) -> None:
        """Pictures of what the finished model does, where there is something to see."""


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
