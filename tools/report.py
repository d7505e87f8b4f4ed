"""What a run did, for a person: report.html with curves and results, and tables of several runs.

python -m tools.report experiments/pretrain/a experiments/pretrain/b   prints the results of several runs side by side.
"""

from __future__ import annotations

import argparse
import html
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError

WIDTH, HEIGHT, MARGIN = 420, 160, 42
STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #ddd;text-align:left}
td.n{text-align:right;font-variant-numeric:tabular-nums}pre{background:#f6f6f4;padding:1em;overflow:auto}
figure{display:inline-block;margin:0 1em 1em 0}figcaption{font-weight:600}svg text{font:11px system-ui;fill:#666}"""


def results_table(rows: list[dict]) -> list[str]:
    """Aligned lines: metric, value, split, how the weights were chosen, from which start, protocol."""
    cells = [["metric", "value", "split", "weights", "start", "protocol"], *map(_row_cells, rows)]
    if len(cells) == 1:
        return []
    if len({line[4] for line in cells[1:]}) == 1:  # one start for all: no column for it
        cells = [[*line[:4], line[5]] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths)).rstrip() for line in cells]


def _row_cells(row: dict) -> list[str]:
    spread = f" +- {row['std']:.2f}" if row.get("std") is not None else ""
    weights = row.get("selection", "") + (f", epoch {row['best_epoch']}" if "best_epoch" in row else "")
    start = str(Path(*Path(row.get("start") or "").parts[-2:]))  # the folder of the run tells more than the file
    protocol = row.get("protocol") or row.get("voting") or ""
    value = f"{row['value']:.2f}" if abs(row["value"]) >= 1 else f"{row['value']:.4g}"
    return [row["metric"], value + spread, row["split"], weights, start, protocol]


def read_results(folder: Path) -> dict:
    path = folder / "results.json"
    if not path.is_file():
        raise UserError(f"{path}: not there; is this the folder of a finished run?")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path}: damaged ({error}); run it again") from error


def read_metrics(folder: Path) -> list[dict]:
    path = folder / "metrics.jsonl"
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write_report(folder: Path) -> Path:
    """One page without outside resources."""
    results, records = read_results(folder), read_metrics(folder)
    title = html.escape(f"{folder.parent.name} / {folder.name}")
    parts = [f"<!doctype html><meta charset=utf-8><title>{title}</title><style>{STYLE}</style><h1>{title}</h1>"]
    parts.append(_results_html(results["rows"]))
    keys = [key for key in (records[-1] if records else {}) if key not in ("epoch", "step")]
    parts.append("<h2>Curves</h2>" + "".join(_curve(records, key) for key in keys) if records else "")
    for image in sorted(folder.glob("*.png")):
        parts.append(f"<h2>{html.escape(image.stem)}</h2><img src='{html.escape(image.name)}' style='max-width:100%'>")
    for name in ("command.txt", "config.yaml", "environment.json"):
        if (folder / name).is_file():
            parts.append(f"<h2>{name}</h2><pre>{html.escape((folder / name).read_text(encoding='utf-8'))}</pre>")
    path = folder / "report.html"
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _results_html(rows: list[dict]) -> str:
    if not rows:
        return "<p>No test set, so no results.</p>"
    columns = [
        "metric",
        "value",
        "std",
        "n",
        "over",
        "split",
        "selection",
        "best_epoch",
        "start",
        "protocol",
        "voting",
        "dataset",
        "fingerprint",
        "seed",
        "epochs",
    ]
    columns = [key for key in columns if any(row.get(key) is not None for row in rows)]
    head = "".join(f"<th>{key}</th>" for key in columns)
    body = "".join("<tr>" + "".join(_cell(row.get(key)) for key in columns) + "</tr>" for row in rows)
    table = f"<h2>Results</h2><table><tr>{head}</tr>{body}</table>"
    detailed = next((row for row in reversed(rows) if row.get("per_class")), None)
    return table + (_per_class_html(detailed["metric"], detailed["per_class"]) if detailed else "")


def _per_class_html(metric: str, per_class: dict[str, float]) -> str:
    ordered = sorted(per_class.items(), key=lambda item: item[1])
    body = "".join(f"<tr><td>{html.escape(name)}</td>{_cell(value)}</tr>" for name, value in ordered)
    return f"<details><summary>{html.escape(metric)} per class</summary><table>{body}</table></details>"


def _cell(value) -> str:
    if isinstance(value, float):
        return f"<td class=n>{value:.2f}</td>"
    return f"<td>{html.escape('' if value is None else str(value))}</td>"


def _curve(records: list[dict], key: str) -> str:
    """One small line chart as SVG."""
    points = [(row["epoch"] + 1, row[key]) for row in records if isinstance(row.get(key), int | float)]
    if len(points) < 2:
        return ""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    span_x, span_y = max(xs[-1] - xs[0], 1), (high - low) or 1.0

    def place(x: float, y: float) -> str:
        right = MARGIN + (x - xs[0]) / span_x * (WIDTH - MARGIN - 8)
        return f"{right:.1f},{HEIGHT - 20 - (y - low) / span_y * (HEIGHT - 32):.1f}"

    path = " ".join(place(x, y) for x, y in points)
    return (
        f"<figure><figcaption>{html.escape(key)}</figcaption><svg width={WIDTH} height={HEIGHT}>"
        f"<polyline fill=none stroke='#2a6f97' stroke-width=2 points='{path}'/>"
        f"<text x=0 y=16>{high:.4g}</text><text x=0 y={HEIGHT - 20}>{low:.4g}</text>"
        f"<text x={MARGIN} y={HEIGHT - 4}>epoch {xs[0]}</text><text x={WIDTH - 50} y={HEIGHT - 4}>{xs[-1]}</text>"
        "</svg></figure>"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.report", description=__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="folders of finished runs")
    try:
        for folder in parser.parse_args(argv).folders:
            print(f"{folder} (report: {write_report(folder)})")
            print("\n".join("  " + line for line in results_table(read_results(folder)["rows"])))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
