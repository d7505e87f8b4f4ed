"""Adaptations in a run: put on the loaded model, their memory banks filled, saved alone.

python -m tools.adapt --config C                     what each adaptation trains, the whole, and what gets no gradient
python -m tools.adapt --config C --ckpts P --adapter A --merge OUT    write a merged adaptation (lora) as plain weights
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.peft import PEFT
from models.peft.apply import (
    adapter_state,
    apply_peft,
    backbone_hash,
    count,
    count_methods,
    key_map_of,
    load_adapter_state,
    merge_peft,
    unused_parameters,
)
from tools import memory_bank
from tools.splits import DataSplits
from tools.tasks.base import Autocast
from utils.checkpoint import save_checkpoint
from utils.errors import UserError, first_line

ADAPTER = "adapter.safetensors"
FORMAT = "pointsmith-adapter-1"


def entries(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The section `peft`; without it, or null, everything is trained."""
    return config.get("peft") or []


def check_entries(section: Any) -> None:
    if section is None:
        return
    if not isinstance(section, list) or not section:
        raise UserError("peft: expected a list of adaptations, each with a name; leave it out to train everything")
    for index, entry in enumerate(section):
        PEFT.check(entry, f"peft.{index}", given=("model",))


def is_adapted(model: nn.Module) -> bool:
    return getattr(model, "peft", None) is not None


def adapt(model: nn.Module, config: Mapping[str, Any]) -> None:
    """Put what the configuration lists on the model, if anything."""
    if entries(config):
        apply_peft(model, entries(config))
        # processes would wait for gradients that never come
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, unused_parameters(model))


def key_map(model: nn.Module):
    return key_map_of(model) if is_adapted(model) else getattr(model, "key_map", None)


def fill_banks(models: Sequence[nn.Module], data: DataSplits, autocast: Autocast) -> list[str]:
    """Memory banks of the adaptations that ask for one; a model and its moving average get the same."""
    lines = []
    for model in models:
        if is_adapted(model):
            lines = [line for method in memory_bank.wanting(model) for line in memory_bank.fill(method, data, autocast)]
    return lines


def report(model: nn.Module) -> list[str]:
    """One line a method where there are several, one for the whole."""
    counts = count_methods(model)
    return [*(map(str, counts) if len(counts) > 1 else ()), str(count(model))]


# ---------------------------------------------------------------- the adaptation alone


def save_adapter(model: nn.Module, config: Mapping[str, Any], path: Path) -> None:
    """What is not in the backbone's checkpoint, with all that is needed to put it on again."""
    from safetensors.torch import save

    metadata = {
        "format": FORMAT,
        "peft": json.dumps(entries(config)),
        "model": json.dumps(config["model"]),
        "backbone": backbone_hash(model),
    }
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in adapter_state(model).items()}
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(save(tensors, metadata))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_adapter(model: nn.Module, path: str | Path) -> str:
    """Onto a loaded backbone that carries the adaptations of the same configuration."""
    tensors, metadata = read_adapter(path)
    here = backbone_hash(model)
    if metadata.get("backbone") != here:
        raise UserError(
            f"{path}: made for backbone {metadata.get('backbone')}, this one is {here}; load the checkpoint it was "
            "trained on with --ckpts first"
        )
    try:
        load_adapter_state(model, tensors)
    except UserError as error:
        raise UserError(f"{path}: {error}; its adaptations are {metadata.get('peft')}") from error
    return f"{path}: {len(tensors)} tensors of the adaptation on backbone {here}"


def read_adapter(path: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{path}: damaged or not an adaptation ({first_line(error)})") from error
    if metadata.get("format") != FORMAT:
        raise UserError(f"{path}: holds tensors, but no adaptation; load whole checkpoints with --ckpts")
    return tensors, metadata


# ---------------------------------------------------------------- command line


def without_gradient(model: nn.Module, num_points: int) -> int:
    """Trained parameters that one backward pass does not reach."""
    for method in memory_bank.wanting(model):
        method.set_bank(torch.nn.functional.normalize(torch.randn(model.num_features, 64), dim=0))  # type: ignore[call-overload]
    model.train()
    out = model(torch.randn(2, num_points, 3), *([torch.zeros(2, dtype=torch.long)] if _takes_category(model) else []))
    out.float().square().mean().backward()
    reached = sum(p.numel() for p in model.parameters() if p.requires_grad and p.grad is not None)
    return sum(p.numel() for p in model.parameters() if p.requires_grad) - reached


def _takes_category(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "head", None), "num_categories", 0))


def main(argv: Sequence[str] | None = None) -> int:
    from tools.build import build_data, build_model, check_config, load_into
    from tools.cli import Parser, tell
    from utils.checkpoint import read_checkpoint
    from utils.config import load_config, to_plain

    parser = Parser(prog="python -m tools.adapt", description="What adaptations train; merging of those that can")
    parser.add_argument("--config", required=True, help="YAML file with a section `peft`")
    parser.add_argument("--num_classes", type=int, help="instead of reading the data, for a count alone")
    parser.add_argument("--ckpts", help="the backbone's checkpoint")
    parser.add_argument("--adapter", help="the adaptation-only file")
    parser.add_argument("--merge", metavar="OUT", help="where to write the merged weights")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    args = parser.parse_args(argv)
    try:
        config = to_plain(load_config(args.config, args.overrides)[0])
        check_config(config)
        if not entries(config):
            raise UserError(f"{args.config}: no section `peft`, so everything is trained")
        if args.merge and not (args.ckpts and args.adapter):
            raise UserError("--merge needs --ckpts, the backbone, and --adapter, the adaptation")
        _run(args, config, build_data, build_model, load_into, read_checkpoint)
    except (UserError, OSError) as error:
        return tell(str(error))
    return 0


def _run(args: argparse.Namespace, config: dict[str, Any], build_data, build_model, load_into, read_checkpoint) -> None:
    if args.num_classes:
        config["model"]["num_classes"] = args.num_classes
        model = build_model(config, argparse.Namespace(num_classes=args.num_classes, num_parts=1))
    else:
        model = build_model(config, build_data(config, torch.device("cpu"), 0))
    if args.ckpts:
        print(load_into(model, read_checkpoint(args.ckpts), args.ckpts, whole=False).summary())
    adapt(model, config)
    if args.adapter:
        print(load_adapter(model, args.adapter))
    print(*report(model), sep="\n")
    if args.merge:
        merge_peft(model)
        save_checkpoint(args.merge, {"model": model.state_dict(), "config": {**config, "peft": None}})
        print(f"merged: {args.merge}; use it with the same configuration and peft=null")
    else:
        print(f"without a gradient in one backward pass: {without_gradient(model, 1024):,}")


if __name__ == "__main__":
    sys.exit(main())
