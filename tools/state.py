"""What a run has come to, as checkpoints hold it: written, read, and continued under an unchanged configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tools.experiment import Experiment
from tools.nonfinite import LeftOut
from utils import dist
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import flatten
from utils.errors import UserError
from utils.metrics import Mean
from utils.random import BatchRandom, global_rng_state, set_global_rng_state

# options that may differ when a run is continued
MAY_CHANGE = tuple(f"runner.{key}" for key in ("epochs", "val_every", "save_every", "max_nonfinite", "compile"))


class RunState:
    """Everything that a bit-identical continuation needs."""

    experiment: Experiment
    config: dict[str, Any]
    select: str
    device: torch.device
    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: AveragedModel | None
    rng: BatchRandom  # of augmentations and masks
    means: Mean  # of the losses of this epoch
    left_out: LeftOut
    epoch: int
    step: int  # of this epoch
    best: dict[str, Any] | None  # value, metric, epoch

    def save(self, path: Path) -> None:
        own = dist.gather_objects({"rng": global_rng_state(), "means": self.means.state()})
        if not dist.is_main():
            return
        save_checkpoint(
            path,
            {
                "format": 1,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "ema": self.ema.state_dict() if self.ema is not None else None,
                "epoch": self.epoch,
                "step": self.step,
                "skipped": [self.left_out.number, self.left_out.in_a_row],
                "best": self.best,
                "device": self.device.type,
                "rng": self.rng.state(),
                "processes": own,
                "config": self.config,
            },
        )

    def load_best(self) -> tuple[str, int]:
        """Put the best weights into the model; says how they were chosen, and their epoch."""
        state = read_checkpoint(self.experiment.best)
        self._load_weights(state)
        rule = "best on test (optimistic)" if self.select == "test" else "best on val"
        return rule, state["best"]["epoch"]

    def resume(self) -> str:
        """Continue from the last checkpoint of the experiment folder; says from where."""
        state = read_checkpoint(self.experiment.last)
        self._check_continues(state)
        self._load_weights(state)
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.left_out.number, self.left_out.in_a_row = state["skipped"]
        own = state["processes"][dist.rank()]
        self.means.set_state(own["means"])
        self.rng.set_state(state["rng"])
        set_global_rng_state(own["rng"])
        return f"continuing at epoch {self.epoch + 1}, step {self.step}"

    def _load_weights(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])

    def _check_continues(self, state: dict[str, Any]) -> None:
        """Same kind of machine, same number of processes, same configuration."""
        last = self.experiment.last
        if state.get("format") != 1:
            raise UserError(f"{last}: not a checkpoint of this runner; start from it with --ckpts")
        made_by = (len(state["processes"]), state["device"])
        if made_by != (dist.world_size(), self.device.type):
            raise UserError(
                f"{last}: made by {made_by[0]} process(es) on {made_by[1]}, now {dist.world_size()} on "
                f"{self.device.type}; use the same, or start a new run from it with --ckpts"
            )
        changed = changed_option(state["config"], self.config)
        if changed is not None:
            key, before, now = changed
            raise UserError(
                f"{key}: {now} now, but {before} in the run to continue; use its "
                f"{self.experiment.folder / 'config.yaml'}, or start a new run from it with --ckpts"
            )


def changed_option(old: dict[str, Any], new: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first option that differs: name, before, now. How long, how often and where files lie may change."""
    before, now = (dict(flatten({**config, "device": None})) for config in (old, new))
    for key in [*now, *before]:
        may = key in MAY_CHANGE or key.endswith((".path", ".root", ".cache"))
        if not may and before.get(key) != now.get(key):
            return key, before.get(key), now.get(key)
    return None
