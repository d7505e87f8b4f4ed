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
from tools.adapt import check_entries, key_map
from tools.frozen import check_frozen, filled
from tools.optim import parameter_groups
from tools.quantize.check import check_quantize
from tools.runner import Runner
from tools.splits import DataSplits, check_data
from tools.tasks.base import Task
from utils import dist
from utils.checkpoint import LoadReport, load_weights, weights_in
from utils.errors import UserError, first_line
from utils.schema import check_arguments, check_required, check_type, hint, parameters

SECTIONS = (
    "task",
    "model",
    "peft",
    "data",
    "optimizer",
    "scheduler",
    "runner",
    "compat",
    "seed",
    "device",
    "deterministic",
)
QUANTIZED = ("quantize", "search")
SIZES = {"num_classes": "num_classes", "num_categories": "num_classes", "num_parts": "num_parts"}  # model: data
NEW_HEAD = ("head.",)  # may have another shape than in the checkpoint


def compat(
    point_mae_schedule: bool = False, double_step: bool = False, gm3d_layer_decay: bool = False
) -> dict[str, bool]:
    """Named switches that reproduce what was published where we do otherwise; those that the runner takes.

    point_mae_schedule: the learning rate is set once an epoch and one epoch late, and one epoch more is run.
    double_step: two optimizer steps a batch with one gradient, the first unclipped, as Point-MAE's part segmentation.
    gm3d_layer_decay: `runner.layer_decay` slows blocks and the class token alone, and tokens have weight decay.
    """
    return {"point_mae_schedule": point_mae_schedule, "double_step": double_step}


def check_config(config: Mapping[str, Any]) -> None:
    """Raise UserError for the first section, name, option or type that is wrong, before anything is read or built."""
    for key in config:
        if key not in (*SECTIONS, *QUANTIZED):
            raise UserError(f"{key}: no such section.{hint(key, (*SECTIONS, *QUANTIZED))}")
    for key in ("task", "model", "data", "optimizer"):
        if not isinstance(config.get(key), Mapping):
            raise UserError(f"{key}: section missing; the configuration needs it")
    TASKS.check(config["task"], "task")
    MODELS.check(config["model"], "model", given=tuple(SIZES))
    check_entries(config.get("peft"))
    OPTIMIZERS.check(config["optimizer"], "optimizer", given=("params",))
    SCHEDULERS.check(config.get("scheduler", {"name": "cosine"}), "scheduler")
    for section, target in (("runner", Runner), ("compat", compat)):
        check_type(config.get(section, {}), dict, section)
        check_arguments(target, config.get(section, {}), section, f"section '{section}'")
    if config.get("runner", {}).get("bn_momentum") is not None:
        SCHEDULERS.check(config["runner"]["bn_momentum"], "runner.bn_momentum")
    data = {**config["data"]}
    check_arguments(DataSplits, data, "data", "section 'data'")
    check_required(DataSplits, data, "data", "section 'data'")
    check_data(data)
    for key, kind in (("seed", int), ("device", str), ("deterministic", bool)):
        if key in config:
            check_type(config[key], kind, key)
    check_quantize(config)
    if not 0 <= config.get("seed", 0) < 2**63:
        raise UserError(f"seed: {config['seed']}; use 0 or more, below 2 ** 63")


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
    return MODELS.build(with_sizes(config["model"], data), "model")


def with_sizes(cfg: Mapping[str, Any], data: DataSplits, where: str = "model") -> dict[str, Any]:
    """The numbers of classes, parts and categories come from the data unless the configuration names them."""
    filled = dict(cfg)
    for key in _sizes_taken(cfg):
        there = getattr(data, SIZES[key])
        if key not in cfg:
            filled[key] = there
            if key == "num_parts" and there == 0:
                raise UserError(
                    "data: no part names, so these data cannot be segmented; name data with a label for every point"
                )
        elif cfg[key] < there and not (key == "num_categories" and cfg[key] == 0):
            raise UserError(
                f"{where}.{key}: {cfg[key]}, but the data have {there} {key.removeprefix('num_')}; leave it out"
            )
    if isinstance(cfg.get("network"), Mapping):  # the network behind a sampler
        filled["network"] = with_sizes(cfg["network"], data, f"{where}.network")
    return filled


def load_into(model: nn.Module, checkpoint: Mapping[str, Any], path: str, *, whole: bool) -> LoadReport:
    """Weights of ours or of the official code. whole: every tensor must be there (to test a finished model)."""
    weights = weights_in(checkpoint, path)
    check_frozen(model, checkpoint.get("metadata", {}), path)
    report = load_weights(model, weights, path, key_map(model), may_differ=() if whole else NEW_HEAD)
    if hasattr(model, "after_loading"):
        model.after_loading(report.loaded)  # type: ignore[operator]
    if whole and any(not name.startswith(filled(model)) for name in report.missing):
        raise UserError(f"{report.summary()}: a finished model is needed here; fine-tune it first")
    return report


def build_optimizer(config: Mapping[str, Any], model: nn.Module, trains: bool = True) -> torch.optim.Optimizer | None:
    """None for a model that is only tested."""
    if not trains:
        return None
    cfg = config["optimizer"]
    default = parameters(OPTIMIZERS.get(cfg["name"], "optimizer"))["weight_decay"].default
    layer_decay = config.get("runner", {}).get("layer_decay", 1.0)
    gm3d = config.get("compat", {}).get("gm3d_layer_decay", False)
    groups = parameter_groups(model, cfg.get("weight_decay", default), layer_decay, gm3d)
    if not groups:
        raise UserError("model: every parameter is frozen; there is nothing to train")
    # one kernel for all parameters, which also can leave a step out without the host
    fused = {} if "fused" in cfg or "foreach" in cfg else {"fused": _can_fuse(model, cfg)}
    try:
        return OPTIMIZERS.build(cfg, "optimizer", params=groups, **fused)
    except UserError:
        raise
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"optimizer: {cfg['name']} cannot be made with these options ({first_line(error)})") from error


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
