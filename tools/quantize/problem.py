"""What is searched for: bits for the layers of one network, within a budget, judged by the task's own figure."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from datasets.loader import Loader
from datasets.transforms import apply_all
from models.quant.apply import Policy, layers_of, quantize
from models.quant.storage import Sizes
from tools.quantize.section import Quantization, calibrate_on
from tools.quantize.state import embedding, input_sizes, raw_features
from tools.quantize.wall import shift_wall, tail_wall, to_bits
from tools.splits import DataSplits
from tools.tasks.base import Autocast, Task, evaluating
from tools.tasks.distill import Recorder, logits_of
from utils.errors import UserError
from utils.random import BatchRandom

SENSITIVITY_CLOUDS = 16


class Remembering:
    """A quantizer that works once for every layer and width."""

    def __init__(self, quantizer: Any):
        self.quantizer = quantizer
        self.made: dict[tuple[str, int], nn.Module] = {}

    def weight(self, weight: Tensor, bits: int, name: str = "weight") -> nn.Module:
        if (name, bits) not in self.made:
            self.made[name, bits] = self.quantizer.weight(weight, bits, name)
        return copy.deepcopy(self.made[name, bits])

    def activation(self, bits: int) -> nn.Module:
        return self.quantizer.activation(bits)

    def table_bytes(self, shape: torch.Size, bits: int) -> dict[str, int]:
        return self.quantizer.table_bytes(shape, bits)


@dataclass
class Outcome:
    """Of one episode: bits after the wall, the figure that is watched, the reward, the size of the file."""

    bits: list[int]
    metric: float
    reward: float
    bytes: int
    nominal: float


def clouds_to_judge(data: DataSplits, number: int) -> Loader:
    """0: the held-out clouds; else so many of the training clouds, at most all, spread evenly over them."""
    if number == 0:
        if data.val is None:
            raise UserError(
                "search: rewards come from held-out data; set data.val_fraction above 0, name data.val, or let "
                "search.judge_clouds training clouds judge"
            )
        return data.val
    dataset, fit = data.fit_set.dataset, data.fit_set
    number = min(number, len(dataset))
    places = np.arange(number) * len(dataset) // number
    return Loader(dataset.subset(places, dataset.split), fit.batch_size, fit.device)


class Problem:
    """L layers are open, each may have one of the widths `allowed`; the section `quantize` settles all others."""

    def __init__(
        self,
        model: nn.Module,
        section: Quantization,
        task: Task,
        data: DataSplits,
        autocast: Autocast,
        allowed: Sequence[int],
        wall: Literal["shift", "tail"] = "shift",
        reward_scale: float = 0.1,
        judge_clouds: int = 0,
        tune: Callable[[nn.Module, list[int]], nn.Module] | None = None,
    ):
        self.model, self.section, self.task, self.data, self.autocast = model.eval(), section, task, data, autocast
        self.clouds = clouds_to_judge(data, judge_clouds)
        self.allowed, self.wall, self.fill = sorted(set(allowed)), wall, True
        self.reward_scale, self.tune = reward_scale, tune
        self.quantizer = Remembering(section.quantizer)
        self.names = section.searched(model)
        self.layers = {name: layer for name, layer in layers_of(model).items() if name in self.names}
        self.sizes = Sizes(model, section.quantizer)
        self.settled = section.policy(model)
        self.bytes = [{bits: self._layer_bytes(name, bits) for bits in self.allowed} for name in self.names]
        self.base = self._upper_bound([self.allowed[-1]] * len(self.names)) - sum(
            table[self.allowed[-1]] for table in self.bytes
        )
        self.target = math.inf
        self.known: dict[tuple[int, ...], float] = {}
        self.float_metric = self.judge(self.model)

    # ---------------------------------------------------------------- sizes

    def policy(self, bits: Sequence[int]) -> Policy:
        chosen = dict(zip(self.names, bits))
        return {name: (chosen.get(name, pair[0]), pair[1]) for name, pair in self.settled.items()}

    def _layer_bytes(self, name: str, bits: int) -> int:
        return sum(dtype.itemsize * math.prod(shape) for dtype, shape in self.sizes.layer(name, bits).values())

    def _upper_bound(self, bits: Sequence[int]) -> int:
        """The file of a policy with the header of the largest one: no other has a longer header."""
        return self.sizes.file(self.policy(bits))

    def cost(self, bits: Sequence[int]) -> int:
        """Bytes of the file, at most some tens too many: headers differ by digits."""
        return self.base + sum(table[each] for table, each in zip(self.bytes, bits))

    def set_budget(self, bytes: int | None, share: float | None, preserve: float | None, uniform: int | None) -> int:
        """The target in bytes. Exactly one way to say it; see `Search`."""
        given = {"bytes": bytes, "share": share, "preserve": preserve, "uniform": uniform}
        named = {key: value for key, value in given.items() if value is not None}
        if len(named) != 1:
            raise UserError(f"search.budget: give one of {', '.join(given)}; found {len(named)}")
        whole, smallest = self.sizes.float_file(), self.cost([self.allowed[0]] * len(self.names))
        if uniform is not None and uniform not in range(1, 9):
            raise UserError(f"search.budget.uniform: {uniform} bits; use 1 to 8")
        if bytes is not None:
            self.target = bytes
        elif share is not None:
            self.target = int(share * whole)
        elif preserve is not None:
            self.target = self._preserved(preserve)
        else:
            self.target = self._uniform(int(uniform or 0))
        if self.target < smallest:
            raise UserError(
                f"search.budget: {self.target:,.0f} bytes, but {self.allowed[0]} bits everywhere take {smallest:,}; "
                "raise it, allow fewer bits, or keep fewer layers float"
            )
        if self.target >= whole:
            raise UserError(
                f"search.budget: {self.target:,.0f} bytes, but the float network takes {whole:,}; nothing has to be "
                "quantized, so there is nothing to search"
            )
        return int(self.target)

    def _uniform(self, bits: int) -> int:
        sizes = [self._layer_bytes(name, bits) for name in self.names]
        return self.base + sum(sizes)

    def _preserved(self, share: float) -> int:
        """The published budget, a share of 32 bits for every searched weight, as bytes: codes of so many bits, and the
        codebooks that the nearest width from below has."""
        below = max((bits for bits in range(1, 9) if bits <= 32 * share), default=1)
        numbers = sum(self.sizes.shapes[name].numel() for name in self.names)
        return self._uniform(below) + int(numbers * (32 * share - below) / 8)

    def fit(self, actions: Sequence[float]) -> list[int]:
        """The wall. An agent that knows its bits sets `fill` off: what fits already stays as it is."""
        bits = [to_bits(action, self.allowed) for action in actions]
        if self.wall == "tail":
            return tail_wall(bits, self.allowed, self.cost, self.target)
        if not self.fill and self.cost(bits) <= self.target:
            return bits
        return shift_wall(actions, self.allowed, self.bytes, self.target - self.base)

    # ---------------------------------------------------------------- networks

    def build(self, policy: Policy) -> nn.Module:
        """A quantized copy, its inputs measured."""
        model = quantize(copy.deepcopy(self.model), policy, self.quantizer)
        calibrate_on(model, self.data, self.task)
        return model.eval()

    def judge(self, model: nn.Module) -> float:
        """The watched figure over all clouds that judge."""
        with parametrize.cached():
            figures = self.task.evaluate(model, self.clouds, self.data, self.autocast)
        return float(figures[self.task.watch])

    def finish(self, bits: Sequence[int]) -> Outcome:
        """Judge a policy that fits; one that was judged before is not judged again."""
        key = tuple(bits)
        policy = self.policy(bits)
        if key not in self.known:
            model = self.build(policy)
            if self.tune is not None:
                model = self.tune(model, list(bits))
            self.known[key] = self.judge(model)
        metric = self.known[key]
        if not math.isfinite(metric):
            raise UserError(f"search: {self.task.watch} is {metric} for bits {list(bits)}; is the checkpoint sound?")
        gain = (metric - self.float_metric) * (1 if self.task.higher_is_better else -1)
        reward = self.reward_scale * gain
        return Outcome(list(bits), metric, reward, self.sizes.file(policy), self.sizes.nominal(policy))

    # ---------------------------------------------------------------- what agents look at

    def states(self) -> ndarray:
        """(L, 10)."""
        batch = self._some_clouds()
        sizes = input_sizes(self.layers, lambda: self._outputs(self.model, batch))
        return embedding(raw_features(self.layers, sizes))

    @torch.no_grad()
    def sensitivities(self, progress: Callable[[int, int], None] | None = None) -> list[dict[int, float]]:
        """Mean squared change of the outputs for some of the clouds that judge when one layer alone is quantized."""
        if not hasattr(self, "_sensitivities"):
            batch = self._some_clouds()
            truth = self._outputs(self.model, batch)
            nothing = dict.fromkeys(self.settled, (0, 0))
            found: list[dict[int, float]] = []
            for number, name in enumerate(self.names):
                widths = {}
                for bits in self.allowed:
                    changed = self._outputs(self.build({**nothing, name: (bits, 0)}), batch)
                    widths[bits] = float((changed - truth).square().mean())
                found.append(widths)
                if progress is not None:
                    progress(number + 1, len(self.names))
            self._sensitivities = found
        return self._sensitivities

    def _some_clouds(self) -> dict[str, Tensor]:
        dataset = self.clouds.dataset
        batch = dataset.fetch(range(min(SENSITIVITY_CLOUDS, len(dataset))))
        batch = {key: value.to(self.clouds.device) for key, value in batch.items()}
        return apply_all(self.data.eval_transform, batch, BatchRandom(0, self.clouds.device, rank=0, world=1))

    def _outputs(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        recorder = Recorder(model.eval()).eval()
        inner = getattr(self.task, "task", self.task)
        with evaluating(self.autocast):
            inner.losses(recorder, batch, BatchRandom(0, self.clouds.device, rank=0, world=1))
        return logits_of(recorder.output)
