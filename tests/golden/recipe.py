"""Weights of full-size networks, made from the names and shapes of a manifest instead of being stored."""

from __future__ import annotations

import json
import math
import zlib

import numpy as np
import torch
from torch import Tensor, nn

from tests.golden.fixtures import GOLDEN, Fixture
from utils.checkpoint import load_weights


def tensor(key: str, shape: list[int], seed: int, gain: float) -> Tensor:
    """Normal numbers that depend on the name alone, scaled by what the tensor is."""
    if key.endswith("num_batches_tracked"):
        return torch.zeros(shape, dtype=torch.int64)
    generator = np.random.RandomState((zlib.crc32(key.encode()) + 1000003 * seed) % 2**32)
    z, last = generator.standard_normal(shape), key.rpartition(".")[2]
    if last == "running_mean":
        value = 0.1 * z
    elif last == "running_var":
        value = 1 + 0.25 * np.abs(z)
    elif len(shape) >= 2:
        value = gain * z / math.sqrt(math.prod(shape[1:]))
    elif last == "weight":
        value = 1 + 0.1 * z
    else:
        value = 0.1 * z
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def recipe(fixture: Fixture, manifest: str, tied: dict[str, str] | None = None) -> dict[str, Tensor]:
    """A whole state dict. tied: a key that ends like this takes the value of the one that ends like that."""
    shapes = json.loads((GOLDEN / "manifests" / fixture.folder / f"{manifest}.json").read_text())
    seed, gain = fixture.about["seed"], fixture.about["recipe_gain"]
    state = {key: tensor(key, shape, seed, gain) for key, shape in shapes.items()}
    for end, source in (tied or {}).items():
        state |= {key: state[key.removesuffix(end) + source] for key in state if key.endswith(end)}
    return state


def load(model: nn.Module, state: dict[str, Tensor], name: str, unused: str | None = None) -> None:
    """Every tensor, but for those whose name ends with `unused`."""
    report = load_weights(model, state, name, model.key_map)  # type: ignore[arg-type]
    missing = [key for key in report.missing if not key.endswith("num_batches_tracked")]
    assert not missing and not report.unexpected, report.summary()
    assert report.unused == [key for key in state if unused and key.endswith(unused)], report.summary()
