"""Measures speed: `python scripts/bench.py ops [--rounds 7] [--only FPS] [--write docs/PERFORMANCE.md]`.

A subject is a module of `tools.bench` with a function `run(args) -> str`. --write replaces what stands between
`<!-- bench:SUBJECT -->` and `<!-- /bench:SUBJECT -->` in a file.
"""

import argparse
import importlib
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
SUBJECTS = ("ops", "attention", "sa3d", "sampling")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("subject", choices=SUBJECTS)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--write", type=Path, help="update the table in this file")
    args = parser.parse_args()
    table = importlib.import_module(f"tools.bench.{args.subject}").run(args)
    if args.write:
        opening, closing = f"<!-- bench:{args.subject} -->", f"<!-- /bench:{args.subject} -->"
        text = args.write.read_text()
        pattern = re.escape(opening) + ".*?" + re.escape(closing)
        new, count = re.subn(pattern, lambda _: f"{opening}\n{table}{closing}", text, flags=re.DOTALL)
        if not count:
            parser.error(f"{args.write}: no place for the table; it needs a line {opening} and a line {closing}")
        args.write.write_text(new)


if __name__ == "__main__":
    main()
