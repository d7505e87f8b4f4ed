"""The one training loop of the project. What a batch's loss is and how a model is evaluated, the task knows."""

from __future__ import annotations

import contextlib
import math
import signal
import time
from collections.abc import Callable, Iterator
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
from tools.lagged import Lagged, can_lag
from tools.monitor import Monitor
from tools.nonfinite import LeftOut, Taken
from tools.schedule import progress
from tools.signals import Signals, Stopped
from tools.state import RunState
from tools.tasks.base import Progress
from utils import dist
from utils.errors import UserError
from utils.metrics import Mean
from utils.random import BatchRandom

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Runner(RunState):
    """Train, validate, keep the last and the best checkpoint, continue where an earlier run ended.

    select: which weights count at the end. "val": best on validation data; "last": the last epoch;
    "test": best on the test set, as much of the field does it (optimistic; every table says so).
    bn_momentum: a scheduler that every BatchNorm's momentum follows, epoch by epoch; none: it stays as it is.
    layer_decay: a block's learning rate is that of the block behind it times this; see `tools.optim`.
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
        layer_decay: float = 1.0,
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
        if not 0 < layer_decay <= 1:
            raise UserError(f"runner.layer_decay: {layer_decay}; use a share above 0, or 1 for one rate everywhere")
        self.epochs, self.accumulate, self.clip_grad, self.precision = epochs, accumulate, clip_grad, precision
        self.compile = compile if isinstance(compile, str) else ("inductor" if compile else "off")
        self.ema_decay, self.sync_bn = ema_decay, sync_bn
        self.val_every, self.save_every, self.select = val_every, save_every, select
        self.max_nonfinite = max_nonfinite
        self.bn_schedule = SCHEDULERS.build(bn_momentum, "runner.bn_momentum") if bn_momentum else None

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
        double_step: bool = False,
    ) -> None:
        """Take over what a run consists of; the model is on its device already."""
        self.model, self.task, self.data, self.schedule = model, task, data, schedule
        self.experiment, self.config = experiment, config
        self.point_mae_schedule, self.double_step = point_mae_schedule, double_step
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
        if double_step and self.precision == "fp16":
            raise UserError("compat.double_step: a loss scale allows one step a batch; use precision bf16 or fp32")
        if self.select == "test" and data.test is None:
            raise UserError("runner.select: 'test', but there is no data.test; name one or select by 'val'")
        if optimizer is not None and self.compile == "graph":
            self._check_graph()
        self.epoch, self.step = 0, 0
        self.best = None
        self.means, self.left_out = Mean(), LeftOut(experiment.folder, self.max_nonfinite, self.precision == "fp16")
        self.lagged = None
        if optimizer is not None and self._nobody_waits() and can_lag(optimizer):
            self.lagged = Lagged(optimizer, lambda: self.means, self.left_out)

    def _nobody_waits(self) -> bool:
        """A GPU is never waited for in a step, unless somebody has to know at once how it went."""
        follows = self.ema is not None or hasattr(self.model, "after_step") or self.double_step
        return self.device.type == "cuda" and not follows and self.precision != "fp16"

    # ---------------------------------------------------------------- the loop

    def fit(self) -> None:
        """Run the remaining epochs."""
        wrapped = self._wrap()
        monitor = Monitor(self.experiment.folder, self.total_epochs, self.steps, self.epoch)
        try:
            with Signals() as self.signals:
                while self.epoch < self.total_epochs:
                    self._train_epoch(wrapped, monitor)
        finally:
            monitor.close()
        self.left_out.check(self.total_epochs * self.steps)

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
            if dist.any_process(self.signals.noted is not None, self.device):
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
        norm = self._clip(math.inf if self.double_step else self.clip_grad or math.inf)
        step = Taken(self.epoch + 1, self.step + 1, taken, shown, norm, self.learning_rate)
        if self.lagged is not None:
            self.lagged.step(step, zip(self.model.buffers(), buffers))
        elif torch.isfinite(norm):
            self._update(shown)
        else:
            self._put_back(buffers)
            self.left_out.add(step)
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

    def _clip(self, limit: float) -> Tensor:
        """Shorten the gradient to at most `limit`; its norm before."""
        return nn.utils.clip_grad_norm_(self.model.parameters(), limit)

    def _update(self, shown: list[dict[str, Tensor]]) -> None:
        """Change the weights, and all that follows them."""
        if self.double_step:  # a step by the gradient as it is, then one by the same gradient, clipped
            self.optimizer.step()
            self._clip(self.clip_grad or math.inf)
        self.scaler.step(self.optimizer)
        self.left_out.went_well()
        for losses in shown:
            self.means.add(losses)
        self.task.after_step(self.model)
        if self.ema is not None:
            self.ema.update_parameters(self.model)

    @torch.no_grad()
    def _put_back(self, buffers: list[Tensor]) -> None:
        """BatchNorm statistics and the like, as they were before the step."""
        for buffer, before in zip(self.model.buffers(), buffers):
            buffer.copy_(before)

    def _finish_epoch(self, monitor: Monitor, speed: float, started: float) -> None:
        self._hear_all()
        dist.broadcast_buffers(self.eval_model())  # BatchNorm statistics are each process's own while training
        record: dict[str, Any] = {"epoch": self.epoch, "step": (self.epoch + 1) * self.steps}
        record |= {f"train/{key}": value for key, value in self.means.reduced().items()}
        record |= {"train/lr": self.learning_rate, "train/samples_per_sec": round(speed, 1)}
        if self.left_out.number:
            record["train/skipped_steps"] = self.left_out.number
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
        group = self.optimizer.param_groups[0]
        return group["lr"] / group.get("lr_scale", 1.0)

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

    def _stop(self, monitor: Monitor) -> None:
        self._hear_all()
        self.save(self.experiment.last)
        monitor.close()
        number = self.signals.noted or signal.SIGTERM  # another process may have got it
        raise Stopped(
            f"stopped by {signal.Signals(number).name} in epoch {self.epoch + 1}, step {self.step}/{self.steps}; "
            f"everything is saved in {self.experiment.last}; continue with the same command and --resume",
            number,
        )
