"""What a run starts from: a checkpoint, adaptations put on it, a frozen teacher beside it."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from models.peft.apply import OWN
from tools.adapt import adapt, entries, load_adapter
from tools.build import load_into
from tools.mismatch import other_depth
from tools.teacher import put_teacher
from utils.checkpoint import weights_in


def put_weights(
    args: argparse.Namespace, config: Mapping[str, Any], model: nn.Module, checkpoint: Mapping[str, Any]
) -> tuple[list[str], Collection[str]]:
    """Lines that say what was loaded, and the names of the tensors that were."""
    lines, loaded = put_backbone(args, config, model, checkpoint)
    if not (args.test or args.svm or args.resume):  # else it lies in the checkpoint, or is not needed
        lines += filter(None, [put_teacher(model)])
    return lines, loaded


def put_backbone(
    args: argparse.Namespace, config: Mapping[str, Any], model: nn.Module, checkpoint: Mapping[str, Any]
) -> tuple[list[str], Collection[str]]:
    """Weights, then adaptations; a finished adapted model is a checkpoint of both."""
    if not args.ckpts:
        adapt(model, config)
        return [] if args.resume else ["weights: at random"], []
    finished = entries(config) and any(key.startswith(OWN) for key in weights_in(checkpoint, args.ckpts))
    if finished or (args.test and not args.adapter):
        adapt(model, config)
        found = load_into(model, checkpoint, args.ckpts, whole=args.test)
        return [found.summary()], found.loaded
    found = load_into(model, checkpoint, args.ckpts, whole=False)
    adapt(model, config)
    adapter = [load_adapter(model, args.adapter)] if args.adapter else []
    return [found.summary(), *other_depth(found), *adapter], found.loaded
