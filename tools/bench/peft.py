"""What adaptations cost and what they reach, as one table.

python -m tools.bench.peft cost --config C --out cost.json [peft=...]   time of a training step, peak memory, parameters
python -m tools.bench.peft table --root R --configs infomr69 capod15 --methods full lora ...   markdown
"""

from __future__ import annotations

import argparse
import ctypes
import json
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from tools.adapt import ADAPTER, adapt, count, fill_banks, is_adapted
from tools.bench.measure import machine
from tools.build import build_data, build_device, build_model, build_optimizer, check_config
from tools.cli import Parser, tell
from tools.report import read_results
from tools.runner import Runner
from utils.config import load_config, to_plain
from utils.cpu import tune
from utils.errors import UserError
from utils.random import seed_everything

WARM_UP, STEPS = 3, 15
CLEAR_REFS = Path("/proc/self/clear_refs")  # writing 5 sets the peak of this process back to what it holds now


def cost(config: dict[str, Any]) -> dict[str, Any]:
    """Of whole training steps (forward, backward, optimizer) on a batch of the run's own size and data."""
    seed_everything(0)
    device = build_device(config.get("device", "auto"))
    tune()
    data = build_data(config, device, 0)
    model = build_model(config, data)
    adapt(model, config)
    model.to(device)
    runner = Runner(**config.get("runner", {}))
    runner.device = device
    fill_banks([model], data, runner.autocast)
    optimizer = build_optimizer(config, model)
    assert optimizer is not None
    batch = next(data.train.epoch())
    before = _reset_peak(device)
    times = [_step(model.train(), optimizer, batch, device) for _ in range(WARM_UP + STEPS)][WARM_UP:]
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith("head."))
    return {
        "trained": trained,
        "without_head": trained - head,
        "frozen": count(model).frozen if is_adapted(model) else 0,
        "step_ms": round(1000 * statistics.median(times), 1),
        "peak_mb": round(_peak(device) - before, 1),
        "batch": len(batch["points"]),
        "machine": machine(),
    }


def _step(model: nn.Module, optimizer: torch.optim.Optimizer, batch: dict, device: torch.device) -> float:
    """Processor time, so that other work on the machine does not count; on a GPU, wall time."""
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    F.cross_entropy(model(batch["points"]), batch["label"]).backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def _reset_peak(device: torch.device) -> float:
    """MB in use now; the peak counts from here."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return 0.0
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    if trim is not None:  # what building data and memory bank freed goes back, or a step would use it uncounted
        trim(0)
    try:
        CLEAR_REFS.write_text("5")
    except OSError:  # another system: the peak of the whole process so far
        return 0.0
    return _status("VmRSS")


def _peak(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return _status("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def _status(key: str) -> float:
    path = Path("/proc/self/status")
    lines = path.read_text().splitlines() if path.is_file() else []
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith(key)), 0.0)


# ---------------------------------------------------------------- table


def table(root: Path, configs: Sequence[str], methods: Sequence[str]) -> list[str]:
    """One row a method: accuracy on every data set, parameters, time, memory, size of the file."""
    heads = [f"{name}, accuracy %" for name in configs]
    columns = ["method", *heads, "trained", "without head", "% of full", "step, ms", "peak, MB", "adapter, kB"]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    full = _cost(root, configs[0], "full")
    for method in methods:
        spent = _cost(root, configs[0], method)
        cells = [method, *(_accuracy(root / name / method) for name in configs)]
        cells += [f"{spent['trained']:,}", f"{spent['without_head']:,}"]
        cells.append(f"{100 * spent['without_head'] / full['without_head']:.2f}" if full else "")
        cells += [f"{spent['step_ms']:.0f}", f"{spent['peak_mb']:.0f}", _size(root / configs[0] / f"{method}-seed0")]
        lines.append(f"| {' | '.join(cells)} |")
    spent = _cost(root, configs[0], methods[0])
    return [*lines, "", f"Batch {spent['batch']}; {spent['machine']}."]


def _cost(root: Path, config: str, method: str) -> dict[str, Any]:
    path = root / config / f"cost-{method}.json"
    if not path.is_file():
        raise UserError(f"{path}: not there; measure it first (`cost`)")
    return json.loads(path.read_text())


def _accuracy(folder: Path) -> str:
    """Of the weights that the selection rule chose, else of the last epoch."""
    rows = [row for row in read_results(folder)["rows"] if row["metric"] == "acc"]
    if not rows:
        return ""
    row = next((row for row in rows if str(row.get("selection", "")).startswith("best")), rows[0])
    spread = f" +- {row['std']:.2f}" if row.get("std") is not None else ""
    return f"{row['value']:.2f}{spread} ({row['n']})"


def _size(folder: Path) -> str:
    path = folder / ADAPTER
    return f"{path.stat().st_size / 1000:.0f}" if path.is_file() else "-"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.bench.peft", description="What adaptations cost and what they reach")
    parser.add_argument("what", choices=("cost", "table"))
    parser.add_argument("--config")
    parser.add_argument("--out")
    parser.add_argument("--root", default="experiments")
    parser.add_argument("--configs", nargs="+", default=[])
    parser.add_argument("--methods", nargs="+", default=[])
    parser.add_argument("overrides", nargs="*", metavar="a.b=value")
    args = parser.parse_intermixed_args(argv)
    try:
        _run(args)
    except (UserError, OSError) as error:
        return tell(str(error))
    return 0


def _run(args: argparse.Namespace) -> None:
    if args.what == "table":
        if not args.configs or not args.methods:
            raise UserError("table: needs --configs and --methods")
        print(*table(Path(args.root), args.configs, args.methods), sep="\n")
        return
    if not args.config:
        raise UserError("cost: needs --config")
    config = to_plain(load_config(args.config, args.overrides)[0])
    check_config(config)
    text = json.dumps(cost(config))
    print(text)
    if args.out:
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        Path(args.out).write_text(text + "\n")


if __name__ == "__main__":
    sys.exit(main())
