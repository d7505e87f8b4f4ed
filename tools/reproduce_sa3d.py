"""Does it help to aim the mask? Random, block, SA3D and SA3DF at equal epochs and at equal time, over seeds.

python -m tools.reproduce_sa3d     (bash scripts/reproduce/sa3d.sh makes the environment first)

Environment: SEEDS=3; EPOCHS=30; DATA="infomr69 scan"; JOBS=1 runs at a time, one thread each; OUT=experiments/sa3d for
the runs and table.md; SET="a.b=1 ..." options for every run; ARMS="random block sa3d" for some ways alone, random
always among them. Finished runs are not repeated, stopped ones continue.

Equal time: what EPOCHS of random masks cost. How much dearer a step of SA3D and SA3DF is, is measured first, in turn.
SA3DF's frozen teacher counts: half of the time goes to it. At equal epochs its teacher is the run with random masks.
"""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tools.bench.measure import interleaved, machine, median
from tools.bench.sa3d import clouds, training_step
from utils.cpu import tune

CONFIGS = {"random": "point_mae_quickstart", "sa3d": "quickstart", "sa3df": "sa3df_quickstart"}
DATA = {
    "infomr69": [
        f"data.{split}={{name: packed, path: '${{POINT_DATA_ROOT:-data}}/infomr69_{{split}}.npz', split: {split}, "
        "num_points: 1024}"
        for split in ("train", "test")
    ],
    "scan": [f"data.{split}={{name: synthetic_shapes, split: {split}, variant: scan}}" for split in ("train", "test")],
}
SHORT = ["optimizer.betas=[0.9,0.95]", "scheduler.warmup_epochs=2"]
START = {"random": "model.init=torch", "sa3d": "model.backbone.init=torch", "sa3df": "model.backbone.init=torch"}
COMPLETE = ("model.predict_from=complete",)
FIGURES = {"svm_cv_acc": "linear SVM", "svm_acc": "linear SVM, C 0.01", "knn_acc": "nearest neighbours"}
TEACHER = "teacher_svm_cv_acc"


@dataclass(frozen=True)
class Arm:
    """One way to pre-train, for all data and seeds; `teacher` is the arm whose weights a frozen teacher has."""

    name: str
    config: str  # a key of CONFIGS
    epochs: int
    label: str = ""  # in the table; runs without one only serve others
    options: tuple[str, ...] = ()
    teacher: str = ""


@dataclass(frozen=True)
class Settings:
    seeds: int
    epochs: int
    data: tuple[str, ...]
    jobs: int
    arms: tuple[str, ...]  # empty: all
    out: Path
    options: tuple[str, ...]


def settings() -> Settings:
    get = os.environ.get
    return Settings(
        int(get("SEEDS", "3")),
        int(get("EPOCHS", "30")),
        tuple(get("DATA", "infomr69 scan").split()),
        int(get("JOBS", "1")),
        tuple(get("ARMS", "").split()),
        Path(get("OUT", "experiments/sa3d")),
        tuple(shlex.split(get("SET", ""))),
    )


def main() -> int:
    chosen = settings()
    unknown = [name for name in chosen.data if name not in DATA]
    if unknown:
        print(f"error: DATA: {unknown[0]}; known: {', '.join(DATA)}", file=sys.stderr)
        return 2
    chosen.out.mkdir(parents=True, exist_ok=True)
    ratios = cost_ratios(chosen.out / "cost.json")
    arms = wanted(plan(chosen.epochs, ratios), chosen.arms)
    for teachers in (False, True):  # those that need none go first
        wave = [
            (arm, data, seed)
            for seed in range(chosen.seeds)
            for data in chosen.data
            for arm in arms
            if bool(arm.teacher) == teachers
        ]
        with ThreadPoolExecutor(chosen.jobs) as pool:
            failed = [name for name in pool.map(lambda each: run(chosen, *each), wave) if name]
        if failed:
            print(f"error: these runs failed, see their logs: {', '.join(failed)}", file=sys.stderr)
            return 1
    table = report(chosen, arms, ratios)
    (chosen.out / "table.md").write_text(table, encoding="utf-8")
    print(table)
    return 0


