"""Parameter groups, and PyTorch's optimizers without what loads its compiler."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from utils.errors import UserError

BLOCK = re.compile(r".*\bblocks\.\d+\.")


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, gm3d: bool = False
) -> list[dict[str, Any]]:
    """No weight decay for biases, norms, scales (anything below 2-D) and tokens; frozen parameters are left out.

    layer_decay: a block's learning rate is that of the block behind it times this; `lr_scale` is its share of the rate.
    What comes before the first block is a layer too, what comes behind the last one has the whole rate.
    gm3d: as published, of what comes before the blocks the class token alone, and tokens have weight decay.
    """
    scales = rate_scales(model, layer_decay, gm3d)
    groups: dict[tuple[bool, float], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            free = parameter.ndim <= 1 if gm3d else is_free_of_decay(name, parameter)
            new = {"params": [], "weight_decay": 0.0 if free else weight_decay, "lr_scale": scales[name]}
            groups.setdefault((free, scales[name]), new)["params"].append(parameter)
    return [groups[key] for key in sorted(groups, key=lambda key: (key[0], -key[1]))]


def rate_scales(model: nn.Module, layer_decay: float = 1.0, gm3d: bool = False) -> dict[str, float]:
    """The share of the learning rate that each parameter has."""
    names = [name for name, _ in model.named_parameters()]
    if layer_decay == 1:
        return dict.fromkeys(names, 1.0)
    blocks = list(dict.fromkeys(match[0] for match in map(BLOCK.match, names) if match))
    if not blocks:
        raise UserError("runner.layer_decay: the model has no numbered blocks; leave it out")
    scales, begun = {}, 0
    for name in names:
        match = BLOCK.match(name)
        begun = max(begun, blocks.index(match[0]) + 1) if match else begun
        slowed = match or name.endswith("cls_token") or not gm3d
        scales[name] = layer_decay ** (len(blocks) - begun) if slowed else 1.0
    return scales


def is_free_of_decay(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim <= 1 or name.endswith(".bias") or "token" in name


def unguarded(method: Any) -> Any:
    """A method of an optimizer without the wrapper that keeps torch.compile out of it and loads the compiler for that;
    the method as it is where PyTorch wraps it otherwise."""
    guarded = isinstance(method, FunctionType) and method.__globals__.get("__name__") == "torch._compile"
    return inspect.unwrap(method) if guarded else method


def eager_step(step: Any) -> Any:
    """`step` of an optimizer without the graph breaks around it; as it is where PyTorch wraps it otherwise."""
    wrapper = inspect.unwrap(step, stop=_sets_grad_mode)  # below hooks of the profiler, where one was made before
    if not _sets_grad_mode(wrapper):
        return step
    inner = inspect.unwrap(wrapper)

    @functools.wraps(inner)
    def stepped(self: Optimizer, closure: Callable[[], float] | None = None) -> float | None:
        with torch.set_grad_enabled(self.defaults["differentiable"]):
            return inner(self, closure)

    return stepped


def _sets_grad_mode(function: Any) -> bool:
    return function.__code__.co_name == "_use_grad" and function.__globals__.get("__name__") == "torch.optim.optimizer"


class Eager(Optimizer):
    """Nothing here is compiled: `runner.compile` is about the model. PyTorch's optimizers guard all these methods from
    torch.compile, and so load it, which takes longer than to read the data and to build a model."""

    add_param_group = unguarded(Optimizer.add_param_group)
    load_state_dict = unguarded(Optimizer.load_state_dict)
    state_dict = unguarded(Optimizer.state_dict)
    zero_grad = unguarded(Optimizer.zero_grad)


class AdamW(Eager, torch.optim.AdamW):
    step = eager_step(torch.optim.AdamW.step)


class Adam(Eager, torch.optim.Adam):
    step = eager_step(torch.optim.Adam.step)


class SGD(Eager, torch.optim.SGD):
    step = eager_step(torch.optim.SGD.step)
