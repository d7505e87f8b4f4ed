"""How a network hands over losses of its own while it trains: a regulariser, a sampler's terms."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class WithLosses(NamedTuple):
    """answers: what the task judges, one for each nested sample, usually one. losses: `loss` is added to the task's
    loss, everything is logged. summed: the task's losses of several answers are summed instead of averaged."""

    answers: tuple[Any, ...]
    losses: dict[str, Tensor]
    summed: bool = False
