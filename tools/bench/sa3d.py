"""What SA3D costs over its backbone alone, step by step: python scripts/bench.py sa3d

Whole training steps (forward, backward, optimizer, average), taken in turn in one process, half of the mask guided.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from models import MODELS
from tools.bench.measure import interleaved, machine, median, seconds
from utils.config import load_config, to_plain
from utils.cpu import has_bfloat16, tune
from utils.random import BatchRandom

BATCH, NUM_POINTS = 16, 1024
CASES: dict[str, tuple[str, str, str | None]] = {  # name: configurations of the backbone alone, of SA3D, of SA3DF
    "Point-MAE, published sizes": ("point_mae", "sa3d", "sa3df"),
    "Point-MAE, 3 M parameters": ("infomr69_small", "sa3d_infomr69_small", "sa3df_infomr69_small"),
    "Point-MAE of the quick start": ("point_mae_quickstart", "quickstart", None),
    "Point-M2AE, 3 M parameters": ("m2ae_infomr69_small", "m2ae_sa3d_infomr69_small", "m2ae_sa3df_infomr69_small"),
}
GOAL = 1.6


def run(args: argparse.Namespace) -> str:
    tune()
    where = "here" if has_bfloat16(torch.device("cpu")) else "where there are units for it, not here"
    lines = [
        f"A training step of {BATCH} clouds of {NUM_POINTS:,} points, half of the mask guided, in float32 but for the "
        f"average's look, which is in bfloat16 {where}; processor "
        f"time, medians of {args.rounds} rounds in turn; {machine()}",
        "",
        f"| | backbone alone | SA3D (goal: below {GOAL}) | all in float32 | SA3DF | "
        "mask sampler, share of the SA3D step |",
        "|---|---|---|---|---|---|",
    ]
    print(*lines, sep="\n")
    for name, configs in CASES.items():
        if args.only in name:
            lines.append(measured(name, configs, args.rounds))
            print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def measured(name: str, configs: tuple[str, str, str | None], rounds: int) -> str:
    points = clouds()
    alone, sa3d, sa3df = configs
    steps = {"alone": training_step(alone, points), "sa3d": training_step(sa3d, points)}
    if has_bfloat16(torch.device("cpu")):
        steps["float32"] = training_step(sa3d, points, average_precision="run")
    if sa3df:
        steps["sa3df"] = training_step(sa3df, points)
    times = {key: median(values) for key, values in interleaved(steps, rounds).items()}
    ratios = [f"{times[key] / times['alone']:.2f} x" if key in times else "" for key in ("sa3d", "float32", "sa3df")]
    sampler = median(interleaved({"mask": mask_alone(sa3d, points)}, 50)["mask"]) / times["sa3d"]
    return f"| {name} | {' | '.join([seconds(times['alone']), *ratios])} | {100 * sampler:.2f} % |"


def training_step(config: str, points: Tensor, **changes: str) -> Callable[[], object]:
    """Everything that the runner does with a batch but for its figures."""
    model, rng = build(config, **changes), BatchRandom(0)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(points, rng=rng)["loss"].backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if hasattr(model, "after_step"):
            model.after_step()

    return step


def mask_alone(config: str, points: Tensor) -> Callable[[], object]:
    """The sampler with difficulties at hand."""
    model, rng = build(config), BatchRandom(0)
    center = model.student.centers(model.student.group(points))
    difficulty = torch.rand(center.shape[:2])
    return lambda: model.mask(center, rng, difficulty)


def build(config: str, **changes: str) -> Any:
    """In training mode, at the end of the curriculum; a frozen teacher costs the same with any weights."""
    options = {**to_plain(load_config(f"cfgs/pretrain/{config}.yaml")[0])["model"], **changes}
    if "distillation_weights" in options:
        options["teacher"] = "none is loaded"
    torch.manual_seed(0)
    model = MODELS.build(options).train()
    if hasattr(model, "set_progress"):
        model.set_progress(99, 100)
    return model


def clouds() -> Tensor:
    """Points on ellipsoids: surfaces, as the shapes of the data sets are."""
    torch.manual_seed(0)
    points = F.normalize(torch.randn(BATCH, NUM_POINTS, 3), dim=-1) * (0.3 + 0.7 * torch.rand(BATCH, 1, 3))
    return points / points.norm(dim=-1).amax(1)[:, None, None]
