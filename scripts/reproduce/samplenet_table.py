"""Tables and charts of scripts/reproduce/samplenet.sh: `python scripts/reproduce/samplenet_table.py FOLDER`.

Reads every results.json that is there; FOLDER/table.md, accuracy_*.png and nre.png are written.
"""

import re
import statistics
import sys
from collections import defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tools.plot import plot_lines
from tools.report import read_results

METHODS = {"random": "random", "fps": "FPS", "snet": "S-NET", "samplenet": "SampleNet", "progressive": "progressive"}
NAME = re.compile(r"(?:test_)?([a-z]+)-(\d+)-seed(\d+)")
Figures = dict[tuple[str, int], list[float]]  # (method, M): a value a seed


def value_of(folder: Path, metric: str, last: bool = False) -> float:
    """Of the weights that the validation chose; of the last ones where it chose none, or if asked for."""
    rows = [row for row in read_results(folder)["rows"] if row["metric"] == metric]
    best = [row for row in rows if row["selection"].startswith("best")]
    return rows[0]["value"] if last else (best or rows)[-1]["value"]


def collect(root: Path, configs: tuple[str, ...], metric: str) -> Figures:
    found: Figures = defaultdict(list)
    for config in configs:
        for path in sorted((root / config).glob("*/results.json")):
            match = NAME.fullmatch(path.parent.name)
            if match and match[1] in METHODS:
                found[match[1], int(match[2])].append(value_of(path.parent, metric))
    return found


def table(figures: Figures, digits: int) -> list[str]:
    """Rows are methods, columns are M; mean and deviation over the seeds, their number where some are missing."""
    sizes = sorted({size for _, size in figures})
    seeds = max(map(len, figures.values()))
    lines = [f"| method | {' | '.join(f'M = {size}' for size in sizes)} |", "|---" * (1 + len(sizes)) + "|"]
    for method, title in METHODS.items():
        each = [figures.get((method, size), []) for size in sizes]
        cells = [cell(v, digits) + (f" ({len(v)} of {seeds} seeds)" if 0 < len(v) < seeds else "") for v in each]
        if any(cells):
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return lines


def cell(values: list[float], digits: int) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def chart(figures: Figures, path: Path, title: str, y: str) -> None:
    lines = {}
    for method, name in METHODS.items():
        points = [(size, values) for (key, size), values in sorted(figures.items()) if key == method]
        if points:
            lines[name] = [
                (size, statistics.mean(values), statistics.stdev(values) if len(values) > 1 else 0.0)
                for size, values in points
            ]
    plot_lines(lines, path, title=title, x="points of the sample", y=y, log_x=True)


def whole(root: Path, config: str, metric: str, digits: int = 2, last: bool = False) -> str:
    """Of the task network on whole clouds, with the weights that the samplers got."""
    values = [value_of(path.parent, metric, last) for path in sorted((root / config).glob("seed*/results.json"))]
    return cell(values, digits) or "not there"


def classification(root: Path, data: str) -> list[str]:
    """Accuracy, with its chart, and retrieval on one data set; nothing where nothing was run."""
    lines: list[str] = []
    accuracy = collect(root, (f"classify_{data}", f"progressive_{data}"), "acc")
    if accuracy:
        all_points = whole(root, f"pointnet_{data}", "acc")
        lines += [f"## Accuracy on {data}, %", "", f"From all 512 points: {all_points}", "", *table(accuracy, 1), ""]
        chart(accuracy, root / f"accuracy_{data}.png", f"accuracy on {data}", "accuracy, %")
    precision = collect(root, (f"retrieve_{data}",), "map")
    if precision:
        lines += [f"## Retrieval on {data}, macro mAP, %", "", *table(precision, 1), ""]
    return lines


def main() -> None:
    root = Path(sys.argv[1])
    lines = ["# SampleNet", ""]
    for data in ("infomr69", "shrec16"):
        lines += classification(root, data)
    error = collect(root, ("reconstruct_infomr69",), "nre")
    if error:
        lines += ["## Normalised reconstruction error on infomr69", "", *table(error, 2), ""]
        chart(error, root / "nre.png", "reconstruction error from a sample, infomr69", "error / error from all points")
    for data, title in (("shapes", "cars of the built-in shapes"), ("demo", "demo_shapes, other rotations")):
        for metric, words, digits in (
            ("rot_err", "rotation error, degrees", 2), ("rot_err_samplenet", "the doubled, published figure", 2),
            ("auc", "AUC", 4), ("auc_samplenet", "AUC of the doubled figure", 4), ("consistency", "consistency", 5),
        ):  # fmt: skip
            figures = collect(root, (f"register_{data}",), metric)
            if figures:
                lines += [f"## Registration, {title}: {words}", ""]
                all_points = whole(root, f"pcrnet_{data}", metric, digits, last=True)
                lines += [f"From all 512 points: {all_points}", "", *table(figures, digits), ""]
    (root / "table.md").write_text("\n".join(lines), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
