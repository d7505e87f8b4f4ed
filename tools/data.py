"""Data sets on disk: python -m tools.data check|pack|show NAME [--root R] [option=value ...], and ... fewshot

check compares the expected tree with the found one and says what to do; pack writes the form that is read fast; show
writes a picture and a page of samples; fewshot draws few-shot folds from ModelNet40. Options are those of the data set
(python -m tools.options dataset NAME), such as variant=objbg.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from datasets import DATASETS, store
from datasets.modelnet_fewshot import write_folds
from tools.cli import Parser, tell
from tools.data_check import check, pack_path, taken_by
from tools.data_show import show
from utils.errors import UserError
from utils.schema import check_arguments, hint

NAMES = ("shapenet55", "modelnet40", "modelnet_fewshot", "scanobjectnn", "shapenetpart", "s3dis")


def module_of(name: str) -> ModuleType:
    if name not in NAMES:
        raise UserError(f"'{name}' is no data set with files of its own.{hint(name, NAMES)}")
    return importlib.import_module(f"datasets.{name}")


def default_root(module: ModuleType) -> str:
    """Where Point-BERT's tree has it, below POINT_DATA_ROOT (default: data)."""
    return str(Path(os.environ.get("POINT_DATA_ROOT") or "data") / module.FOLDER)


def parse_options(words: Sequence[str], name: str) -> dict[str, Any]:
    options = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            raise UserError(f"'{word}': write options as name=value")
        options[key] = yaml.safe_load(value)
    check_arguments(DATASETS.get(name, "dataset"), options, "", f"data set '{name}'")
    return options


def pack(module: ModuleType, root: str, options: dict[str, Any]) -> Path:
    """Write the packed form unless it is there, whole and of the same clouds."""
    listing = module.listing(root, **taken_by(module.listing, options))
    path = pack_path(module, root, options)
    for note in listing.notes:
        print(f"NOTE  {note}")
    if path.is_dir() and store.is_current(path, listing) and not store.verify(path):
        print(f"{path}: packed already, checksums agree")
        return path
    store.write_store(path, listing)
    size = sum(file.stat().st_size for file in path.iterdir()) / 2**20
    print(f"{path}: {len(listing.ids):,} clouds, {size:,.0f} MiB, checksums and a second look at raw files agree")
    return path


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(prog="python -m tools.data", description="Check, pack and show data sets as they lie on disk")
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    for command, about in (
        ("check", "expected tree against found tree, counts, checksums, ranges, and what to do"),
        ("pack", "write the memory-mapped form once; run again to continue"),
        ("show", "a PNG and an HTML page of samples"),
    ):
        sub = commands.add_parser(command, help=about, description=about)
        sub.add_argument("name", help=", ".join(NAMES))
        sub.add_argument("--root", help="folder of the data set; default: its place below POINT_DATA_ROOT")
        sub.add_argument("options", nargs="*", metavar="option=value", help="options of the data set")
        if command == "check":
            sub.add_argument("--all", action="store_true", help="read every cloud, not a sample")
        if command == "show":
            sub.add_argument("--out", type=Path, default=Path("experiments/data"), help="folder to write into")
    sub = commands.add_parser("fewshot", help="draw few-shot folds from ModelNet40, the same ones for a seed")
    sub.add_argument("--root", help="folder of ModelNet40")
    sub.add_argument("--out", type=Path, help="folder for {way}way_{shot}shot/{fold}.pkl")
    sub.add_argument("--way", type=int, nargs="+", default=[5, 10])
    sub.add_argument("--shot", type=int, nargs="+", default=[10, 20])
    sub.add_argument("--folds", type=int, default=10)
    sub.add_argument("--seed", type=int, default=0)
    return parser.parse_args(argv)


def run(args: argparse.Namespace) -> int:
    if args.command == "fewshot":
        root = args.root or default_root(module_of("modelnet40"))
        out = args.out or Path(default_root(module_of("modelnet_fewshot")))
        written = write_folds(root, out, args.way, args.shot, args.folds, args.seed)
        print(f"{out}: {written} folds written, seed {args.seed}; existing ones are left alone")
        return 0
    module = module_of(args.name)
    root, options = args.root or default_root(module), parse_options(args.options, args.name)
    if args.command == "pack":
        pack(module, root, options)
        return 0
    if args.command == "show":
        for path in show(DATASETS.build({"name": args.name, "root": root, **options}, args.name), args.out):
            print(path)
        return 0
    findings = check(args.name, module, root, options, every=args.all)
    for state, text in findings:
        print(f"{state:<7} {text}".rstrip())
    return 1 if any(state == "FAIL" for state, _ in findings) else 0


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return run(arguments(argv))
    except (UserError, OSError) as error:
        return tell(str(error))
    except KeyboardInterrupt:
        print("interrupted; what is written stays, the same command continues", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
