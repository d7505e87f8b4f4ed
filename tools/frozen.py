"""Models of which a part stays as it was loaded: how much is trained, what was forgotten, the trained part alone."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from models.peft.apply import OWN
from utils.checkpoint import tensor_hash
from utils.errors import UserError

TRAINED = "trained.safetensors"


def check_frozen(model: nn.Module, metadata: Mapping[str, str], path: str) -> None:
    """A trained part works on the frozen part that it was trained on alone."""
    needed = metadata.get("frozen")
    if needed is None or not hasattr(model, "frozen_state"):
        return
    parts: Any = model
    here = tensor_hash(parts.frozen_state())
    if here != needed:
        raise UserError(
            f"{path}: trained on the frozen weights {needed} of {metadata.get('frozen_from')}, but these are {here} of "
            f"{parts.frozen_from or 'no file, at random'}; name the same file in model.tower.weights"
        )


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
    left = [
        name for name in left if not name.startswith((OWN, *filled(model), *getattr(model, "frozen_on_purpose", ())))
    ]
    if not left:
        return []
    return [f"{len(left)} frozen tensors ({left[0]}, ...) are at random and will stay so; load them with --ckpts"]


def filled(model: nn.Module) -> tuple[str, ...]:
    """Prefixes of what the model read from files of its own."""
    return getattr(model, "filled", ())


def save_trained(model: nn.Module, folder: Path, start: str) -> None:
    """All but what the frozen part's own file gives back, where the model tells the two apart; and which frozen part it
    was trained on. start: what the run began with."""
    if not hasattr(model, "trained_state"):
        return
    from safetensors.torch import save_file

    parts: Any = model
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in parts.trained_state().items()}
    metadata = {"frozen": tensor_hash(parts.frozen_state()), "frozen_from": parts.frozen_from or start}
    temporary = folder / f".{TRAINED}.{os.getpid()}.tmp"
    try:
        save_file(tensors, temporary, metadata)
        os.replace(temporary, folder / TRAINED)
    finally:
        temporary.unlink(missing_ok=True)
