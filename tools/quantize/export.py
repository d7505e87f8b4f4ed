"""A finished run as a packed file: `python -m tools.export --quantized --ckpts RUN/ckpt-best.pth --output F`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datasets.transforms import apply_all
from models.quant.apply import layers_of
from models.quant.storage import Sizes, load_packed, save_quantized
from tools.build import build_data, build_model, build_task, check_config
from tools.quantize.check import with_policy
from tools.quantize.section import Quantization, load_quantized, size_note
from tools.splits import DataSplits
from tools.tasks.base import Task
from tools.tasks.distill import Recorder, logits_of
from utils.checkpoint import read_checkpoint
from utils.config import load_config, to_plain
from utils.errors import UserError
from utils.random import BatchRandom

COMPARED = 8  # clouds


def export_quantized(args: argparse.Namespace) -> str:
    """Write the file, read it again, compare the outputs on clouds of the data; says size and outcome."""
    output = args.output or str(Path(args.ckpts).with_suffix(".safetensors"))
    if Path(output).suffix != ".safetensors":
        raise UserError(f"--output: {output}; name it .safetensors")
    checkpoint = read_checkpoint(args.ckpts)
    config = with_policy(configuration(args, checkpoint))
    device = torch.device("cpu")
    data, task = build_data(config, device, config.get("seed", 0)), build_task(config)
    section = Quantization(**config["quantize"])
    model = build_model(config, data)
    sizes = Sizes(model, section.quantizer)
    said = load_quantized(model, checkpoint, args.ckpts, section, data, task, device, testing=True, searching=False)
    size = save_quantized(output, model)
    fresh = build_model(config, data)
    load_packed(fresh, output, section.quantizer)
    if not same_weights(model, fresh):
        raise UserError(f"{output}: differs from the network after reading it again; do not use it, and report this")
    away = float((outputs(model, task, data) - outputs(fresh, task, data)).abs().max())
    note = size_note(size, sizes.float_file())
    return f"{said}\n{output}: {note}; read again: every weight the same bits, outputs differ by {away:.1g} at most"


def same_weights(model: nn.Module, fresh: nn.Module) -> bool:
    """Every weight that is used, and every other tensor, bit by bit."""
    ours, theirs = layers_of(model), layers_of(fresh)
    state, other = model.state_dict(), fresh.state_dict()
    return all(torch.equal(layer.weight, theirs[name].weight) for name, layer in ours.items()) and all(
        torch.equal(value, other[name]) for name, value in state.items() if name in other
    )


def configuration(args: argparse.Namespace, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint was made with, or a file; with the bits that the command line names."""
    config = to_plain(load_config(args.config, args.overrides)[0]) if args.config else checkpoint.get("config")
    if not isinstance(config, dict) or "model" not in config:
        raise UserError(f"{args.ckpts}: does not say how it was made; name --config")
    config = {key: value for key, value in config.items() if key != "search"}
    if args.policy is not None:
        chosen = {"bits": int(args.policy)} if args.policy.isdigit() else {"policy": args.policy}
        config["quantize"] = {**config.get("quantize", {}), **chosen}
    if "quantize" not in config:
        raise UserError(f"{args.ckpts}: is of a float run; say with --policy which bits its layers get")
    check_config(config)
    return config


@torch.no_grad()
def outputs(model: nn.Module, task: Task, data: DataSplits) -> Tensor:
    dataset = (data.test or data.fit_set).dataset
    rng = BatchRandom(0, rank=0, world=1)
    batch = apply_all(data.eval_transform, dataset.fetch(range(min(COMPARED, len(dataset)))), rng)
    recorder = Recorder(model.eval()).eval()
    getattr(task, "task", task).losses(recorder, batch, rng)
    return logits_of(recorder.output)
