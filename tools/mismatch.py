"""What costs accuracy without any error: a checkpoint used for other data than it was made for, too few steps."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from datasets import DATASETS
from utils.checkpoint import LoadReport
from utils.schema import parameters

TOLERATED = 4 / 3  # more points than this factor, or fewer than its inverse
BLOCK = re.compile(r"(.*\bblocks)\.(\d+)\.")
SETTLED = 150  # steps after which BatchNorm's running variance (momentum 0.1) has forgotten its initial 1


def mismatches(checkpoint: Mapping[str, Any], config: Mapping[str, Any], num_points: int, trained: bool) -> list[str]:
    """One line a difference. trained: the weights will adapt, so that another number of patches is no harm."""
    made = checkpoint.get("config")
    if not isinstance(made, Mapping):
        return []  # made by another project: nothing is said about its data
    lines = []
    before = points_seen(made)
    if before is not None and not 1 / TOLERATED <= num_points / before <= TOLERATED:
        lines.append(
            f"checkpoint made with {before} points a cloud, now {num_points}; a patch covers another share of the shape"
        )
    for key in ("group_size",) if trained else ("group_size", "num_group"):
        old, new = (network(each).get(key) for each in (made, config))
        if None not in (old, new) and old != new:
            lines.append(f"checkpoint made with model.{key} {old}, now {new}")
    return lines


def other_depth(report: LoadReport) -> list[str]:
    """One line where a stack of blocks was filled in part, and one where blocks of the checkpoint found no place."""
    filled = _blocks(report.loaded)
    stacks = {stack for stack, _ in filled}
    lines = []
    for names, what in ((report.missing, "left at random"), (report.unexpected, "of the checkpoint left out")):
        odd = sorted(block for block in _blocks(names) - filled if block[0] in stacks)
        if odd:
            named = ", ".join(f"{stack}.{number}" for stack, number in odd[:3]) + (", ..." if len(odd) > 3 else "")
            lines.append(f"warning: blocks {what}: {len(odd)} ({named}); is model.depth that of the checkpoint?")
    return lines


def _blocks(names: Iterable[str]) -> set[tuple[str, int]]:
    """Where a block stands, and its number there."""
    return {(match[1], int(match[2])) for match in map(BLOCK.match, names) if match}


def network(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model, or the backbone that another one trains."""
    model = config.get("model", {})
    return model.get("backbone", model)


def points_seen(config: Mapping[str, Any]) -> int | None:
    """Points of a training cloud as the network got it; None where the configuration does not say."""
    data = config.get("data", {})
    train = data.get("train", {})
    for transform in reversed(data.get("augment") or []):
        if "num_points" in transform:
            return transform["num_points"]
    if train.get("num_points") is not None or train.get("name") not in DATASETS.names():
        return train.get("num_points")
    option = parameters(DATASETS.get(train["name"])).get("num_points")
    return option.default if option is not None and isinstance(option.default, int) else None


def too_few_steps(model: nn.Module, steps: int) -> list[str]:
    """A network with BatchNorm that trains only shortly."""
    if steps >= SETTLED or not any(isinstance(module, nn.BatchNorm1d) for module in model.modules()):
        return []
    return [
        f"{steps} steps in all; below {SETTLED} the statistics of BatchNorm have not settled, and a network that "
        "starts at random can be right in training and at chance in testing; train longer or with smaller batches"
    ]
