"""From a checked configuration to the objects of a run."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from models import MODELS
from models.layers.sync_batchnorm import convert_sync_batchnorm
from tools import OPTIMIZERS, SCHEDULERS, TASKS
from tools.optim import parameter_groups
from tools.runner import Runner
from tools.splits import DataSplits, check_data
from tools.tasks.base import Task
from utils import dist
from utils.checkpoint import LoadReport, load_weights, weights_in
from utils.errors import UserError
from utils.schema import check_arguments, check_required, check_type, hint, parameters

SECTIONS = ("task", "model", "data", "optimizer", "scheduler", "runner", "compat", "seed", "device", "deterministic")
SIZES = {"num_classes": "num_classes", "num_categories": "num_classes", "num_parts": "num_parts"}  # model: data
NEW_HEAD = ("head.",)  # may have another shape than in the checkpoint


def compat(point_mae_schedule: bool = False) -> dict[str, bool]:
    """Named switches that reproduce what was published where we do otherwise.

    point_mae_schedule: the learning rate is set once an epoch and one epoch late, and one epoch more is run.
    """
    return {"point_mae_schedule": point_mae_schedule}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first section, name, option or type that is wrong, before anything is read or built."""
    for key in config:
        if key not in SECTIONS:
            raise UserError(f"{key}: no such section.{hint(key, SECTIONS)}")
    for key in ("task", "model", "data", "optimizer"):
        if not isinstance(config.get(key), Mapping):
            raise UserError(f"{key}: section missing; the configuration needs it")
    TASKS.check(config["task"], "task")
    MODELS.check(config["model"], "model", given=tuple(_sizes_taken(config["model"])))
    OPTIMIZERS.check(config["optimizer"], "optimizer", given=("params",))
    SCHEDULERS.check(config.get("scheduler", {"name": "cosine"}), "scheduler")
    for section, target in (("runner", Runner), ("compat", compat)):
        check_type(config.get(section, {}), dict, section)
        check_arguments(target, config.get(section, {}), section, f"section '{section}'")
    data = {**config["data"]}
    check_arguments(DataSplits, data, "data", "section 'data'")
    check_required(DataSplits, data, "data", "section 'data'")
    check_data(data)
    for key, kind in (("seed", int), ("device", str), ("deterministic", bool)):
        if key in config:
            check_type(config[key], kind, key)
    if config.get("seed", 0) < 0:
        raise UserError(f"seed: {config['seed']}; use 0 or more")


def build_device(name: str = "auto") -> torch.device:
    """auto: the first CUDA device of this process, else Apple's, else the CPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"device: '{name}' is not a device; use auto, cpu, cuda, cuda:1 or mps") from error
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UserError("device: 'mps' asked for, but torch sees no Apple GPU; use device=cpu")
    if device.type == "cuda":
        device = torch.device("cuda", dist.local_rank() if device.index is None else device.index)
        count = torch.cuda.device_count()
        if device.index >= count:
            raise UserError(f"device: '{name}' asked for, but torch sees {count} CUDA devices; use device=cpu")
        torch.cuda.set_device(device)
    return device


def build_data(config: Mapping[str, Any], device: torch.device, seed: int) -> DataSplits:
    return DataSplits(**config["data"], seed=seed, device=device)


def build_model(config: Mapping[str, Any], data: DataSplits) -> nn.Module:
    """The numbers of classes, parts and categories come from the data unless the configuration names them."""
    cfg, extra = config["model"], {}
    for key in _sizes_taken(cfg):
        there = getattr(data, SIZES[key])
        if key not in cfg:
            extra[key] = there
        elif cfg[key] < there and not (key == "num_categories" and cfg[key] == 0):
            raise UserError(
                f"model.{key}: {cfg[key]}, but the data have {there} {key.removeprefix('num_')}; leave it out"
            )
    if extra.get("num_parts") == 0:
        raise UserError(
            "data: no part names, so these data cannot be segmented; name data with a label for every point"
        )
    return MODELS.build(cfg, "model", **extra)


def load_into(model: nn.Module, checkpoint: Mapping[str, Any], path: str, *, whole: bool) -> LoadReport:
    """Weights of ours or of the official code. whole: every tensor must be there (to test a finished model)."""
    weights = weights_in(checkpoint, path)
    report = load_weights(model, weights, path, getattr(model, "key_map", None), may_differ=() if whole else NEW_HEAD)
    if whole and report.missing:
        raise UserError(f"{report.summary()}: a finished model is needed here; fine-tune it first")
    return report


def build_optimizer(config: Mapping[str, Any], model: nn.Module) -> torch.optim.Optimizer:
    cfg = config["optimizer"]
    default = parameters(OPTIMIZERS.get(cfg["name"], "optimizer"))["weight_decay"].default
    groups = parameter_groups(model, cfg.get("weight_decay", default))
    if not groups:
        raise UserError("model: every parameter is frozen; there is nothing to train")
    # one kernel for all parameters, which also can leave a step out without the host
    fused = {} if "fused" in cfg or "foreach" in cfg else {"fused": _can_fuse(model, cfg)}
    return OPTIMIZERS.build(cfg, "optimizer", params=groups, **fused)


def _can_fuse(model: nn.Module, cfg: Mapping[str, Any]) -> bool | None:
    """Whether PyTorch has a fused step for the device; None leaves it the choice."""
    on = {p.device.type for p in model.parameters()} <= {"cpu", "cuda"}
    return True if on and not cfg.get("differentiable") else None


def build_schedule(config: Mapping[str, Any]):
    return SCHEDULERS.build(config.get("scheduler", {"name": "cosine"}), "scheduler")


def build_task(config: Mapping[str, Any]) -> Task:
    return TASKS.build(config["task"], "task")


def build_runner(config: Mapping[str, Any], model: nn.Module) -> Runner:
    runner = Runner(**config.get("runner", {}))
    if runner.sync_bn and dist.world_size() > 1:
        convert_sync_batchnorm(model)
    return runner


def set_determinism(on: bool) -> None:
    """Refuse operations whose result can change from run to run."""
    if on:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _sizes_taken(cfg: Mapping[str, Any]) -> list[str]:
    """Which sizes of the data the model asks for."""
    return [key for key in parameters(MODELS.get(cfg.get("name", ""), "model")) if key in SIZES]
