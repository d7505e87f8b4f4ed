"""The quick start: the ordinary commands one after the other, then a table of figures, times and places.

python -m tools.quickstart   (bash scripts/quickstart.sh makes the environment first)
"""

from __future__ import annotations

import itertools
import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tools.monitor import duration
from tools.report import read_results

PRETRAIN, FINETUNE = "cfgs/pretrain/quickstart.yaml", "cfgs/finetune/quickstart.yaml"
ROOT = Path("experiments")
SEEDS = (0, 1, 2)


@dataclass
class Step:
    """One command and where it writes."""

    title: str
    script: str
    config: str
    name: str
    options: list[str]
    prefix: str = ""
    seconds: float = 0.0

    @property
    def folder(self) -> Path:
        return ROOT / Path(self.config).stem / (self.prefix + self.name)

    def run(self) -> None:
        command = [self.script, "--config", self.config, "--exp_name", self.name, *self.options]
        print(f"\n== {self.title}\n$ python {shlex.join(command)}", flush=True)
        started = time.monotonic()
        subprocess.run([sys.executable, *command], check=True)
        self.seconds = time.monotonic() - started

    def value(self, metric: str) -> float:
        """The figure of the weights that the run ended with."""
        return [row["value"] for row in read_results(self.folder)["rows"] if row["metric"] == metric][-1]


def plan(name: str) -> tuple[Step, Step, list[Step], list[Step]]:
    """Untrained probe, pre-training, fine-tuning per seed, the same from scratch."""
    untrained = Step("probe the untrained network", "main_pretrain.py", PRETRAIN, name, ["--svm"], prefix="svm_")
    pretrain = Step("pre-train, then probe", "main_pretrain.py", PRETRAIN, name, [])
    checkpoint = ["--finetune_model", "--ckpts", str(pretrain.folder / "ckpt-last.pth")]

    def steps(kind: str, options: list[str]) -> list[Step]:
        return [
            Step(
                f"{kind}, 10 % of the labels, seed {seed}",
                "main_finetune.py",
                FINETUNE,
                f"{name}-{slug}-seed{seed}",
                [*options, "--seed", str(seed)],
            )
            for slug, seed in itertools.product([kind.split()[0].replace("-", "")], SEEDS)
        ]

    return untrained, pretrain, steps("fine-tune", checkpoint), steps("scratch", ["--scratch_model"])


def main() -> int:
    started = time.monotonic()
    number = next(i for i in itertools.count(1) if not (ROOT / "quickstart" / f"run{i}").exists())
    untrained, pretrain, tuned, scratch = plan(f"run{number}")
    try:
        for step in (untrained, pretrain, *tuned, *scratch):
            step.run()
    except subprocess.CalledProcessError as error:
        print(
            f"error: the step above ended with exit code {error.returncode}; what ran before it is kept",
            file=sys.stderr,
        )
        return error.returncode
    except KeyboardInterrupt:
        return 130
    _print_table(untrained, pretrain, tuned, scratch, time.monotonic() - started)
    return 0


def _print_table(untrained: Step, pretrain: Step, tuned: list[Step], scratch: list[Step], seconds: float) -> None:
    lines = [("what ran", "figure", "time", "files")]
    for step, label in ((untrained, "linear SVM, untrained network"), (pretrain, "linear SVM, after pre-training")):
        lines.append((label, f"{step.value('svm_cv_acc'):.1f} %", duration(step.seconds), str(step.folder)))
    means = []
    for steps, label in ((tuned, "fine-tuned, 10 % of labels"), (scratch, "from scratch, 10 % of labels")):
        values = [step.value("acc") for step in steps]
        means.append(sum(values) / len(values))
        for step, value in zip(steps, values):
            lines.append(
                (f"{label}, {step.title.split(', ')[-1]}", f"{value:.1f} %", duration(step.seconds), str(step.folder))
            )
        lines.append(
            (f"{label}, mean of {len(SEEDS)}", f"{means[-1]:.1f} %", duration(sum(s.seconds for s in steps)), "")
        )
    widths = [max(len(line[i]) for line in lines) for i in range(4)]
    print()
    for line in lines:
        print("  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip())
    gain = pretrain.value("svm_cv_acc") - untrained.value("svm_cv_acc")
    print(f"\nPre-training lifts the linear SVM by {gain:+.1f} points")
    print(f"and fine-tuning at 10 % of labels by {means[0] - means[1]:+.1f} points over training from scratch.")
    print("Test accuracy on the built-in shapes; fine-tuned weights chosen on held-out training data.")
    print(f"All in {duration(seconds)}. Open {pretrain.folder / 'report.html'} in a browser for the curves.")


if __name__ == "__main__":
    sys.exit(main())
