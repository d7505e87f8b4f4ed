"""Who chooses the bits: the DDPG agent of HAQ, and what it has to beat. All act in the same environment.

An agent is asked for an action at every layer of an episode, told the episode's end, and can be saved in between.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy import ndarray

from tools.quantize.ddpg import DDPG, Replay
from tools.quantize.problem import Outcome, Problem
from tools.quantize.wall import cheapest_wall, to_action
from utils.errors import UserError
from utils.logging import get_logger

Path = list[tuple[ndarray, float]]  # state and action of every layer


class Agent:
    """`episodes` None: as many as the search allows."""

    episodes: int | None = None

    def prepare(self, problem: Problem, seed: int) -> None:
        """Before the first episode, and before a saved state comes in."""
        self.problem, self.generator = problem, torch.Generator().manual_seed(seed)

    def start(self, episode: int) -> None:
        """An episode begins."""

    def act(self, state: ndarray, place: int, episode: int) -> float:
        raise NotImplementedError

    def learn(self, path: Path, outcome: Outcome, episode: int) -> dict[str, float]:
        """Figures for the log."""
        return {}

    def state(self) -> dict[str, Any]:
        return {"generator": self.generator.get_state()}

    def set_state(self, state: dict[str, Any]) -> None:
        self.generator.set_state(state["generator"])


class Planner(Agent):
    """An agent that knows the bits of a whole episode when it begins."""

    plan: list[int]

    def act(self, state: ndarray, place: int, episode: int) -> float:
        return to_action(self.plan[place], self.problem.allowed)

    def random_bits(self) -> list[int]:
        allowed = self.problem.allowed
        return [allowed[i] for i in torch.randint(len(allowed), (len(self.problem.names),), generator=self.generator)]


class RandomAgent(Planner):
    """Every layer any width."""

    def start(self, episode: int) -> None:
        self.plan = self.random_bits()


class UniformAgent(Planner):
    """One width for all layers: each that fits the budget, in an episode of its own."""

    def prepare(self, problem: Problem, seed: int) -> None:
        super().prepare(problem, seed)
        problem.fill, layers = False, len(problem.names)
        self.widths = [bits for bits in problem.allowed if problem.cost([bits] * layers) <= problem.target]
        self.episodes = len(self.widths)

    def start(self, episode: int) -> None:
        self.plan = [self.widths[episode]] * len(self.problem.names)


def tell(done: int, total: int) -> None:
    """Measuring every layer at every width takes a while."""
    if done % 10 == 0 or done == total:
        get_logger().info(f"sensitivities of {done}/{total} layers measured")


class GreedyAgent(Planner):
    """Measures how much the outputs change when one layer alone is quantized; then lowers, from the largest widths on,
    the layer that harms least for what it saves. One episode."""

    episodes = 1

    def start(self, episode: int) -> None:
        problem = self.problem
        problem.fill = False  # what is left is spent by the sensitivities already
        highest = [problem.allowed[-1]] * len(problem.names)
        budget = problem.target - problem.base
        self.plan = cheapest_wall(highest, problem.allowed, problem.bytes, budget, problem.sensitivities(tell))


class EvolutionaryAgent(Planner):
    """Children of the best so far: every layer from either parent, some moved by one width."""

    def __init__(self, population: int = 16, mutation: float = 0.15):
        if population < 2 or not 0 < mutation <= 1:
            raise UserError(f"population {population} must be 2 or more, mutation {mutation} above 0, at most 1")
        self.population, self.mutation = population, mutation
        self.alive: list[tuple[float, list[int]]] = []

    def start(self, episode: int) -> None:
        self.plan = self.random_bits() if len(self.alive) < self.population else self.child()

    def child(self) -> list[int]:
        mother, father = self.parent(), self.parent()
        draws = torch.rand(3, len(mother), generator=self.generator).tolist()
        allowed, child = self.problem.allowed, []
        for one, other, which, changes, up in zip(mother, father, *draws):
            place = allowed.index(one if which < 0.5 else other)
            if changes < self.mutation:
                place = min(max(place + (1 if up < 0.5 else -1), 0), len(allowed) - 1)
            child.append(allowed[place])
        return child

    def parent(self) -> list[int]:
        """The better of two."""
        pair = torch.randint(len(self.alive), (2,), generator=self.generator).tolist()
        return max((self.alive[i] for i in pair), key=lambda each: each[0])[1]

    def learn(self, path: Path, outcome: Outcome, episode: int) -> dict[str, float]:
        self.alive.append((outcome.reward, outcome.bits))
        self.alive = sorted(self.alive, key=lambda each: -each[0])[: self.population]
        return {}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "alive": [[reward, bits] for reward, bits in self.alive]}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.alive = [(reward, bits) for reward, bits in state["alive"]]


class DdpgAgent(Agent):
    """HAQ's: all transitions of an episode get its final reward; as many updates as layers after every episode.

    The published search has 20 episodes of warming up in 600; the default suits some tens of episodes.
    """

    def __init__(
        self,
        warmup: int = 10,
        hidden: int = 300,
        lr_actor: float = 1e-4,
        lr_critic: float = 1e-3,
        discount: float = 1.0,
        tau: float = 0.01,
        init_delta: float = 0.5,
        delta_decay: float = 0.95,
        batch_size: int = 64,
        memory: int = 128,
    ):
        counts = {"warmup": warmup + 1, "hidden": hidden, "batch_size": batch_size, "memory": memory}
        for name, value in counts.items():
            if value < 1:
                raise UserError(f"{name}: too small")
        self.options: dict[str, Any] = {
            "hidden1": hidden,
            "hidden2": hidden,
            "lr_actor": lr_actor,
            "lr_critic": lr_critic,
        }
        self.options |= {"discount": discount, "tau": tau, "init_delta": init_delta, "delta_decay": delta_decay}
        self.warmup, self.batch_size, self.memory = warmup, batch_size, memory

    def prepare(self, problem: Problem, seed: int) -> None:
        super().prepare(problem, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.ddpg = DDPG(10, **self.options, warmup=self.warmup)
        self.replay = Replay(self.memory * len(problem.names), 10)

    def act(self, state: ndarray, place: int, episode: int) -> float:
        return self.ddpg.act(torch.from_numpy(state), episode, self.generator)

    def learn(self, path: Path, outcome: Outcome, episode: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        for place, (state, action) in enumerate(path):
            self.replay.append(torch.from_numpy(state), action, outcome.reward, place == len(path) - 1)
            if episode > self.warmup and len(self.replay) > 1:
                figures = self.ddpg.update(self.replay.sample(self.batch_size, self.generator))
        last = torch.from_numpy(path[-1][0])  # what the last transition is followed by: an entry that is never drawn
        with torch.no_grad():
            self.replay.append(last, float(self.ddpg.actor(last.float()[None])), 0.0, False)
        return figures | {"delta": self.ddpg.delta(episode)} if episode > self.warmup else {}

    def state(self) -> dict[str, Any]:
        return {**super().state(), "ddpg": self.ddpg.state(), "replay": self.replay.state()}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self.ddpg.set_state(state["ddpg"])
        self.replay.set_state(state["replay"])


def as_action(value: float) -> ndarray:
    return np.array([value], dtype=np.float32)
