"""The quick start: the ordinary commands one after the other, then a table of figures, times and places.

python -m tools.quickstart   (bash scripts/quickstart.sh makes the environment first)
"""

from __future__ import annotations

import argparse
import itertools
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tools.monitor import duration
from tools.report import read_results

PRETRAIN = ["main_pretrain.py", "--config", "cfgs/pretrain/quickstart.yaml"]
FINETUNE = ["main_finetune.py", "--config", "cfgs/finetune/quickstart.yaml"]
FOLDER = Path("experiments/quickstart")  # of both, as both configurations are called
SEEDS = 3
Line = tuple[str, str, str, str]  # what ran, figure, time, files


def main(argv: Sequence[str] | None = None) -> int:
    argparse.ArgumentParser(prog="quickstart", description="Pre-train, probe and fine-tune.").parse_args(argv)
    started = time.monotonic()
    name = next(f"run{i}" for i in itertools.count(1) if not list(FOLDER.glob(f"*run{i}*")))
    checkpoint = str(FOLDER / name / "ckpt-last.pth")
    tuned = [*FINETUNE, "--exp_name", f"{name}-tenth", "--finetune_model", "--ckpts", checkpoint]
    steps = [
        ("probe the untrained network", [*PRETRAIN, "--exp_name", name, "--svm"]),
        ("pre-train, then probe", [*PRETRAIN, "--exp_name", name]),
        ("fine-tune on a tenth of the labels, and from scratch", [*tuned, "--seeds", str(SEEDS), "--with_scratch"]),
    ]
    try:
        for title, command in steps:
            print(f"\n== {title}\n$ python {shlex.join(command)}", flush=True)
            subprocess.run([sys.executable, *command], check=True)
    except subprocess.CalledProcessError as error:
        print(f"error: the step above ended with exit code {error.returncode}; what ran is kept", file=sys.stderr)
        return error.returncode
    except KeyboardInterrupt:
        return 130
    print_table(name, time.monotonic() - started)
    return 0


def print_table(name: str, seconds: float) -> None:
    """Test accuracy of everything that ran."""
    before = line("linear SVM on the untrained network", FOLDER / f"svm_{name}", "svm_cv_acc")
    after = line("linear SVM after pre-training (SA3D)", FOLDER / name, "svm_cv_acc")
    lines: list[Line] = [("what ran", "test accuracy", "time", "files"), before, after]
    means = []
    for label, infix in (("fine-tuned, 10 % of labels", ""), ("from scratch, 10 % of labels", "-scratch")):
        runs = [
            line(f"{label}, seed {seed}", FOLDER / f"{name}-tenth{infix}-seed{seed}", "acc") for seed in range(SEEDS)
        ]
        means.append(sum(float(run[1]) for run in runs) / SEEDS)
        lines += [*runs, (f"{label}, mean of {SEEDS} seeds", f"{means[-1]:.2f}", "", "")]
    widths = [max(len(cells[i]) for cells in lines) for i in range(4)]
    print()
    for cells in lines:
        print("  ".join(text.ljust(width) for text, width in zip(cells, widths)).rstrip())
    print(f"\nPre-training lifts the linear SVM by {float(after[1]) - float(before[1]):+.2f} points,")
    print(f"and fine-tuning at 10 % of the labels by {means[0] - means[1]:+.2f} points over training from scratch.")
    print("Built-in shapes; SVM: C by cross-validation on training features; networks: best epoch on held-out clouds.")
    print(f"All in {duration(seconds)}. Curves, pictures, details: {FOLDER / name / 'report.html'}")


def line(label: str, folder: Path, metric: str) -> Line:
    """The figure of the weights that a run ended with."""
    results = read_results(folder)
    value = [row["value"] for row in results["rows"] if row["metric"] == metric][-1]
    return label, f"{value:.2f}", duration(results["seconds"]), str(folder)


if __name__ == "__main__":
    sys.exit(main())
