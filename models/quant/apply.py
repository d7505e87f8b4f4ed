"""Quantize any network in place, a layer at a time, by the bits that a policy gives each.

A policy maps the name of a layer to (bits of the weight, bits of the input); 0 leaves it as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from models.quant.linear import ActivationRange
from utils.errors import UserError
from utils.schema import hint

Policy = dict[str, tuple[int, int]]
Layer = nn.Linear | nn.Conv1d | nn.Conv2d
LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d)
MAX_BITS = 8


class Quantizer(Protocol):
    def weight(self, weight: Tensor, bits: int, name: str = "weight") -> nn.Module: ...

    def activation(self, bits: int) -> nn.Module: ...

    def table_bytes(self, shape: torch.Size, bits: int) -> dict[str, int]: ...


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """Every linear and convolutional layer by name, in the order of the modules; of tied ones the first."""
    layers: dict[str, Layer] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        if isinstance(module, LAYERS) and id(trained_weight(module)) not in seen:
            seen.add(id(trained_weight(module)))
            layers[name] = module
    return layers


def trained_weight(layer: Any) -> nn.Parameter:
    """What the optimizer moves: the weight, or what stands behind it."""
    if is_quantized(layer):
        return layer.parametrizations.weight.original
    return layer.weight


def is_quantized(layer: nn.Module) -> bool:
    return parametrize.is_parametrized(layer, "weight")


def parametrization_of(layer: Any) -> Any:
    return layer.parametrizations.weight[0]


def protected(model: nn.Module) -> list[str]:
    """First and last layer."""
    names = list(layers_of(model))
    return [names[0], names[-1]] if names else []


def make_policy(
    model: nn.Module,
    bits: int = 0,
    activation_bits: int = 0,
    given: Mapping[str, Any] | None = None,
    keep_float: tuple[str, ...] = (),
    keep_bits: Mapping[str, int] | None = None,
    protect: bool = True,
) -> Policy:
    """Bits for every layer. What `given` says of a layer counts most, then the patterns of `keep_float` and `keep_bits`
    (`head.*`), then that the first and the last layer stay float, then `bits`."""
    names, given = list(layers_of(model)), given or {}
    for name in given:
        if name not in names:
            raise UserError(f"quantize.policy: the model has no layer '{name}'.{hint(name, names)}")
    for pattern in (*keep_float, *(keep_bits or {})):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise UserError(f"quantize: no layer matches '{pattern}'.{hint(pattern, names)}")
    spared = protected(model) if protect else []
    policy: Policy = {}
    for name in names:
        fixed = [(0, 0) for pattern in keep_float if fnmatchcase(name, pattern)]
        fixed += [(kept, activation_bits) for key, kept in (keep_bits or {}).items() if fnmatchcase(name, key)]
        usual = (0, 0) if name in spared else (bits, activation_bits)
        policy[name] = _pair(given[name], name) if name in given else fixed[0] if fixed else usual
    for name, pair in policy.items():
        if not all(0 <= each <= MAX_BITS for each in pair):
            raise UserError(f"quantize: {name} is given {pair[0]} and {pair[1]} bits; use 1 to {MAX_BITS}, 0 for float")
    return policy


def _pair(value: Any, name: str) -> tuple[int, int]:
    pair = list(value) if isinstance(value, list | tuple) else [value, 0]
    pair = [0 if each is None or each == -1 else each for each in pair]
    if len(pair) != 2 or not all(isinstance(each, int) and not isinstance(each, bool) for each in pair):
        raise UserError(f"quantize.policy.{name}: {value!r}; write the bits of the weight, or [weight, activation]")
    return pair[0], pair[1]


def quantize(model: nn.Module, policy: Policy, quantizer: Quantizer) -> nn.Module:
    """Put a parametrization before the weight of every layer with bits, a range before its input. In place."""
    layers = layers_of(model)
    tied = _tied(model, layers)
    for name, (bits, activation_bits) in policy.items():
        layer = layers[name]
        if is_quantized(layer):
            raise UserError(f"{name}: is quantized already; start from the float checkpoint")
        if bits:
            set_parametrization(layer, quantizer.weight(layer.weight, bits, f"{name}.weight"))
            for other in tied.get(name, ()):
                _share(layer, other)
        if activation_bits:
            layer.input_range = quantizer.activation(activation_bits)
            layer.input_range.to(trained_weight(layer).device)
            layer.register_forward_pre_hook(_round_input)
    return model


def set_parametrization(layer: nn.Module, parametrization: nn.Module) -> None:
    parametrize.register_parametrization(layer, "weight", parametrization)
    initial = getattr(parametrization, "initial", None)
    if initial is not None:
        with torch.no_grad():
            trained_weight(layer).copy_(initial())


def _tied(model: nn.Module, layers: Mapping[str, Layer]) -> dict[str, list[nn.Module]]:
    """Other layers that hold the very parameter of a layer."""
    owner = {id(trained_weight(layer)): name for name, layer in layers.items()}
    tied: dict[str, list[nn.Module]] = {}
    for module in model.modules():
        if isinstance(module, LAYERS) and module is not layers[owner[id(trained_weight(module))]]:
            tied.setdefault(owner[id(trained_weight(module))], []).append(module)
    return tied


def _share(layer: Any, other: Any) -> None:
    """Two layers with one weight keep one weight."""
    other.weight = nn.Parameter(layer.weight.detach().clone())
    parametrize.register_parametrization(other, "weight", nn.Identity())
    other.parametrizations["weight"] = layer.parametrizations["weight"]


def _round_input(layer: Any, inputs: tuple) -> tuple:
    return (layer.input_range(inputs[0]), *inputs[1:])


@contextmanager
def calibrating(model: nn.Module) -> Iterator[list[ActivationRange]]:
    """While open, whatever runs through the model sets the ranges of its inputs and passes unrounded."""
    ranges = [module for module in model.modules() if isinstance(module, ActivationRange)]
    for each in ranges:
        each.calibrating = True
    try:
        yield ranges
    finally:
        for each in ranges:
            each.calibrating = False


def calibrate(model: nn.Module, run: Callable[[], Any]) -> None:
    """Measure the ranges of the inputs by what `run` sends through. A layer whose weight is used without calling it
    (layers that were merged for speed) sees no input, so there is nothing to round."""
    reached: set[int] = set()
    hooks = [
        module.register_forward_hook(lambda m, i, o: reached.add(id(m)))
        for module in model.modules()
        if isinstance(module, ActivationRange)
    ]
    with calibrating(model), torch.no_grad():
        run()
    for hook in hooks:
        hook.remove()
    for name, module in model.named_modules():
        if isinstance(module, ActivationRange) and id(module) not in reached:
            owner = name.removesuffix(".input_range")
            raise UserError(
                f"quantize: the input of {owner} cannot be rounded, as the network uses its weight without calling "
                f"the layer; give it [bits, 0] in quantize.policy"
            )


def train_codebooks_only(model: nn.Module) -> None:
    """Dense weights that were left float are frozen; codebooks, biases, norms and ranges train."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ".parametrizations." not in name:
            parameter.requires_grad_(False)


def dense_weights(model: nn.Module) -> dict[str, Tensor]:
    """What every quantized layer computes with."""
    return {name: layer.weight.detach() for name, layer in layers_of(model).items() if is_quantized(layer)}
