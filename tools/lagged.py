"""Steps that nobody waits for: a non-finite one is left out on the device, the host hears of it some steps later."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tools.nonfinite import LeftOut, Taken
from utils.metrics import Mean

LAG = 4  # steps that may be on their way


@dataclass
class Sent:
    """What a step leaves behind until it is known whether it was finite."""

    step: Taken
    bad: Tensor  # on the host; to be read once `arrived` has happened
    arrived: torch.cuda.Event | None


class Lagged:
    """`left_out` is told of every step in order: whether it went well, or what it was."""

    def __init__(self, optimizer: torch.optim.Optimizer, means: Callable[[], Mean], left_out: LeftOut):
        self.optimizer, self.means, self.left_out = optimizer, means, left_out
        self.sent: deque[Sent] = deque()

    @torch.no_grad()
    def step(self, step: Taken, buffers: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Step the optimizer, add the losses to the means and keep the buffers, if the gradient's norm is finite;
        `buffers` are pairs of now and before the step."""
        bad = ~step.norm.isfinite()
        optimizer: Any = self.optimizer
        optimizer.found_inf = bad.float()  # a fused optimizer leaves everything as it is where this is 1
        optimizer.step()
        for now, before in buffers:
            now.copy_(torch.where(bad, before, now))
        for values in step.losses:
            self.means().add({key: value.detach().masked_fill(bad, 0) for key, value in values.items()})
        self.sent.append(Sent(step, *self._fetch(bad)))
        self.hear()

    def hear(self, everything: bool = False) -> None:
        """Look at what has arrived; wait only for what is more than LAG steps old, or if everything is asked for."""
        while self.sent:
            first = self.sent[0]
            if first.arrived is not None and not first.arrived.query():
                if len(self.sent) <= LAG and not everything:
                    return
                first.arrived.synchronize()
            self.sent.popleft()
            if bool(first.bad):
                self.means().count -= len(first.step.losses)
                self.left_out.add(first.step)
            else:
                self.left_out.went_well()

    @staticmethod
    def _fetch(bad: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
        if bad.device.type != "cuda":
            return bad, None
        host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(bad, non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        return host, arrived


def can_lag(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer can leave out a step without being told by the host: PyTorch's fused ones."""
    return all(group.get("fused") for group in optimizer.param_groups)
