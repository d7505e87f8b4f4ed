"""What the command line asks of a run once everything is built: weights to start from, then training, tests, probes."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import nn

from tools.adapt import ADAPTER, is_adapted, save_adapter
from tools.frozen import save_trained
from tools.probe import PROBES, check_data, run_probes
from tools.runner import Runner
from tools.splits import DataSplits
from tools.tasks.base import Task
from tools.weights import put_weights
from utils import dist
from utils.logging import get_logger


class PlainRun:
    """Where a configuration has a section that changes this, a subclass."""

    from_finished = False  # starts from a finished model, which a continued run has to read once more
    resumes = True  # --resume continues the loop

    def __init__(self, config: dict[str, Any], model: nn.Module):
        self.config, self.model = config, model

    def load(
        self,
        args: argparse.Namespace,
        checkpoint: Mapping[str, Any],
        path: str | None,
        data: DataSplits,
        task: Task,
        device: torch.device,
    ) -> tuple[list[str], Collection[str]]:
        """Lines that say what was loaded, and the names of the tensors that were."""
        if args.svm:
            check_data(data)
        return put_weights(args, self.config, self.model, checkpoint)

    def work(self, args: argparse.Namespace, runner: Runner, seed: int) -> list[dict]:
        """Train, test or probe; result rows, each with the rule that chose the weights."""
        if args.svm:
            return labelled(run_probes(runner.eval_model(), runner.data, runner.autocast, PROBES), "as loaded")
        if args.test:
            return conclude(runner, "as loaded")
        runner.fit()
        rows = conclude(runner, "last epoch")
        if runner.best is not None and not runner.experiment.best.is_file():
            get_logger().warning(f"warning: {runner.experiment.best} is gone; only the last epoch is tested")
        elif runner.best is not None:
            selection, epoch = runner.load_best()
            rows += [{**row, "best_epoch": epoch} for row in conclude(runner, selection)]
        if dist.is_main():
            save_trained_part(runner)
        return rows


def conclude(runner: Runner, selection: str) -> list[dict]:
    return labelled(runner.task.conclude(runner.eval_model(), runner.data, runner.autocast), selection)


def labelled(rows: list[dict], selection: str) -> list[dict]:
    return [{**row, "selection": selection} for row in rows]


def save_trained_part(runner: Runner) -> None:
    """Beside a frozen backbone: what was trained, alone."""
    model, folder = runner.eval_model(), runner.experiment.folder
    if is_adapted(runner.model):
        save_adapter(model, runner.config, folder / ADAPTER)
    else:
        save_trained(model, folder, runner.experiment.read_json("environment.json")["start"])
