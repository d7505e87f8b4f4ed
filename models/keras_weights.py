"""Weights of the official 3DSimAttention networks, which are Keras models, in our layout and under our names."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

# attribute of the official layer or model -> ours
LAYERS = {
    "DOWN_PROJECTION_1": "attention.query",
    "DOWN_PROJECTION_2": "attention.mix",
    "UP_PROJECTION": "attention.value",
    "UNIFY_PROJECTION": "skip.0",
    "LAYERNORM": "norm",
    "HR_dense": "pool.first",
    "LR_dense": "pool.second",
    "classify_head": "head",
    "seg_head": "head",
}
HASHING = {"UP_PROJECTION": "attention.up", "DOWN_PROJECTION": "attention.down", "VALUE_DENSE": "attention.value"}
VALUES = {"kernel": "weight", "head_kernel": "weight", "gamma": "weight", "bias": "bias", "beta": "bias"}
VALUES |= {"head_bias": "bias"}


def from_keras(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors by the official attribute path, such as sa_block.0.UP_PROJECTION.kernel, as our state dict."""
    layers = LAYERS | HASHING if any("head_kernel" in name for name in weights) else LAYERS
    return {rename(name, layers): as_linear(name, value) for name, value in weights.items()}


def rename(name: str, layers: Mapping[str, str] = LAYERS) -> str:
    *above, layer, value = name.split(".")
    block = re.search(r"(?:^|\.)sa_block\.(\d+)$", ".".join(above))
    prefix = f"layers.{block[1]}." if block else ""
    return f"{prefix}{layers.get(layer, layer)}.{VALUES.get(value, value)}"


def as_linear(name: str, value: Tensor) -> Tensor:
    """Kernels are (in, out); with heads (heads, in, out), or (in, heads, out) under the name head_kernel."""
    if name.endswith("head_kernel"):
        return value.flatten(1).T.contiguous()
    if name.endswith("kernel"):
        return value.flatten(0, -2).T.contiguous()
    return value.flatten()
