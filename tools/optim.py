"""Parameter groups, and PyTorch's optimizers without what loads its compiler."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """No weight decay for biases, norms, scales (anything below 2-D) and tokens; frozen parameters are left out."""
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    plain = [p for name, p in named if is_free_of_decay(name, p)]
    decayed = [p for name, p in named if not is_free_of_decay(name, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


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
