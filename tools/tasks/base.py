"""The interface between the training loop and a task."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from datasets.loader import Loader
from datasets.transforms import apply_all
from tools.splits import DataSplits
from utils.random import BatchRandom

Autocast = Callable[[], contextlib.AbstractContextManager]


class Task:
    """Losses of a batch, figures of an evaluation, and the figure that model selection watches."""

    watch = "loss"
    higher_is_better = False
    wants_teacher = False  # whether `set_teacher` must be called before the first batch

    def set_teacher(self, teacher: nn.Module) -> None:
        """The finished network that a task compares with."""
        raise NotImplementedError

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
