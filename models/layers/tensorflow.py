"""Variables of the official TensorFlow programs (SampleNet's classification and reconstruction) as PyTorch tensors.

Names and shapes only: nothing here needs TensorFlow. A checkpoint is first written out where TensorFlow is installed:
`np.savez(path, **{name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()})`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from torch import Tensor

LAYERS: tuple[tuple[str, Callable[[int], str]], ...] = (  # scope of a layer with its number, our name of it
    (r"transform_net1/tconv(\d+)", lambda i: f"align_points.mlp.{i - 1}"),
    (r"transform_net1/tfc(\d+)", lambda i: f"align_points.head.{i - 1}"),
    (r"transform_net2/tconv(\d+)", lambda i: f"align_features.mlp.{i - 1}"),
    (r"transform_net2/tfc(\d+)", lambda i: f"align_features.head.{i - 1}"),
    (r"conv(\d+)", lambda i: f"mlp.{i - 1}"),
    (r"fc1(\d)b", lambda i: f"head.{i - 1}"),
    (r"fc(\d+)", lambda i: f"hidden.{i - 1}"),
    (r"encoder_conv_layer_(\d+)", lambda i: f"mlp.{i}"),
    (r"decoder_fc_(\d+)", lambda i: f"decoder.{i}"),
)
PLAIN = {  # layers that are no block of Linear and BatchNorm
    "transform_net1/transform_XYZ": "align_points.matrix",
    "transform_net2/transform_feat": "align_features.matrix",
    "fc3": "head",
}
LINEAR = {"weights": "weight", "W": "weight", "biases": "bias", "b": "bias"}
NORM = {"gamma": "weight", "beta": "bias", "moving_mean": "running_mean", "moving_variance": "running_var"}


def from_tensorflow(weights: Mapping[str, Tensor], scope: str = "") -> dict[str, Tensor]:
    """What lies below a scope ("sampler", "autoencoder"), for the key map of our network; optimizer variables and the
    like are left out."""
    prefix, found = f"{scope}/" if scope else "", {}
    for name, value in weights.items():
        if name.startswith(prefix):
            ours = rename(name.removeprefix(prefix))
            if ours is not None:
                found[ours] = _kernel(value) if ours.endswith("weight") and value.ndim > 1 else value
    return found


def rename(name: str) -> str | None:
    """conv1/bn/beta -> mlp.0.norm.bias; None for what is no weight."""
    if name == "temperature":
        return "project.temperature"
    layer, _, kind = name.rpartition("/")
    norm = layer.endswith(("/bn", "_bnorm"))
    layer = layer.removesuffix("/bn").removesuffix("_bnorm")
    last = (NORM if norm else LINEAR).get(kind)
    if last is None:
        return None
    if layer in PLAIN:
        return f"{PLAIN[layer]}.{last}"
    for pattern, ours in LAYERS:
        match = re.fullmatch(pattern, layer)
        if match:
            return f"{ours(int(match[1]))}.{'norm' if norm else 'linear'}.{last}"
    return None


def _kernel(value: Tensor) -> Tensor:
    """(1, 3, 1, out), (1, 1, in, out) or (in, out) -> (out, in)."""
    return value.reshape(-1, value.shape[-1]).T.contiguous()
