"""The results of `tools.quantize.reproduce` as a table in Markdown and a plot of figure against bytes."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tools.monitor import duration
from tools.quantize.plot import Series, draw_plot
from tools.report import read_results


@dataclass
class Case:
    """One network on one data set."""

    title: str
    float_config: str
    name: str  # of the configurations in cfgs/quantize
    metric: str
    epochs: int  # of the float network
    tuning: int  # epochs of everything that starts from it

    @property
    def search_config(self) -> str:
        return f"cfgs/quantize/search_{self.name}.yaml"

    @property
    def finetune_config(self) -> str:
        return f"cfgs/quantize/finetune_{self.name}.yaml"

    @property
    def distill_config(self) -> str:
        return f"cfgs/quantize/distill_{self.name}.yaml"

    def checkpoint(self, root: Path, seed: int) -> Path:
        return root / Path(self.float_config).stem / f"float-seed{seed}" / "ckpt-best.pth"

    def policy(self, root: Path, agent: str) -> Path:
        return root / Path(self.search_config).stem / agent / "policy.yaml"


def _cases() -> dict[str, Case]:
    def parts(title: str, config: str, name: str, epochs: int) -> Case:
        return Case(f"{title}, lpsb19_seg", f"cfgs/segment/{config}.yaml", name, "instance_iou", epochs, tuning=8)

    def classes(title: str, config: str, name: str, epochs: int) -> Case:
        return Case(f"{title}, infomr69", f"cfgs/finetune/{config}.yaml", name, "acc", epochs, tuning=3)

    cases = (
        parts("Point Transformer", "point_transformer_lpsb19_small", "point_transformer", epochs=100),
        parts("PCT", "pct_lpsb19_small", "pct", epochs=60),
        classes("Point Transformer", "point_transformer_infomr69_small", "point_transformer_cls", epochs=15),
        classes("PCT", "pct_infomr69_small", "pct_cls", epochs=30),
        parts("Point-MAE", "lpsb19_seg_small", "point_mae", epochs=60),
    )
    return {case.name: case for case in cases}


CASES = _cases()
NAMES = {"ddpg": "HAQ (ddpg)"}


@dataclass
class Line:
    """One row: figures of all seeds that are there, the size of the file."""

    label: str
    values: list[float]
    bytes: int | None
    float_bytes: int | None

    def cells(self) -> list[str]:
        mean, spread = statistics.fmean(self.values), statistics.stdev(self.values) if len(self.values) > 1 else None
        figure = f"{mean:.2f}" + (f" ± {spread:.2f}" if spread is not None else "")
        size = f"{self.bytes:,}" if self.bytes else ""
        ratio = f"{self.float_bytes / self.bytes:.1f}" if self.bytes and self.float_bytes else ""
        return [self.label, figure, str(len(self.values)), size, ratio]


def write_tables(root: Path, cases: Iterable[str], seeds: int, agents: list[str]) -> Path:
    """table.md and one pareto_CASE.png for every case with results; prints the table."""
    parts = []
    for name in cases:
        case = CASES[name]
        lines = lines_of(case, root, seeds, agents)
        if not lines:
            continue
        parts.append(markdown(case, lines, searches(case, root, agents)))
        sized = [(line.bytes / 1000, statistics.fmean(line.values), line.label) for line in lines if line.bytes]
        tried = [Series(agent, episodes(case, root, agent)) for agent in agents]
        title = f"{case.title}: {case.metric}, tested"
        draw_plot(root / f"pareto_{name}.png", sized, tried, title, "kilobytes on disk")
    path = root / "table.md"
    root.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(parts), encoding="utf-8")
    print("\n" + "\n".join(parts) + f"\n{path}", flush=True)
    return path


def lines_of(case: Case, root: Path, seeds: int, agents: list[str]) -> list[Line]:
    plain, tuned = Path(case.float_config).stem, Path(case.finetune_config).stem
    distilled = Path(case.distill_config).stem
    found = [
        ("float", plain, "float"),
        ("float, trained on as long as below", plain, "longer"),
        *((f"uniform {bits}", tuned, f"test_uniform{bits}") for bits in (4, 3, 2)),
        *((f"{NAMES.get(agent, agent)}, bytes of uniform 3", tuned, f"test_{agent}") for agent in agents),
        ("uniform 3 + fine-tune", tuned, "uniform3"),
        ("HAQ + fine-tune", tuned, "ddpg"),
        ("HAQ + fine-tune + distil", distilled, "ddpg"),
    ]
    lines = [line(label, [root / stem / f"{name}-seed{s}" for s in range(seeds)], case) for label, stem, name in found]
    there = [each for each in lines if each is not None]
    whole = next((each.float_bytes for each in there if each.float_bytes), None)
    for each in there:
        if each.bytes is None:
            each.bytes = each.float_bytes = whole
    return there


def line(label: str, folders: list[Path], case: Case) -> Line | None:
    """The figure on test data of the weights that a run ended with."""
    rows = []
    for folder in folders:
        if (folder / "results.json").is_file():
            own = [r for r in read_results(folder)["rows"] if r["metric"] == case.metric and r["split"] == "test"]
            rows += own[-1:]
    if not rows:
        return None
    return Line(label, [row["value"] for row in rows], rows[0].get("bytes"), rows[0].get("float_bytes"))


def searches(case: Case, root: Path, agents: list[str]) -> list[str]:
    """One sentence a search: its best figure, on what, time."""
    said = []
    for agent in agents:
        folder = case.policy(root, agent).parent
        if (folder / "results.json").is_file():
            row = read_results(folder)["rows"][0]
            said.append(f"{agent}: {row['value']:.2f} ({row['selection']}), {duration(row['search_seconds'])}")
    return said


def episodes(case: Case, root: Path, agent: str) -> list[tuple[float, float]]:
    """(kilobytes, figure on what judges) of every policy that was tried."""
    path = case.policy(root, agent).parent / "search.jsonl"
    if not path.is_file():
        return []
    lines = [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()]
    return [(each["bytes"] / 1000, each["metric"]) for each in lines]


def markdown(case: Case, lines: list[Line], said: list[str]) -> str:
    head = ["", f"{case.metric} on test", "seeds", "bytes on disk", "times smaller"]
    rows = [head, ["---"] * len(head), *(each.cells() for each in lines)]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in rows)
    return f"## {case.title}\n\n{table}\n\nSearch on seed 0: {'; '.join(said) or 'none'}.\n"
