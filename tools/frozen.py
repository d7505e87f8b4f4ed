"""Models of which a part stays as it was loaded: how much is trained, what was forgotten, the trained part alone."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from torch import nn

from models.peft.apply import OWN

TRAINED = "trained.safetensors"


def describe_parameters(model: nn.Module) -> str:
    """Trained with and without the head, frozen, share of the whole."""
    trained = {name: p.numel() for name, p in model.named_parameters() if p.requires_grad}
    frozen = sum(p.numel() for p in model.parameters() if not p.requires_grad)
    number = sum(trained.values())
    if not frozen:
        return f"{number:,} parameters trained, 0 frozen"
    bare = sum(count for name, count in trained.items() if not name.startswith("head."))
    share = 100 * number / (number + frozen)
    return f"{number:,} parameters trained ({bare:,} without the head), {frozen:,} frozen; {share:.2f} % are trained"


def frozen_at_random(model: nn.Module, loaded: Collection[str]) -> list[str]:
    """One line where parameters lie that nothing filled and nothing will train. loaded: names that a file filled."""
    left = [name for name, p in model.named_parameters() if not p.requires_grad and name not in loaded]
    left = [name for name in left if not name.startswith((OWN, *filled(model)))]
    if not left:
        return []
    return [f"{len(left)} frozen tensors ({left[0]}, ...) are at random and will stay so; load them with --ckpts"]


def filled(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of what the model read from files of its own."""
    return getattr(model, "filled", ())


def save_trained(model: nn.Module, folder: Path) -> None:
    """All but what the frozen part's own file gives back, where the model tells the two apart."""
    trained_state = getattr(model, "trained_state", None)
    if trained_state is None:
        return
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in trained_state().items()}
    temporary = folder / f".{TRAINED}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary)
        os.replace(temporary, folder / TRAINED)
    finally:
        temporary.unlink(missing_ok=True)
