"""Adaptations put on a built and loaded model, taken off, counted, merged, saved alone.

`model.peft` holds them; the tensors of the backbone keep their names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from models.peft import PEFT
from models.peft.base import HEAD, Method
from utils.checkpoint import tensor_hash
from utils.errors import UserError

ENCODER = "encoder."
OWN = "peft."  # what adaptations add to a model is named below it


class Adaptation(nn.Module):
    """The methods on one model, and how the tensors of the backbone that they change were before."""

    def __init__(self, methods: Sequence[Method], trained_before: Sequence[str]):
        super().__init__()
        self.methods, self.trained_before = nn.ModuleList(methods), tuple(trained_before)
        self._names: list[str] = []  # of the tensors kept as original0, original1, ...

    def keep(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            self.register_buffer(f"original{len(self._names)}", tensor.detach().clone())
            self._names.append(name)

    def originals(self) -> dict[str, Tensor]:
        return {name: self.get_buffer(f"original{index}") for index, name in enumerate(self._names)}


@dataclass
class Count:
    """Parameters of one method, or of the whole model."""

    name: str
    trained: int
    head: int
    frozen: int
    unused: int

    @property
    def percent(self) -> float:
        """Trained, the head left out, of everything but the head."""
        return 100 * (self.trained - self.head) / max(self.trained - self.head + self.frozen, 1)

    def __str__(self) -> str:
        idle = f", {self.unused:,} of them without any effect" if self.unused else ""
        return (
            f"{self.name}: {self.trained:,} parameters trained{idle}, {self.trained - self.head:,} without the head "
            f"({self.percent:.2f} %), {self.frozen:,} frozen"
        )


def apply_peft(model: nn.Module, entries: Sequence[Mapping[str, Any]]) -> nn.Module:
    """Freeze the model but for its head, then put every adaptation on it. Returns the model."""
    if getattr(model, "peft", None) is not None:
        raise UserError("the model is adapted already; remove_peft it first")
    if not entries:
        raise UserError("peft: an empty list; leave the section out to train everything")
    before, trained = model.state_dict(), [name for name, p in model.named_parameters() if p.requires_grad]
    model.requires_grad_(False)
    methods: list[Method] = []
    try:
        for index, entry in enumerate(entries):
            methods.append(PEFT.build(entry, f"peft.{index}", model=model))
            methods[-1].attach()
    except Exception:
        for method in reversed(methods):
            method.detach()
        for name in trained:
            model.get_parameter(name).requires_grad_()
        raise
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(HEAD) or any(method.trains(name) for method in methods))
    for method in methods:
        method.settle(model)
    adaptation = Adaptation(methods, trained)
    changing = [n for n, p in model.named_parameters() if p.requires_grad and not n.startswith(HEAD)]
    changing += [n for n, _ in model.named_buffers() if not n.startswith(HEAD)]
    adaptation.keep({name: before[name] for name in changing if name in before})
    model.peft = adaptation.to(next(model.parameters()).device)  # the last child: its `train` comes after all others
    return model


def adaptation_of(model: nn.Module) -> Adaptation:
    found = getattr(model, "peft", None)
    if not isinstance(found, Adaptation):
        raise UserError(f"'{type(model).__name__}' is not adapted; apply_peft(model, [...]) first")
    return found


def methods_of(model: nn.Module) -> list[Method]:
    return [method for method in adaptation_of(model).methods if isinstance(method, Method)]


def remove_peft(model: nn.Module) -> nn.Module:
    """Take all adaptations off; the backbone is again what it was before, the head stays as trained."""
    adaptation = _take_off(model)
    own = model.state_dict()
    with torch.no_grad():
        for name, value in adaptation.originals().items():
            own[name].copy_(value)
    return model


def merge_peft(model: nn.Module) -> nn.Module:
    """Write the adaptations into the weights, where each of them can: the plain model then computes the same."""
    methods = methods_of(model)
    if not any(method.mergeable for method in methods):
        raise UserError("none of the adaptations can be merged: they are no change of weights; only lora is")
    for method in methods:
        extra = list(method.parameters())
        if extra and not method.mergeable:
            raise UserError(f"{type(method).__name__}: cannot be merged, it is no change of weights")
    for method in methods:
        if method.mergeable:
            method.merge()
    _take_off(model)
    return model


def _take_off(model: nn.Module) -> Adaptation:
    adaptation = adaptation_of(model)
    for method in reversed(methods_of(model)):
        method.detach()
    del model.peft
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(HEAD) or name in adaptation.trained_before)
    return adaptation


def key_map_of(model: nn.Module) -> Callable[[str], str | None]:
    """Keys of ours and of the official code, of the backbone and of what its adaptations add."""
    methods, of_backbone = methods_of(model), getattr(model, "key_map", None)

    def key_map(key: str) -> str | None:
        if key.startswith(OWN):
            return key
        for index, method in enumerate(methods):
            key = method.official(key)
            if key.startswith("@"):
                return f"{OWN}methods.{index}.{key[1:]}"
        return of_backbone(key) if callable(of_backbone) else key

    return key_map


# ---------------------------------------------------------------- counting


def count(model: nn.Module) -> Count:
    """The whole model; copies of the backbone that an adaptation keeps do not count."""
    methods = methods_of(model)
    name = " + ".join(type(method).__name__ for method in methods)
    named = dict(model.named_parameters())
    trained = {key: p.numel() for key, p in named.items() if p.requires_grad}
    frozen = sum(p.numel() for key, p in named.items() if not p.requires_grad and not key.startswith(OWN))
    head = sum(number for key, number in trained.items() if key.startswith(HEAD))
    unused = sum(named[key].numel() for key in unused_parameters(model))
    return Count(name, sum(trained.values()), head, frozen, unused)


def count_methods(model: nn.Module) -> list[Count]:
    """Each method by itself: what it adds and what of the backbone it trains."""
    named = [(key, p) for key, p in model.named_parameters() if not key.startswith((OWN, HEAD))]
    counts = []
    for method in methods_of(model):
        existing = sum(p.numel() for key, p in named if method.trains(key))
        own = dict(method.named_parameters())
        trained = existing + sum(p.numel() for p in own.values() if p.requires_grad)
        frozen = sum(p.numel() for _, p in named) - existing
        counts.append(
            Count(type(method).__name__, trained, 0, frozen, sum(own[key].numel() for key in method.unused()))
        )
    return counts


def unused_parameters(model: nn.Module) -> list[str]:
    """Names of trained parameters that never take part; processes must not wait for their gradients."""
    return [f"{OWN}methods.{index}.{key}" for index, method in enumerate(methods_of(model)) for key in method.unused()]


# ---------------------------------------------------------------- the adaptation alone


def adapter_state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that the pre-trained encoder does not give back: trained, added, changed, or outside of it."""
    adaptation = adaptation_of(model)
    left_out = _copies_of_backbone(model) | {f"{OWN}{name}" for name, _ in adaptation.named_buffers(recurse=False)}
    changing = adaptation.originals()
    return {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in left_out and (name in changing or not name.startswith(ENCODER))
    }


