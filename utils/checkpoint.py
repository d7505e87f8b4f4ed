"""Checkpoints: written whole or not at all, read without running code, loaded with a report.

A checkpoint is one dictionary of tensors and plain containers. Weights from other projects come in through key maps:
small functions from a foreign key to ours, or to None for what we do not need.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from utils.errors import UserError, first_line
from utils.torchscript import is_torchscript, read_torchscript

KeyMap = Callable[[str], "str | None"]
# where projects of this field put weights; a moving average goes first, as it is what was evaluated
WEIGHT_KEYS = ("ema", "model", "base_model", "state_dict", "model_state_dict")


def save_checkpoint(path: str | Path, state: Mapping[str, Any]) -> None:
    """Write to a temporary file beside the target, flush it to disk, rename: a crash leaves the old file intact."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            try:
                torch.save(dict(state), file)
            except RuntimeError as error:  # where the disk is full, the zip writer's own error hides the reason
                raise (error.__context__ if isinstance(error.__context__, OSError) else error) from None
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        kept = "; the file of before is unharmed" if path.is_file() else ""
        raise UserError(
            f"{path}: cannot be written ({first_line(error)}){kept}; make room or choose another --root"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_checkpoint(path: str | Path, bare: str | None = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; code inside a file is never executed. bare: a lone tensor is taken too, under
    this key."""
    path = Path(path)
    if not path.is_file():
        beside = sorted(p.name for p in path.parent.glob("*.pth")) if path.parent.is_dir() else []
        raise UserError(f"{path}: no such checkpoint" + (f"; beside it: {', '.join(beside[:5])}" if beside else ""))
    try:
        if path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(path, "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
                return {"model": tensors, "metadata": file.metadata() or {}}
        if is_torchscript(path):
            return {"model": read_torchscript(path)}
        with torch.serialization.safe_globals(_numpy_scalars()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on foreign pickles; what cannot be read is told below
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{path}: holds code or objects instead of tensors and plain values; refused, nothing was executed"
        ) from error
    except Exception as error:  # damaged bytes make the zip, pickle and safetensors readers raise nearly anything
        raise UserError(f"{path}: damaged or not a checkpoint ({first_line(error)})") from error
    if bare is not None and isinstance(state, Tensor):
        return {bare: state}
    if not isinstance(state, dict):
        raise UserError(f"{path}: holds a {type(state).__name__}, expected a dictionary of tensors")
    return state


def _numpy_scalars() -> list:
    """What reading a NumPy number takes: official checkpoints keep their accuracy as one."""
    scalar = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]  # NumPy 1 and 2
    return [*names, np.dtype, *(type(np.dtype(kind)) for kind in ("f8", "f4", "i8", "i4", "?"))]


def tensor_hash(tensors: Mapping[str, Tensor]) -> str:
    """Equal for equal names and equal bits."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def weights_in(state: Mapping[str, Any], path: str | Path) -> dict[str, Tensor]:
    """The state dict inside a checkpoint, whichever project wrote it, without `module.` prefixes."""
    for key in WEIGHT_KEYS:
        if isinstance(state.get(key), Mapping):
            state = state[key]
            break
    tensors = {key: value for key, value in state.items() if isinstance(value, Tensor) and key != "n_averaged"}
    weights = {key.removeprefix("module."): value for key, value in tensors.items()}
    if not weights:
        raise UserError(f"{path}: no weights in it; keys found: {', '.join(map(str, list(state)[:8])) or 'none'}")
    return weights


@dataclass
class LoadReport:
    """What happened to every tensor of a checkpoint and of the model."""

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)  # in the model, not in the file
    unexpected: list[str] = field(default_factory=list)  # in the file, not in the model
    unused: list[str] = field(default_factory=list)  # left out by the key map on purpose
    reshaped: list[str] = field(default_factory=list)  # there, but of another shape

    def summary(self) -> str:
        def few(names: list[str]) -> str:
            return f"{len(names)}" + (f" ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else "")

        return (
            f"{self.source}: loaded {len(self.loaded)} tensors, left at init {few(self.missing)}, "
            f"unexpected {few(self.unexpected)}, other shape {few(self.reshaped)}, not needed {len(self.unused)}"
        )


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    source: str | Path,
    key_map: KeyMap | None = None,
    may_differ: tuple[str, ...] = (),
) -> LoadReport:
    """Copy every tensor that fits into the model. Nothing fitting is an error, and so is a tensor of another shape
    (a small encoder in a large configuration), except below the prefixes in `may_differ` (a new head).
    """
    report, own = LoadReport(str(source)), model.state_dict()
    fitting: dict[str, Tensor] = {}
    sources: dict[str, str] = {}  # where two tensors lay claim to a place, the one further down in its model has it
    for key in weights:
        target = key_map(key) if key_map else key
        if target is not None and key.count(".") >= sources.get(target, "").count("."):
            sources[target] = key
    for key, value in weights.items():
        target = key_map(key) if key_map else key
        if target is None or sources[target] != key:
            report.unused.append(key)
        elif target not in own:
            report.unexpected.append(key)
        else:
            value = _as_linear(value, own[target])
            if value.shape == own[target].shape:
                fitting[target] = value
            else:
                report.reshaped.append(f"{target}: file {tuple(value.shape)}, model {tuple(own[target].shape)}")
    reshaped = {text.split(":")[0] for text in report.reshaped}
    report.loaded, report.missing = sorted(fitting), sorted(set(own) - set(fitting) - reshaped)
    if not fitting:
        raise UserError(f"{report.summary()}: nothing fits the model; is this a checkpoint of another model?")
    if any(not name.startswith(may_differ) for name in reshaped) if may_differ else reshaped:
        raise UserError(f"{report.summary()}: sizes differ; use the configuration that this checkpoint was made with")
    model.load_state_dict(fitting, strict=False)
    return report


def _as_linear(value: Tensor, like: Tensor) -> Tensor:
    """A convolution with kernel 1 is a Linear: (out, in, 1, ...) -> (out, in); scalars may come as (1,)."""
    while value.ndim > like.ndim and value.shape[-1] == 1:
        value = value.squeeze(-1)
    return value
