"""The search as an environment of gymnasium: an episode visits the layers in order, each action gives one its bits."""

from __future__ import annotations

from typing import Any

import numpy as np

from tools.quantize.problem import Outcome, Problem
from tools.quantize.state import PREVIOUS
from tools.quantize.wall import to_bits
from utils.errors import UserError


def make_environment(problem: Problem) -> Any:
    """A gymnasium.Env. Observation: ten numbers of a layer; action: one number from 0 to 1. At the last layer the wall
    makes the bits fit the budget, the network is judged, and `info["outcome"]` says how; rewards before are 0."""
    try:
        import gymnasium
    except ImportError as error:
        raise UserError("the search needs gymnasium: pip install gymnasium") from error

    class LayerBits(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(0.0, 1.0, (10,), np.float32)
        action_space = gymnasium.spaces.Box(0.0, 1.0, (1,), np.float32)

        def __init__(self) -> None:
            self.table = problem.states().astype(np.float32)
            self.actions: list[float] = []

        def reset(self, *, seed: int | None = None, options: dict | None = None) -> tuple[np.ndarray, dict]:
            super().reset(seed=seed)
            self.actions = []
            return self._observe(), {}

        def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict]:
            self.actions.append(float(np.clip(action, 0, 1).reshape(-1)[0]))
            if len(self.actions) < len(self.table):
                return self._observe(), 0.0, False, False, {}
            outcome: Outcome = problem.finish(problem.fit(self.actions))
            return self._observe(), outcome.reward, True, False, {"outcome": outcome}

        def _observe(self) -> np.ndarray:
            row = self.table[min(len(self.actions), len(self.table) - 1)].copy()
            if self.actions:
                row[PREVIOUS] = to_bits(self.actions[-1], problem.allowed) / problem.allowed[-1]
            return row

    return LayerBits()
