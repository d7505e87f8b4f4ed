"""What an agent knows of a layer: ten numbers, each from 0 to 1 over the layers of a network (HAQ)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy import ndarray
from torch import Tensor, nn

COLUMNS = (
    "depthwise", "in channels", "out channels", "stride", "kernel size", "weights", "input size", "position",
    "previous action", "weight step",
)  # fmt: skip
PREVIOUS, KIND = 8, 9


def input_sizes(layers: Mapping[str, nn.Module], run: Callable[[], Any]) -> dict[str, int]:
    """Positions that each layer works on while `run` sends something through: pixels of an image, else the size of
    dimension 1, as published; 1 where a network uses the weight of a layer without calling it."""
    sizes = dict.fromkeys(layers, 1)

    def hook(name: str) -> Callable:
        def note(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            shape = inputs[0].shape
            sizes[name] = shape[2] * shape[3] if isinstance(module, nn.Conv2d) else shape[min(1, len(shape) - 1)]

        return note

    handles = [layer.register_forward_pre_hook(hook(name)) for name, layer in layers.items()]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return sizes


def raw_features(layers: Mapping[str, Any], sizes: Mapping[str, int]) -> ndarray:
    """(L, 8): what is fixed about every layer."""
    rows = []
    for position, (name, layer) in enumerate(layers.items()):
        number = layer.weight.numel()
        if isinstance(layer, nn.Linear):
            own = [0, layer.in_features, layer.out_features, 0, 1]
        else:
            assert isinstance(layer, nn.Conv1d | nn.Conv2d)
            depthwise = int(layer.in_channels == layer.groups)
            own = [depthwise, layer.in_channels, layer.out_channels, layer.stride[0], layer.kernel_size[0]]
        rows.append([*own, number, sizes[name], position])
    return np.array(rows, dtype=np.float64)


def normalise(columns: ndarray, keep_constant: bool) -> ndarray:
    """Each column from 0 to 1; a constant one says nothing and becomes 0, or is left as it is, as published."""
    low, high = columns.min(axis=0), columns.max(axis=0)
    scaled = (columns - low) / np.where(high > low, high - low, 1.0)
    return np.where(high > low, scaled, columns if keep_constant else 0.0)


def embedding(raw: ndarray, previous: float = 1.0, kind: float | None = 1.0, published: bool = False) -> ndarray:
    """(L, 8) -> (L, 10): with the action before (bits over the largest, so at most 1) and whether a weight is asked
    for. kind None: (L, 9), the table of the published k-means search, where `previous` is 4 bits at the start."""
    extra = [np.full((len(raw), 1), value) for value in (previous, kind) if value is not None]
    return np.concatenate([normalise(raw, keep_constant=published), *extra], axis=1)
