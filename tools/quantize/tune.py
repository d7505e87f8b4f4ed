"""Training a policy for a moment before it is judged, on the one training loop."""

from __future__ import annotations

from typing import Any

from torch import nn

from tools.build import build_optimizer, build_schedule
from tools.experiment import Experiment
from tools.runner import Runner


class Tuner:
    """Every policy in a folder of its own below the search's, the weights of the last epoch."""

    def __init__(self, runner: Runner, config: dict[str, Any], experiment: Experiment, epochs: int, seed: int):
        self.runner, self.config, self.folder, self.epochs, self.seed = runner, config, experiment.folder, epochs, seed
        self.count = 0

    def __call__(self, model: nn.Module, bits: list[int]) -> nn.Module:
        self.count += 1
        options = {**self.config.get("runner", {}), "epochs": self.epochs, "val_every": self.epochs, "select": "last"}
        runner = Runner(**options)
        experiment = Experiment(str(self.folder), "tune", str(self.count), overwrite=True)
        experiment.open()
        runner.prepare(
            model.requires_grad_(True),
            self.runner.task,
            self.runner.data,
            build_optimizer(self.config, model),
            build_schedule(self.config),
            experiment,
            config=self.config,
            seed=self.seed,
        )
        runner.fit()
        return runner.eval_model()
