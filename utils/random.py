"""Randomness that is saved, resumed, and independent of the number of processes."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor

from utils import dist


def seed_everything(seed: int, rank: int = 0) -> None:
    """Seed the global generators (dropout and the like); each process draws its own numbers."""
    random.seed(seed + rank)
    np.random.seed((seed + rank) % 2**32)
    torch.manual_seed(seed + rank)


def global_rng_state() -> dict:
    """State of the global generators as plain tensors."""
    state = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def set_global_rng_state(state: dict) -> None:
    torch.set_rng_state(state["torch"])
    if "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"])


class BatchRandom:
    """Random numbers for a batch that is shared by several processes.

    Every process draws for the whole batch from one generator and keeps the rows of its own clouds, so one process and
    many see the same masks and augmentations. The state is one tensor, saved with the checkpoint.
    """

    def __init__(
        self, seed: int, device: torch.device | str = "cpu", rank: int | None = None, world: int | None = None
    ):
        self.generator = torch.Generator(device=device).manual_seed(seed)
        self.rank = dist.rank() if rank is None else rank
        self.world = dist.world_size() if world is None else world

    def uniform(self, batch: int, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        """(batch, *shape) numbers in [low, high)."""
        return low + (high - low) * self._own(torch.rand(batch * self.world, *shape, **self._where), batch)

    def normal(self, batch: int, *shape: int) -> Tensor:
        """(batch, *shape) standard normal numbers."""
        return self._own(torch.randn(batch * self.world, *shape, **self._where), batch)

    def permutation(self, size: int) -> Tensor:
        """One permutation, the same in every process."""
        return torch.randperm(size, **self._where)

    @property
    def _where(self) -> dict:
        return {"generator": self.generator, "device": self.generator.device}

    def _own(self, numbers: Tensor, batch: int) -> Tensor:
        return numbers[self.rank * batch : (self.rank + 1) * batch]

    def state(self) -> Tensor:
        return self.generator.get_state()

    def set_state(self, state: Tensor) -> None:
        self.generator.set_state(state)
