"""Measures speed: `python scripts/bench.py SUBJECT [options] [--write docs/PERFORMANCE.md]`.

    ops     point operations against plain PyTorch, scipy and what else is installed
    train   a training step against the published formulation: --model, --mode, --batch, --precision, --threads and
            --device
    m2ae    the same for Point-M2AE
    data    packed clouds against a file an item
    attention, sa3d, sampling    sparse against dense attention, guided masks, learned against farthest-point sampling
    all     ops, data and the steps, into docs/PERFORMANCE.md; on a quiet machine about 25 minutes

--write replaces what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->` in a file.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[0] = str(ROOT)  # not this folder: its profile.py would hide Python's module, which PyTorch loads
GENERAL = ("ops", "data")  # with places in docs/PERFORMANCE.md
SUBJECTS = (*GENERAL, "attention", "sa3d", "sampling")  # modules of tools.bench with a function `run(args) -> str`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("subject", choices=(*SUBJECTS, "train", "m2ae", "all"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", default="", help="ops: cases whose name contains this")
    parser.add_argument("--model", choices=("point_mae", "point_m2ae"), default="point_mae")
    parser.add_argument("--mode", choices=("pretrain", "classify"), default="pretrain")
    parser.add_argument("--batch", type=int, help="clouds a step; default 32, Point-M2AE 16")
    parser.add_argument("--precision", choices=("fp32", "bf16", "all"), default="all")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--write", type=Path, help="update the table in this file")
    args = parser.parse_args()
    if args.subject == "m2ae":
        args.subject, args.model = "train", "point_m2ae"
    if (args.model, args.mode) == ("point_m2ae", "classify"):
        parser.error("--mode classify: there is a plain writing of Point-MAE's classifier only; use --model point_mae")
    if args.subject == "all":
        args.write = args.write or ROOT / "docs" / "PERFORMANCE.md"
    measures = jobs(args)
    if args.write:
        check_places(args.write, measures, parser)
    for name, measure in measures.items():
        table = measure()
        print(table, flush=True)
        if args.write:
            write(args.write, name, table)


def jobs(args: argparse.Namespace) -> dict[str, Callable[[], str]]:
    """Names of tables and what measures them."""
    from tools.bench import train

    def step(model: str, mode: str, batch: int, threads: int) -> Callable[[], str]:
        options = {**vars(args), "model": model, "mode": mode, "batch": batch, "threads": threads}
        return lambda: train.run(argparse.Namespace(**options))

    if args.subject == "train":
        batch = args.batch or (16 if args.model == "point_m2ae" else 32)
        name = f"{args.model}-{args.mode}" + ("" if args.device == "cpu" else "-gpu")
        return {name: step(args.model, args.mode, batch, args.threads)}
    single = {name: partial(importlib.import_module(f"tools.bench.{name}").run, args) for name in SUBJECTS}
    if args.subject in single:
        return {args.subject: single[args.subject]}
    steps = {
        "point_mae-pretrain": step("point_mae", "pretrain", 32, 2),
        "point_mae-classify": step("point_mae", "classify", 32, 2),
        "point_m2ae-pretrain": step("point_m2ae", "pretrain", 16, 2),
    }
    return {**steps, **{name: single[name] for name in GENERAL}}  # what starts processes of its own comes first


def place(name: str) -> str:
    """Pattern of a table between its two marks."""
    return rf"(<!-- bench:{re.escape(name)} -->\n).*?(<!-- /bench:{re.escape(name)} -->)"


def check_places(path: Path, names: Iterable[str], parser: argparse.ArgumentParser) -> None:
    """Told before minutes of measuring."""
    if not path.is_file():
        parser.error(f"--write {path}: there is no such file")
    for name in names:
        if not re.search(place(name), path.read_text(), flags=re.DOTALL):
            parser.error(f"--write {path}: no lines <!-- bench:{name} --> and <!-- /bench:{name} --> for the table")


def write(path: Path, name: str, table: str) -> None:
    new = re.sub(place(name), lambda marks: marks[1] + table + marks[2], path.read_text(), flags=re.DOTALL)
    path.write_text(new)


if __name__ == "__main__":
    main()
