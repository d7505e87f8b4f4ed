"""The frozen teacher of a model that learns features: found, or pre-trained first, then put in its place."""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from tools.experiment import LAST
from tools.sweep import Run, prefix, prepare
from utils.checkpoint import read_checkpoint, weights_in
from utils.errors import UserError
from utils.logging import get_logger

AUTO = "auto"
Start = Callable[[argparse.Namespace, dict[str, Any]], None]


def resolve_teacher(args: argparse.Namespace, config: dict[str, Any], start: Start) -> dict[str, Any]:
    """The configuration with a path for `model.teacher: auto`; where training is about to begin and the teacher is not
    there yet, its backbone is pre-trained alone, by the normal command, in a folder beside that of the run."""
    if config["model"].get("teacher") != AUTO:
        return config
    run = teacher_run(args, config)
    changed = {**config, "model": {**config["model"], "teacher": str(run.folder / LAST)}}
    if not (args.resume or args.test or args.svm):
        run.args.resume = True  # what is there already is used
        prepare(run)
        if not run.done:
            get_logger().info(f"model.teacher: auto: pre-training {run.config['model']['name']} first, in {run.folder}")
            start(run.args, run.config)
    return changed


def teacher_run(args: argparse.Namespace, config: dict[str, Any]) -> Run:
    """The same run with the backbone alone, which hides as much, at random."""
    backbone = config["model"].get("backbone")
    if not isinstance(backbone, dict):
        raise UserError("model.teacher: auto, but the model has no backbone to pre-train")
    mask = {"name": "random", "ratio": config["model"].get("mask", {}).get("ratio", 0.6)}
    own = copy.copy(args)
    own.exp_name, own.ckpts, own.overwrite = f"{prefix(args)}{args.exp_name}-teacher", None, False
    own.test = own.svm = False
    folder = Path(args.root) / Path(args.config).stem / own.exp_name
    return Run(own, {**config, "model": {**backbone, "mask": mask}}, folder)


def put_teacher(model: nn.Module) -> str | None:
    """Load the teacher that the model asks for; says what came of it."""
    source = getattr(model, "teacher_source", None)
    if source is None:
        return None
    report = model.load_teacher(weights_in(read_checkpoint(source), source), source)  # type: ignore[operator]
    return f"teacher: {report.summary()}"