def cost_ratios(path: Path) -> dict[str, float]:
    """Processor time of a step as a multiple of that with random masks; measured once, kept in a file."""
    if not path.is_file():
        tune()
        points = clouds()
        steps: dict[str, Callable[[], object]] = {arm: training_step(name, points) for arm, name in CONFIGS.items()}
        times = {arm: median(rounds) for arm, rounds in interleaved(steps, 7).items()}
        ratios = {arm: round(value / times["random"], 3) for arm, value in times.items()}
        path.write_text(json.dumps(ratios) + "\n", encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8"))


def plan(epochs: int, ratios: dict[str, float]) -> list[Arm]:
    """All arms; in equal time a dearer one gets fewer epochs."""
    half, fewer = max(round(epochs / 2), 1), max(round(epochs / ratios["sa3d"]), 1)
    return [
        Arm("random", "random", epochs, "random"),
        Arm("averaged", "random", epochs, "random, weights averaged", ("runner.ema_decay=0.99",)),
        Arm("block", "random", epochs, "block", ("model.mask.name=block",)),
        Arm("sa3d", "sa3d", epochs, "SA3D, equal epochs"),
        Arm("sa3df", "sa3df", epochs, "SA3DF, equal epochs", teacher="random"),
        Arm("sa3d-time", "sa3d", fewer, "SA3D, equal time"),
        Arm("half", "random", half),
        Arm("sa3df-time", "sa3df", max(round(half / ratios["sa3df"]), 1), "SA3DF, equal time", teacher="half"),
        Arm("sa3d-complete", "sa3d", epochs, "SA3D from complete clouds, equal epochs", COMPLETE),
        Arm("sa3df-complete", "sa3df", epochs, "SA3DF from complete clouds, equal epochs", COMPLETE, "random"),
        Arm("sa3d-complete-time", "sa3d", fewer, "SA3D from complete clouds, equal time", COMPLETE),
    ]


def wanted(arms: list[Arm], names: Sequence[str]) -> list[Arm]:
    """The named arms, those that their teachers come from, and random masks, which all are compared with."""
    unknown = set(names) - {arm.name for arm in arms}
    if unknown:
        raise SystemExit(f"error: ARMS: {unknown.pop()}; known: {', '.join(arm.name for arm in arms)}")
    teachers = {arm.teacher for arm in arms if arm.name in names}
    return [arm for arm in arms if not names or arm.name in {*names, *teachers, "random"}]


def folder(chosen: Settings, arm: Arm, data: str, seed: int) -> Path:
    return chosen.out / CONFIGS[arm.config] / f"{data}-{arm.name}-seed{seed}"


def command(chosen: Settings, arm: Arm, data: str, seed: int, arms_folder: Path) -> list[str]:
    """The normal command line of one run."""
    words = ["main_pretrain.py", "--config", f"cfgs/pretrain/{CONFIGS[arm.config]}.yaml", "--root", str(chosen.out)]
    words += ["--exp_name", arms_folder.name, "--seed", str(seed)]
    if (arms_folder / "ckpt-last.pth").is_file():
        words.append("--resume")
    elif arms_folder.exists():
        words.append("--overwrite")  # it was stopped before anything was saved
    words += [f"runner.epochs={arm.epochs}", f"runner.val_every={max(arm.epochs // 2, 1)}", START[arm.config], *SHORT]
    # POINT_DATA_ROOT is resolved here, as a command line knows no variables of a file
    root = os.environ.get("POINT_DATA_ROOT", "data")
    words += [option.replace("${POINT_DATA_ROOT:-data}", root) for option in DATA[data]]
    if arm.teacher:
        teacher = folder(chosen, Arm(arm.teacher, "random", 0), data, seed)
        words.append(f"model.teacher={teacher / 'ckpt-last.pth'}")
    return [*words, *arm.options, *chosen.options]


def run(chosen: Settings, arm: Arm, data: str, seed: int) -> str:
    """Run it unless it is finished; the name of the run if it failed."""
    place = folder(chosen, arm, data, seed)
    if (place / "results.json").is_file():
        print(f"{place.name}: was there", flush=True)
        return ""
    log = chosen.out / f"{place.name}.log"
    words = command(chosen, arm, data, seed, place)
    print(f"{place.name}: python {shlex.join(words)}", flush=True)
    threads = {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    with open(log, "a", encoding="utf-8") as file:
        done = subprocess.run([sys.executable, *words], stdout=file, stderr=file, env={**os.environ, **threads})
    return place.name if done.returncode else ""


def report(chosen: Settings, arms: Sequence[Arm], ratios: dict[str, float]) -> str:
    """Markdown: a row an arm, a column a data set; mean and sample standard deviation over the seeds."""
    lines = [
        "Test accuracy in percent of a linear SVM (C by cross-validation on training features) on frozen features of "
        f"the last epoch; mean +- sample standard deviation over {chosen.seeds} seeds; in brackets the moving "
        "average's, and the ranking accuracy on held-out clouds. Small Point-MAE; equal time is that of "
        f"{chosen.epochs} epochs of random masks, of which a step of SA3D costs {ratios['sa3d']:.2f} times as much, "
        f"of SA3DF {ratios['sa3df']:.2f} times. {machine()}.",
        "",
        f"| pre-training | epochs | {' | '.join(chosen.data)} |",
        f"|---|---|{'---|' * len(chosen.data)}",
    ]
    for arm in arms:
        if arm.label:
            cells = [cell(chosen, arm, data) for data in chosen.data]
            lines.append(f"| {arm.label} | {arm.epochs} | {' | '.join(cells)} |")
    lines += ["", *differences(chosen, arms)]
    return "\n".join(lines) + "\n"


def cell(chosen: Settings, arm: Arm, data: str) -> str:
    """`61.2 +- 0.4 (teacher 60.8, ranking 0.71)`."""
    places = [folder(chosen, arm, data, seed) for seed in range(chosen.seeds)]
    text = spread([figures_of(place)["svm_cv_acc"] for place in places])
    if arm.config == "random":
        return text
    teacher = statistics.fmean(figures_of(place)[TEACHER] for place in places)
    ranking = statistics.fmean(last_record(place)["val/rank_acc"] for place in places)
    return f"{text} (teacher {teacher:.1f}, ranking {100 * ranking:.0f} %)"


def differences(chosen: Settings, arms: Sequence[Arm]) -> list[str]:
    """Against random masks, seed by seed: what the spread of the seeds leaves of a difference; other probes too."""
    lines = ["Difference from random masks, seed by seed:", "", "| | probe | " + " | ".join(chosen.data) + " |"]
    lines.append(f"|---|---|{'---|' * len(chosen.data)}")
    base = arms[0]
    for arm in arms[1:]:
        for metric, name in FIGURES.items() if arm.label else ():
            cells = []
            for data in chosen.data:
                pairs = [(folder(chosen, arm, data, s), folder(chosen, base, data, s)) for s in range(chosen.seeds)]
                cells.append(spread([figures_of(a)[metric] - figures_of(b)[metric] for a, b in pairs], sign="+"))
            lines.append(f"| {arm.label} | {name} | {' | '.join(cells)} |")
    return lines


def spread(values: Sequence[float], sign: str = "") -> str:
    deviation = f" +- {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{sign}.1f}{deviation}"


def figures_of(place: Path) -> dict[str, float]:
    """Test figures of the last epoch."""
    rows = json.loads((place / "results.json").read_text(encoding="utf-8"))["rows"]
    return {row["metric"]: row["value"] for row in rows}


def last_record(place: Path) -> dict[str, float]:
    return json.loads((place / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
