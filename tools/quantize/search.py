"""The search itself: episodes, a log that a person can read, a state to continue from, the best policy as a file."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal

from torch import nn

from tools import AGENTS
from tools.experiment import Experiment
from tools.monitor import duration
from tools.quantize.agents import Agent, Path, as_action
from tools.quantize.environment import make_environment
from tools.quantize.problem import Outcome, Problem
from tools.quantize.section import Quantization, size_note, write_policy
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task
from utils.checkpoint import read_checkpoint, save_checkpoint
from utils.errors import UserError
from utils.logging import get_logger

LOG, POLICY = "search.jsonl", "policy.yaml"


def budget(
    bytes: int | None = None, share: float | None = None, preserve: float | None = None, uniform: int | None = None
) -> dict[str, Any]:
    """One of: bytes of the file; its share of the float file; the published share of 32 bits for every searched
    weight; as large as with so many bits in every searched layer."""
    return {"bytes": bytes, "share": share, "preserve": preserve, "uniform": uniform}


class Search:
    """Section `search`. agent: who chooses. bits: widths that a layer may have. episodes: for agents without a number
    of their own. wall: `shift` all layers alike until they fit, or lower them from the `tail`, as published.
    tune_epochs: train every policy so long before it is judged (published: 1). reward_scale: reward for a percent above
    the float network. judge_clouds: so many training clouds judge a policy, where few are held out (0: those judge)."""

    def __init__(
        self,
        agent: dict,
        budget: dict,
        bits: list[int] | None = None,
        episodes: int = 60,
        wall: Literal["shift", "tail"] = "shift",
        tune_epochs: int = 0,
        reward_scale: float = 0.1,
        judge_clouds: int = 0,
    ):
        self.agent: Agent = AGENTS.build(agent, "search.agent")
        self.name, self.budget = agent["name"], budget
        self.bits = [2, 3, 4, 5, 6, 8] if bits is None else bits
        if not self.bits or not all(1 <= each <= 8 for each in self.bits):
            raise UserError(f"search.bits: {self.bits}; name widths from 1 to 8")
        if episodes < 1:
            raise UserError(f"search.episodes: {episodes}; use at least 1")
        self.episodes, self.wall = episodes, wall
        self.tune_epochs, self.reward_scale, self.judge_clouds = tune_epochs, reward_scale, judge_clouds


class Progress:
    """Episodes done, the best of them, everything that a continuation needs."""

    def __init__(self, experiment: Experiment, watch: str, judges: str, float_metric: float):
        self.experiment, self.watch, self.judges, self.float_metric = experiment, watch, judges, float_metric
        self.log, self.path = get_logger(), experiment.folder / LOG
        self.done, self.seconds, self.best_episode = 0, 0.0, 0
        self.best: Outcome | None = None

    def record(self, episode: int, outcome: Outcome, figures: dict[str, float], seconds: float, total: int) -> bool:
        """One line for a person, one for programs; true where this is the best so far."""
        self.done, self.seconds = episode + 1, self.seconds + seconds
        better = self.best is None or outcome.reward > self.best.reward
        if better:
            self.best, self.best_episode = outcome, episode
        assert self.best is not None
        left = self.seconds / self.done * (total - self.done)
        figure = f"{self.judges}/{self.watch} {outcome.metric:.2f} (float {self.float_metric:.2f})"
        self.log.info(
            f"episode {episode + 1}/{total}  {figure}  "
            f"{outcome.bytes:,} bytes  reward {outcome.reward:+.3f}  best {self.best.metric:.2f} in episode "
            f"{self.best_episode + 1}  {f'{duration(left)} left' if self.done < total else 'done'}"
        )
        line = {"episode": episode, **vars(outcome), **figures, "seconds": round(seconds, 2)}
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        return better

    def state(self) -> dict[str, Any]:
        best = vars(self.best) if self.best else None
        return {"done": self.done, "seconds": self.seconds, "best": best, "best_episode": self.best_episode}

    def set_state(self, state: dict[str, Any]) -> None:
        self.done, self.seconds, self.best_episode = state["done"], state["seconds"], state["best_episode"]
        self.best = Outcome(**state["best"]) if state["best"] else None
        lines = self.path.read_text(encoding="utf-8").splitlines() if self.path.is_file() else []
        self.path.write_text("".join(line + "\n" for line in lines[: self.done]), encoding="utf-8")


def run_search(
    section: Search,
    quantization: Quantization,
    model: nn.Module,
    task: Task,
    data: DataSplits,
    autocast: Autocast,
    experiment: Experiment,
    config: dict[str, Any],
    seed: int,
    *,
    resume: bool,
    tune: Callable[[nn.Module, list[int]], nn.Module] | None = None,
) -> list[dict]:
    """Search, write policy.yaml, return rows: the best policy on what judged it and on test data, not tuned."""
    started = time.monotonic()
    problem = Problem(
        model, quantization, task, data, autocast, section.bits, section.wall, section.reward_scale,
        section.judge_clouds, tune,
    )  # fmt: skip
    target = problem.set_budget(**budget(**section.budget))
    agent, log = section.agent, get_logger()
    agent.prepare(problem, seed)
    total = section.episodes if agent.episodes is None else agent.episodes
    progress = Progress(experiment, task.watch, "train" if section.judge_clouds else "val", problem.float_metric)
    if resume:
        state = read_checkpoint(experiment.last)
        check_unchanged(state.get("config", {}), config)
        agent.set_state(state["agent"])
        problem.known = {tuple(bits): metric for bits, metric in state["known"]}
        progress.set_state(state["progress"])
    log.info(f"search: {section.name}, {len(problem.names)} layers, {total} episodes, bits {problem.allowed}")
    log.info(f"budget: {size_note(target, problem.sizes.float_file())}; float {task.watch} {problem.float_metric:.2f}")
    if target >= problem.cost([problem.allowed[-1]] * len(problem.names)):
        log.warning(f"warning: the budget holds {problem.allowed[-1]} bits everywhere; it limits nothing")
    environment = make_environment(problem)
    for episode in range(progress.done, total):
        begun = time.monotonic()
        outcome, figures = run_episode(environment, agent, episode)
        if progress.record(episode, outcome, figures, time.monotonic() - begun, total):
            write_best(experiment, problem, section, quantization, config, progress)
        save_checkpoint(
            experiment.last,
            {
                "format": "search",
                "config": config,
                "agent": agent.state(),
                "known": [[list(bits), metric] for bits, metric in problem.known.items()],
                "progress": progress.state(),
            },
        )
    return result_rows(problem, progress, section, task, data, autocast, time.monotonic() - started)


def check_unchanged(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """A search goes on as it began; only the number of episodes may change."""

    def fixed(config: Mapping[str, Any]) -> dict[str, Any]:
        search = {key: value for key, value in config.get("search", {}).items() if key != "episodes"}
        return {**{key: config.get(key) for key in ("model", "task", "quantize", "seed")}, **search}

    for key, value in fixed(new).items():
        if fixed(old).get(key) != value:
            raise UserError(f"{key}: differs from that of the search to continue; start a new one under another name")


def run_episode(environment: Any, agent: Agent, episode: int) -> tuple[Outcome, dict[str, float]]:
    """Every layer once."""
    agent.start(episode)
    state, info = environment.reset()
    path: Path = []
    finished = False
    while not finished:
        action = agent.act(state, len(path), episode)
        path.append((state, action))
        state, _, finished, _, info = environment.step(as_action(action))
    outcome: Outcome = info["outcome"]
    return outcome, agent.learn(path, outcome, episode)


def write_best(
    experiment: Experiment,
    problem: Problem,
    section: Search,
    quantization: Quantization,
    config: Mapping[str, Any],
    progress: Progress,
) -> None:
    best = progress.best
    assert best is not None
    about = {
        "found_by": section.name,
        "episode": progress.best_episode + 1,
        f"{progress.judges}_{progress.watch}": round(best.metric, 4),
        f"float_{progress.judges}_{progress.watch}": round(progress.float_metric, 4),
        "bytes": best.bytes,
        "quantizer": config["quantize"].get("quantizer") or {"name": "kmeans"},
    }
    write_policy(experiment.folder / POLICY, problem.policy(best.bits), about)


def result_rows(
    problem: Problem,
    progress: Progress,
    section: Search,
    task: Task,
    data: DataSplits,
    autocast: Autocast,
    seconds: float,
) -> list[dict]:
    best = progress.best
    assert best is not None
    note = {
        "bytes": best.bytes,
        "float_bytes": problem.sizes.float_file(),
        "nominal": best.nominal,
        "search_seconds": round(progress.seconds, 1),
        "search_wall_seconds": round(seconds, 1),
        "episodes": progress.done,
        "protocol": f"{section.name}, {size_note(best.bytes, problem.sizes.float_file())}",
    }
    get_logger().info(f"best policy: {progress.experiment.folder / POLICY}")
    rows: list[dict] = [{"metric": task.watch, "value": best.metric, "split": progress.judges, **note}]
    rows += [{**row, **note} for row in task.conclude(problem.build(problem.policy(best.bits)), data, autocast)]
    judges = f"{len(problem.clouds.dataset)} {progress.judges} clouds"
    return [{**row, "selection": f"best of {progress.done} episodes on {judges}"} for row in rows]
