"""Section `quantize` of a configuration: what becomes of the float network after its checkpoint is loaded."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.utils import parametrize

from datasets.transforms import apply_all
from models.quant import QUANTIZERS
from models.quant.apply import LAYERS, Policy, Quantizer, calibrate, make_policy, quantize, train_codebooks_only
from models.quant.storage import is_packed, load_packed
from tools.quantize.check import read_policy
from tools.splits import DataSplits
from tools.tasks.base import Task
from utils.checkpoint import LoadReport, load_weights, read_checkpoint, weights_in
from utils.config import dump_config
from utils.errors import UserError
from utils.random import BatchRandom

CALIBRATION_CLOUDS = 64


class Quantization:
    """quantizer: see models/quant. bits, activation_bits: for every layer that nothing else is said of; 0 is float.

    policy: a file, or layer -> bits or [bits of the weight, bits of the input]. keep_float: patterns of layer names.
    keep_bits: pattern -> bits. protect: the first and the last layer stay float. train: everything, or only codebooks,
    biases, norms and ranges.
    """

    def __init__(
        self,
        quantizer: dict | None = None,
        bits: int = 0,
        activation_bits: int = 0,
        policy: str | dict | None = None,
        keep_float: list[str] | None = None,
        keep_bits: dict | None = None,
        protect: bool = True,
        train: Literal["all", "codebooks"] = "all",
    ):
        self.quantizer: Quantizer = QUANTIZERS.build(quantizer or {"name": "kmeans"}, "quantize.quantizer")
        self.bits, self.activation_bits, self.given = bits, activation_bits, read_policy(policy)
        self.keep_float, self.keep_bits, self.protect = tuple(keep_float or ()), keep_bits or {}, protect
        self.train = train

    def policy(self, model: nn.Module) -> Policy:
        return make_policy(
            model, self.bits, self.activation_bits, self.given, self.keep_float, self.keep_bits, self.protect
        )

    def searched(self, model: nn.Module) -> list[str]:
        """Layers whose bits a search may choose: those that neither protection nor a pattern settles."""
        policy = make_policy(model, 8, 0, None, self.keep_float, self.keep_bits, self.protect)
        settled = make_policy(model, 0, 0, None, self.keep_float, self.keep_bits, self.protect)
        names = [name for name in policy if policy[name] != settled[name]]
        if not names:
            raise UserError("quantize: no layer is left to search over; name fewer in quantize.keep_float")
        return names

    def apply(self, model: nn.Module) -> nn.Module:
        quantize(model, self.policy(model), self.quantizer)
        if self.train == "codebooks":
            train_codebooks_only(model)
        return model


def write_policy(path: Path, policy: Policy, about: Mapping[str, Any]) -> None:
    """A file that quantize.policy takes; every layer stands in it, so that nothing depends on other options."""
    layers = {name: list(pair) if pair[1] else pair[0] for name, pair in policy.items()}
    path.write_text(dump_config({**about, "layers": layers}), encoding="utf-8")


def load_quantized(
    model: nn.Module,
    checkpoint: Mapping[str, Any],
    path: str,
    section: Quantization,
    data: DataSplits,
    task: Task,
    device: torch.device,
    *,
    testing: bool,
    searching: bool,
) -> str:
    """Float weights, quantized; or a finished quantized network, from a checkpoint or a packed file. Says which."""
    if is_packed(path):
        if not testing:
            raise UserError(f"{path}: a packed file can be tested; train from the checkpoint it was made of")
        policy = load_packed(model, path, section.quantizer)
        return f"{path}: packed, {sum(bool(any(pair)) for pair in policy.values())} layers quantized"
    weights = weights_in(checkpoint, path)
    finished = any(".parametrizations." in key for key in weights)
    if finished and searching:
        raise UserError(f"{path}: is quantized already; a search starts from a float checkpoint")
    if finished:
        section.apply(model)
        report = _load_whole(model, weights, path)
    else:
        report = _load_whole(model, weights, path)
        give_teacher(task, model, device)
        if not searching:
            section.apply(model)
            calibrate_on(model, data, task)
    if task.wants_teacher and not testing:
        give_named_teacher(task, model, device, needed=finished)
    layers = sum(bool(any(pair)) for pair in section.policy(model).values())
    return report.summary() + ("" if searching else f"; {layers} layers quantized")


def _load_whole(model: nn.Module, weights: Mapping[str, torch.Tensor], path: str) -> LoadReport:
    report = load_weights(model, weights, path, getattr(model, "key_map", None))
    if report.missing:
        raise UserError(f"{report.summary()}: quantization needs a finished model; fine-tune it first")
    return report


def give_teacher(task: Task, model: nn.Module, device: torch.device) -> None:
    """The float network as it was loaded, where the task wants one and names no other."""
    if task.wants_teacher and getattr(task, "teacher_checkpoint", None) is None:
        task.set_teacher(copy.deepcopy(model).to(device))


def give_named_teacher(task: Task, model: nn.Module, device: torch.device, *, needed: bool) -> None:
    path = getattr(task, "teacher_checkpoint", None)
    if path is None:
        if needed:
            raise UserError("task.teacher: the start is quantized already; name the float checkpoint of the teacher")
        return
    teacher = dequantized_copy(model)
    _load_whole(teacher, weights_in(read_checkpoint(path), path), path)
    task.set_teacher(teacher.to(device))


def dequantized_copy(model: nn.Module) -> nn.Module:
    """The same architecture without anything quantized."""
    plain = copy.deepcopy(model)
    layers: list[Any] = [module for module in plain.modules() if isinstance(module, LAYERS)]
    for layer in layers:
        if parametrize.is_parametrized(layer, "weight"):
            weight = layer.weight.detach().clone()
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=False)
            layer.weight = nn.Parameter(weight)
        if hasattr(layer, "input_range"):
            del layer.input_range
            layer._forward_pre_hooks.clear()
    return plain


def calibrate_on(model: nn.Module, data: DataSplits, task: Task) -> None:
    """Measure the ranges of rounded inputs on training clouds as they are evaluated."""
    if not any(hasattr(module, "input_range") for module in model.modules()):
        return
    device = next(model.parameters()).device
    dataset = data.fit_set.dataset
    batch = dataset.fetch(range(min(CALIBRATION_CLOUDS, len(dataset))))
    batch = {key: value.to(device) for key, value in batch.items()}
    rng = BatchRandom(0, device, rank=0, world=1)
    batch = apply_all(data.eval_transform, batch, rng)
    inner = getattr(task, "task", task)  # the teacher has nothing to do with it
    training = model.training
    calibrate(model.eval(), lambda: inner.losses(model, batch, rng))
    model.train(training)


def size_note(size: int, float_size: int) -> str:
    return f"{size:,} bytes on disk, {100 * size / float_size:.1f} % of float"
