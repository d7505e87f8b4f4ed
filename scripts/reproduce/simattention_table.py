"""Results of simattention.sh in one table: python scripts/reproduce/simattention_table.py ROOT "SETS" "KINDS"."""

import json
import sys
from pathlib import Path

SHOWN = ("acc", "instance_iou")


def cell(folder: Path) -> tuple[str, str]:
    """What is shown of one kind on one set, and how it was selected; a dash where it was not run."""
    if not (folder / "results.json").is_file():
        return "-", ""
    rows = json.loads((folder / "results.json").read_text())["rows"]
    shown = [row for row in rows if row["metric"] in SHOWN and row["selection"] == "best on val"]
    wanted = "instance_iou" if any(row["metric"] == "instance_iou" for row in shown) else "acc"
    row = next(row for row in shown if row["metric"] == wanted)
    spread = f" ± {row['std']:.2f}" if row.get("std") is not None else ""
    return f"{row['value']:.2f}{spread}", f"{wanted}, {row['selection']}, {row['n']} seeds"


def main() -> None:
    root, sets, kinds = Path(sys.argv[1]), sys.argv[2].split(), sys.argv[3].split()
    print(f"| set | {' | '.join(kinds)} | test figure |")
    print("|" + "---|" * (len(kinds) + 2))
    for name in sets:
        cells = [cell(root / name / kind) for kind in kinds]
        shown = next((rule for _, rule in cells if rule), "")
        print(f"| {name} | {' | '.join(value for value, _ in cells)} | {shown} |")


if __name__ == "__main__":
    main()