def load_adapter_state(model: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """The reverse, on a model that carries the same adaptations; every tensor must be there."""
    expected, own = adapter_state(model), model.state_dict()
    missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or extra:
        what = f"lacks {missing[0]}" if missing else f"has {extra[0]}, which the model has not"
        raise UserError(f"not an adaptation of this model: it {what} ({len(missing)} missing, {len(extra)} unknown)")
    for name, tensor in tensors.items():
        if tensor.shape != own[name].shape:
            raise UserError(f"{name}: {tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model")
    with torch.no_grad():
        for name, tensor in tensors.items():
            own[name].copy_(tensor)


def backbone_hash(model: nn.Module) -> str:
    """Of the frozen weights that an adaptation relies on; equal for encoders that are equal bit for bit."""
    saved = adapter_state(model)
    return tensor_hash({n: p for n, p in model.named_parameters() if n not in saved and n.startswith(ENCODER)})


def _copies_of_backbone(model: nn.Module) -> set[str]:
    """Names of tensors that a method copied from the backbone to see it as it was."""
    found = set()
    for index, method in enumerate(methods_of(model)):
        names = getattr(method, "copies", ())
        found |= {f"{OWN}methods.{index}.{key}" for key in method.state_dict() if key.startswith(tuple(names))}
    return found
