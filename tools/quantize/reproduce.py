"""The experiment of docs/quantization.md: the ordinary commands one after the other, then a table and a plot.

python -m tools.quantize.reproduce   (bash scripts/reproduce/haq.sh sets the data folder first). What is finished is
not run again.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tools.quantize.table import CASES, Case, write_tables
from utils.errors import UserError

BITS = 3  # of the uniform network whose bytes are the budget


@dataclass
class Settings:
    """From the environment, for short versions. epochs, finetune_epochs: 0 as the case has them."""

    root: Path = field(default_factory=lambda: Path(os.environ.get("HAQ_ROOT", "experiments/haq")))
    seeds: int = field(default_factory=lambda: int(os.environ.get("SEEDS", "3")))
    episodes: int = field(default_factory=lambda: int(os.environ.get("EPISODES", "60")))
    epochs: int = field(default_factory=lambda: int(os.environ.get("EPOCHS", "0")))
    finetune_epochs: int = field(default_factory=lambda: int(os.environ.get("FINETUNE_EPOCHS", "0")))
    agents: list[str] = field(
        default_factory=lambda: os.environ.get("AGENTS", "ddpg random greedy evolutionary").split()
    )
    cases: list[str] = field(default_factory=lambda: os.environ.get("CASES", " ".join(CASES)).split())


@dataclass
class Step:
    """One command and the folder it fills."""

    words: list[str]
    folder: Path


def main() -> int:
    settings = Settings()
    try:
        unknown = [name for name in settings.cases if name not in CASES]
        if unknown:
            raise UserError(f"CASES: {unknown[0]} is none of {', '.join(CASES)}")
        for name in settings.cases:
            for step in steps(CASES[name], settings):
                run(step)
            write_tables(settings.root, settings.cases, settings.seeds, settings.agents)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"error: the step above ended with exit code {error.returncode}; run again to go on", file=sys.stderr)
        return error.returncode
    except KeyboardInterrupt:
        return 130
    return 0


def steps(case: Case, settings: Settings) -> Iterator[Step]:
    """Float networks of every seed; searches on the first; every policy on every seed, as it is, tuned, distilled."""
    root = ["--root", str(settings.root)]

    def step(config: str, name: str, *words: str, test: bool = False) -> Step:
        folder = settings.root / Path(config).stem / (f"test_{name}" if test else name)
        command = ["main_finetune.py", "--config", config, "--exp_name", name, *root, *words]
        return Step([*command, *(["--test"] if test else [])], folder)

    long, short = lasting(settings.epochs or case.epochs), lasting(settings.finetune_epochs or case.tuning)
    for seed in range(settings.seeds):
        yield step(case.float_config, f"float-seed{seed}", "--scratch_model", *long, "--seed", str(seed))
    for agent in settings.agents:
        words = [f"search.agent={{name: {agent}}}", f"search.episodes={settings.episodes}"]
        words += [f"search.budget={{uniform: {BITS}}}"]
        yield step(case.search_config, agent, "--ckpts", str(case.checkpoint(settings.root, 0)), *words)
    for seed in range(settings.seeds):
        start = ["--ckpts", str(case.checkpoint(settings.root, seed)), "--seed", str(seed)]
        for bits in (4, BITS, 2):
            uniform = ["quantize.policy=null", f"quantize.bits={bits}"]
            yield step(case.finetune_config, f"uniform{bits}-seed{seed}", *start, *uniform, test=True)
        for agent in settings.agents:
            found = f"quantize.policy={case.policy(settings.root, agent)}"
            yield step(case.finetune_config, f"{agent}-seed{seed}", *start, found, test=True)
        uniform = ["quantize.policy=null", f"quantize.bits={BITS}"]
        found = f"quantize.policy={case.policy(settings.root, 'ddpg')}"
        control = ["optimizer.lr=5e-4", "scheduler.warmup_epochs=1", "--finetune_model"]
        yield step(case.float_config, f"longer-seed{seed}", *start, *short, *control)
        yield step(case.finetune_config, f"uniform{BITS}-seed{seed}", *start, *short, *uniform)
        if "ddpg" in settings.agents:
            yield step(case.finetune_config, f"ddpg-seed{seed}", *start, *short, found)
            yield step(case.distill_config, f"ddpg-seed{seed}", *start, *short, found)


def lasting(epochs: int) -> list[str]:
    """So many epochs, ten looks at the held-out data, five where they are few."""
    return [f"runner.epochs={epochs}", f"runner.val_every={max(epochs // (10 if epochs >= 20 else 5), 1)}"]


def run(step: Step) -> None:
    """Skip what is finished, continue what can be continued."""
    if (step.folder / "results.json").is_file():
        return
    words = list(step.words)
    if (step.folder / "ckpt-last.pth").is_file() and "--test" not in words:
        words = without_start([*words, "--resume"])
    elif step.folder.is_dir():
        words.append("--overwrite")
    print(f"\n$ python {shlex.join(words)}", flush=True)
    subprocess.run([sys.executable, *words], check=True)


def without_start(words: list[str]) -> list[str]:
    """A continued run knows where it started."""
    if "--ckpts" in words:
        place = words.index("--ckpts")
        words = words[:place] + words[place + 2 :]
    return [word for word in words if word != "--scratch_model"]


if __name__ == "__main__":
    sys.exit(main())
