"""The one training loop of the project. What a batch's loss is and how a model is evaluated, the task knows."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from datasets.transforms import apply_all
from tools import SCHEDULERS
from tools.experiment import Experiment
from tools.graphed import GraphedStep
from tools.lagged import Lagged, Sent, can_lag
from tools.monitor import Monitor
from tools.schedule import progress
from tools.tasks.base import Progress
from utils import dist
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.config import flatten
from utils.errors import UserError
from utils.logging import get_logger
from utils.metrics import Mean
from utils.random import BatchRandom, global_rng_state, set_global_rng_state

# options that may differ when a run is continued
MAY_CHANGE = tuple(f"runner.{key}" for key in ("epochs", "val_every", "save_every", "max_nonfinite", "compile"))
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Stopped(Exception):
    """A signal asked the run to end; everything is saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class Runner:
    """Train, validate, keep the last and the best checkpoint, continue where an earlier run ended.

    select: which weights count at the end. "val": best on validation data; "last": the last epoch;
    "test": best on the test set, as much of the field does it (optimistic; every table says so).
    bn_momentum: a scheduler that every BatchNorm's momentum follows, epoch by epoch; none: it stays as it is.
    """

    def __init__(
        self,
        epochs: int = 300,
        accumulate: int = 1,
        clip_grad: float = 0.0,
        precision: Literal["fp32", "bf16", "fp16"] = "fp32",
        compile: bool | Literal["off", "inductor", "graph"] = "off",  # YAML reads a bare off as false
        ema_decay: float = 0.0,
        sync_bn: bool = False,
        bn_momentum: dict | None = None,
        val_every: int = 1,
        save_every: int = 1,
        select: Literal["val", "last", "test"] = "val",
        max_nonfinite: int = 10,
    ):
        counts = {"epochs": epochs, "accumulate": accumulate, "val_every": val_every, "save_every": save_every}
        for name, value in (counts | {"max_nonfinite": max_nonfinite}).items():
            if value < 1:
                raise UserError(f"runner.{name}: {value}; use at least 1")
        if clip_grad < 0 or not 0 <= ema_decay < 1:
            raise UserError(f"runner: clip_grad {clip_grad} must be 0 or more, ema_decay {ema_decay} from 0 to below 1")
        self.epochs, self.accumulate, self.clip_grad, self.precision = epochs, accumulate, clip_grad, precision
        self.compile = compile if isinstance(compile, str) else ("inductor" if compile else "off")
        self.ema_decay, self.sync_bn = ema_decay, sync_bn
        self.val_every, self.save_every, self.select = val_every, save_every, select
        self.max_nonfinite = max_nonfinite
        self.bn_schedule = SCHEDULERS.build(bn_momentum, "runner.bn_momentum") if bn_momentum else None
        self.log = get_logger()

    def prepare(
        self,
        model: nn.Module,
        task,
        data,
        optimizer: torch.optim.Optimizer | None,  # None where nothing is trained
        schedule: Callable[[float, float, int], float],
        experiment: Experiment,
        *,
        config: dict[str, Any],
        seed: int,
        point_mae_schedule: bool = False,
    ) -> None:
        """Take over what a run consists of; the model is on its device already."""
        self.model, self.task, self.data, self.schedule = model, task, data, schedule
        self.experiment, self.config, self.point_mae_schedule = experiment, config, point_mae_schedule
        self.device = next(model.parameters()).device
        if optimizer is not None:
            self.optimizer, self.base_lr = optimizer, optimizer.param_groups[0]["lr"]
        self.norms = [(norm, norm.momentum) for norm in model.modules() if isinstance(norm, _BatchNorm)]
        averaging = get_ema_multi_avg_fn(self.ema_decay)
        self.ema = AveragedModel(model, multi_avg_fn=averaging, use_buffers=True) if self.ema_decay else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == "fp16")
        self.rng = BatchRandom(seed + 1, self.device)
        self.total_epochs = self.epochs + int(point_mae_schedule)
        self.steps = len(data.train) // self.accumulate
        if self.steps == 0:
            raise UserError(
                f"runner.accumulate: {self.accumulate} batches a step, but an epoch has {len(data.train)}; use fewer"
            )
        if self.select == "test" and data.test is None:
            raise UserError("runner.select: 'test', but there is no data.test; name one or select by 'val'")
        self.epoch, self.step = 0, 0
        self.best: dict[str, Any] | None = None  # value, metric, epoch
        self.means, self.skipped, self.nonfinite_in_a_row = Mean(), 0, 0
        self.lagged = None
        if optimizer is not None and self._nobody_waits() and can_lag(optimizer):
            self.lagged = Lagged(optimizer, lambda: self.means, self._skip_sent, self._went_well)

    def _nobody_waits(self) -> bool:
        """A GPU is never waited for in a step, unless somebody has to know at once how it went."""
        follows = self.ema is not None or hasattr(self.model, "after_step")
        return self.device.type == "cuda" and not follows and self.precision != "fp16"

    # ---------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Run the remaining epochs."""
        wrapped = self._wrap()
        monitor = Monitor(self.experiment.folder, self.total_epochs, self.steps, self.epoch)
        try:
            with self._signals():
                while self.epoch < self.total_epochs:
                    self._train_epoch(wrapped, monitor)
        finally:
            monitor.close()

    def _train_epoch(self, wrapped: nn.Module, monitor: Monitor) -> None:
        started, first_step = time.monotonic(), self.step
        monitor.start_epoch(self.epoch, self.step)
        self._set_bn_momentum()
        wrapped.train()
        batches = self.data.train.epoch(self.epoch, skip=self.step * self.accumulate)
        while self.step < self.steps:
            self._set_learning_rate()
            self.task.before_step(self.model, Progress(self.epoch, self.total_epochs, self.step, self.steps))
            norm = self._train_step(wrapped, batches)
            self.step += 1
            monitor.step(self.step, lambda norm=norm: self._describe(norm))
            if dist.any_process(self.signal is not None, self.device):
                self._stop(monitor)
        clouds = (self.steps - first_step) * self.accumulate * self.data.train.batch_size
        self._finish_epoch(monitor, clouds / (time.monotonic() - started), started)

    def _train_step(self, wrapped: nn.Module, batches: Iterator[dict[str, Tensor]]) -> Tensor:
        """One optimizer step over `accumulate` batches, gradients averaged; a non-finite one is left out."""
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        taken: list[dict[str, Tensor]] = []
        shown: list[dict[str, Tensor]] = []
        for index in range(self.accumulate):
            taken.append(apply_all(self.data.augment, next(batches), self.rng))
            with self._no_sync(index < self.accumulate - 1):
                shown.append((self.graphed or self._forward_backward(wrapped))(taken[-1]))
        self.scaler.unscale_(self.optimizer)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.clip_grad or float("inf"))
        if self.lagged is not None:
            self.lagged.step(norm, self.step + 1, taken, shown, zip(self.model.buffers(), buffers))
        elif torch.isfinite(norm):
            self.scaler.step(self.optimizer)
            self._went_well()
            for losses in shown:
                self.means.add(losses)
            self.task.after_step(self.model)
            if self.ema is not None:
                self.ema.update_parameters(self.model)
        else:
            self._skip_step(taken, shown, norm, buffers, self.step + 1)
        self.scaler.update()
        if self.graphed is None:
            self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _forward_backward(self, wrapped: nn.Module) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
        """Losses of a batch; their gradients are added to what is there."""

        def compute(batch: dict[str, Tensor]) -> dict[str, Tensor]:
            with self.autocast():
                losses = self.task.losses(wrapped, batch, self.rng)
                self.scaler.scale(losses["loss"] / self.accumulate).backward()
            return losses

        return compute

    def _went_well(self) -> None:
        self.nonfinite_in_a_row = 0

    def _skip_sent(self, sent: Sent) -> None:
        self._skip_step(sent.batches, sent.losses, sent.norm, [], sent.number)

    def _finish_epoch(self, monitor: Monitor, speed: float, started: float) -> None:
        self._hear_all()
        dist.broadcast_buffers(self.eval_model())  # BatchNorm statistics are each process's own while training
        record: dict[str, Any] = {"epoch": self.epoch, "step": (self.epoch + 1) * self.steps}
        record |= {f"train/{key}": value for key, value in self.means.reduced().items()}
        record |= {"train/lr": self.learning_rate, "train/samples_per_sec": round(speed, 1)}
        if self.skipped:
            record["train/skipped_steps"] = self.skipped
        self.epoch, self.step, self.means = self.epoch + 1, 0, Mean()
        note = ""
        if self.epoch % self.val_every == 0 or self.epoch == self.total_epochs:
            record |= self._validate()
            if self._is_best(record):
                note = "  best so far"
            if dist.is_main():
                monitor.pictures(self.task.pictures(self.eval_model(), self.data, self.autocast), record["step"])
        record["time/epoch"] = round(time.monotonic() - started, 2)
        monitor.end_epoch(self.epoch - 1, record, note)
        if note:
            self.save(self.experiment.best)
        if self.epoch % self.save_every == 0 or self.epoch == self.total_epochs:
            self.save(self.experiment.last)

    def _validate(self) -> dict[str, float]:
        loader = self.data.test if self.select == "test" else self.data.val
        if loader is None:
            return {}
        figures = self.task.evaluate(self.eval_model(), loader, self.data, self.autocast)
        return {f"{self._judged_on}/{key}": value for key, value in figures.items()}

    @property
    def _judged_on(self) -> str:
        return "test" if self.select == "test" else "val"

    def _is_best(self, record: dict[str, Any]) -> bool:
        """True where the watched metric improved; the first of equals stays."""
        key = f"{self._judged_on}/{self.task.watch}"
        if self.select == "last" or not math.isfinite(record.get(key, math.nan)):
            return False
        value = record[key]
        sign = 1 if self.task.higher_is_better else -1
        better = self.best is None or sign * value > sign * self.best["value"]
        if better:
            self.best = {"value": value, "metric": key, "epoch": self.epoch}
        return better

    @property
    def learning_rate(self) -> float:
        return self.optimizer.param_groups[0]["lr"]

    def _set_learning_rate(self) -> None:
        where = progress(self.epoch, self.step, self.steps, self.point_mae_schedule)
        rate = self.schedule(self.base_lr, where, self.epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group.get("lr_scale", 1.0)

    def _set_bn_momentum(self) -> None:
        if self.bn_schedule is not None:
            for norm, own in self.norms:
                norm.momentum = None if own is None else self.bn_schedule(own, self.epoch, self.epochs)

    def _describe(self, norm: Tensor) -> dict[str, str]:
        figures = {key: f"{value:.4g}" for key, value in self.means.compute().items() if "/" not in key}
        return figures | {"lr": f"{self.learning_rate:.2e}", "grad": f"{float(norm):.2g}"}

    def models(self) -> list[nn.Module]:
        """The model, and its moving average where there is one."""
        return [self.model] if self.ema is None else [self.model, self.ema.module]

    def eval_model(self) -> nn.Module:
        """The weights that count: the moving average where there is one."""
        return (self.ema.module if self.ema is not None else self.model).eval()

    # ---------------------------------------------------------------- precision, processes, signals

    def autocast(self) -> contextlib.AbstractContextManager:
        return torch.autocast(self.device.type, DTYPES[self.precision], enabled=self.precision != "fp32")

    def _wrap(self) -> nn.Module:
        """The model as it trains: shared by processes, compiled. The plain one is what is saved and evaluated."""
        self.shared = None
        if dist.world_size() > 1:
            ids = [self.device.index] if self.device.type == "cuda" else None
            self.shared = DistributedDataParallel(self.model, device_ids=ids)
        wrapped = self.shared or self.model
        self.graphed = None
        if self.compile == "graph":
            self._check_graph()
            self.graphed = GraphedStep(self.model, self.rng, self._forward_backward(wrapped))
        return torch.compile(wrapped) if self.compile == "inductor" else wrapped  # type: ignore[return-value]

    def _check_graph(self) -> None:
        reasons = {
            "a CUDA device": self.device.type == "cuda",
            "one process": dist.world_size() == 1,
            "runner.accumulate 1": self.accumulate == 1,
            "runner.precision fp32 or bf16": self.precision != "fp16",
            "a model whose losses stay the same over the epochs": not hasattr(self.model, "set_progress"),
        }
        missing = [reason for reason, there in reasons.items() if not there]
        if missing:
            raise UserError(f"runner.compile: graph needs {' and '.join(missing)}; use runner.compile=off")

    def _hear_all(self) -> None:
        """Wait for the steps that are on their way, before their figures are used or saved."""
        if self.lagged is not None:
            self.lagged.hear(everything=True)

    def _no_sync(self, accumulating: bool) -> contextlib.AbstractContextManager:
        """Exchange gradients once a step, not once a batch."""
        return self.shared.no_sync() if accumulating and self.shared is not None else contextlib.nullcontext()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and SIGINT set a flag that the loop looks at after each step."""
        self.signal: int | None = None

        def note(number: int, _frame) -> None:
            self.signal = number

        old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _stop(self, monitor: Monitor) -> None:
        self._hear_all()
        self.save(self.experiment.last)
        monitor.close()
        number = self.signal or signal.SIGTERM  # another process may have got it
        raise Stopped(
            f"stopped by {signal.Signals(number).name} in epoch {self.epoch + 1}, step {self.step}/{self.steps}; "
            f"everything is saved in {self.experiment.last}; continue with the same command and --resume",
            number,
        )

    def _skip_step(
        self,
        batches: list[dict[str, Tensor]],
        shown: list[dict[str, Tensor]],
        norm: Tensor,
        buffers: list[Tensor],
        number: int,
    ) -> None:
        """Leave weights and statistics as they were; keep the clouds for a look; give up after too many in a row."""
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), buffers):
                buffer.copy_(before)
        self.skipped += 1
        self.nonfinite_in_a_row += 1
        where = f"epoch {self.epoch + 1}, step {number}"
        worst = next((losses for losses in shown if not torch.isfinite(losses["loss"])), shown[-1])
        figures = ", ".join(f"{key} {float(value.detach()):.4g}" for key, value in worst.items())
        if self.precision == "fp16" and self.nonfinite_in_a_row < self.max_nonfinite:
            self.log.info(f"{where}: fp16 overflow, step left out and loss scale lowered")
            return
        path = self.experiment.folder / f"nonfinite-rank{dist.rank()}.pth"
        save_checkpoint(path, {key: torch.cat([batch[key] for batch in batches]).cpu() for key in batches[0]})
        self.log.warning(f"{where}: gradient norm {float(norm)} ({figures}); step left out, the batch is in {path}")
        if self.nonfinite_in_a_row >= self.max_nonfinite:
            raise UserError(
                f"{self.nonfinite_in_a_row} steps in a row were not finite, last at {where} ({figures}, "
                f"lr {self.learning_rate:.2e}); the batch is in {path}; lower optimizer.lr, set "
                "runner.clip_grad or use runner.precision fp32"
            )

    # ---------------------------------------------------------------- state

    def save(self, path: Path) -> None:
        """Everything that a bit-identical continuation needs."""
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
                "skipped": [self.skipped, self.nonfinite_in_a_row],
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
        self.model.load_state_dict(state["model"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        rule = "best on test (optimistic)" if self.select == "test" else "best on val"
        return rule, state["best"]["epoch"]

    def resume(self) -> str:
        """Continue from the last checkpoint of the experiment folder; says from where."""
        state = read_checkpoint(self.experiment.last)
        if state.get("format") != 1:
            raise UserError(f"{self.experiment.last}: not a checkpoint of this runner; start from it with --ckpts")
        made_by = (len(state["processes"]), state["device"])
        if made_by != (dist.world_size(), self.device.type):
            raise UserError(
                f"{self.experiment.last}: made by {made_by[0]} process(es) on {made_by[1]}, now {dist.world_size()} on "
                f"{self.device.type}; use the same, or start a new run from it with --ckpts"
            )
        self._check_unchanged(state["config"])
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ema is not None:
            self.ema.load_state_dict(state["ema"])
        self.epoch, self.step, self.best = state["epoch"], state["step"], state["best"]
        self.skipped, self.nonfinite_in_a_row = state["skipped"]
        own = state["processes"][dist.rank()]
        self.means.set_state(own["means"])
        self.rng.set_state(state["rng"])
        set_global_rng_state(own["rng"])
        return f"continuing at epoch {self.epoch + 1}, step {self.step}"

    def _check_unchanged(self, old: dict[str, Any]) -> None:
        """Another configuration would be another run; only how long and how often may change."""
        before, now = (dict(flatten({**config, "device": None})) for config in (old, self.config))
        for key in [*now, *before]:
            if before.get(key) != now.get(key) and not (
                key in MAY_CHANGE or key.endswith((".path", ".root", ".cache"))
            ):
                raise UserError(
                    f"{key}: {now.get(key)} now, but {before.get(key)} in the run to continue; use its "
                    f"{self.experiment.folder / 'config.yaml'}, or start a new run from it with --ckpts"
                )
