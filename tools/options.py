"""What can stand in a configuration: python -m tools.options [kind [name]]

Read off the registries and signatures that check a configuration, so it cannot fall behind the code.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from datasets import DATASETS, TRANSFORMS
from datasets.fewshot import Episode
from models import ATTENTION, MASKS, MODELS
from tools import OPTIMIZERS, SCHEDULERS, TASKS
from tools.build import compat
from tools.cli import Parser, tell
from tools.runner import Runner
from tools.splits import DataSplits
from utils.errors import UserError
from utils.registry import Registry
from utils.schema import hint, parameters

KINDS: dict[str, tuple[str, Registry | Callable]] = {  # kind: where it stands, what knows its options
    "task": ("task", TASKS),
    "model": ("model", MODELS),
    "mask": ("model.mask", MASKS),
    "attention": ("model.attention", ATTENTION),
    "data": ("data", DataSplits),
    "few_shot": ("data.few_shot", Episode),
    "dataset": ("data.train, .val, .test", DATASETS),
    "transform": ("data.augment, .eval_transform", TRANSFORMS),
    "optimizer": ("optimizer", OPTIMIZERS),
    "scheduler": ("scheduler", SCHEDULERS),
    "runner": ("runner", Runner),
    "compat": ("compat", compat),
}
FROM_PROGRAM = {
    "optimizer": {"params"},
    "data": {"seed", "device"},
    "attention": set(ATTENTION.later),
}  # arguments that are no configuration keys


def overview() -> list[str]:
    """Every kind, where it stands in a configuration, and the names it has."""
    rows = [("kind", "stands in", "names"), *(row(kind, *KINDS[kind]) for kind in KINDS)]
    rows.append(("", "seed, device, deterministic", "an integer; auto, cpu, cuda, cuda:1 or mps; true or false"))
    wide = [max(len(each[column]) for each in rows) for column in (0, 1)]
    return [f"{kind:<{wide[0]}}  {place:<{wide[1]}}  {names}" for kind, place, names in rows]


def row(kind: str, place: str, known: Registry | Callable) -> tuple[str, str, str]:
    return kind, place, ", ".join(known.names()) if isinstance(known, Registry) else "(one set of options)"


def describe(kind: str, name: str | None = None) -> list[str]:
    """Options of one kind, or of one name of it."""
    if kind not in KINDS:
        raise UserError(f"'{kind}' is not a kind of options.{hint(kind, KINDS)}")
    known = KINDS[kind][1]
    if not isinstance(known, Registry):
        return entry(kind, known, kind, {})
    lines: list[str] = []
    for each in [name] if name else known.names():
        try:
            lines += entry(each, known.get(each, kind), kind, known.parts)
        except ImportError as error:  # a broken package hurts only what needs it
            lines.append(f"{each}: cannot be used, {error}")
    return lines


def entry(name: str, target: Callable, kind: str, parts: Mapping[str, Registry]) -> list[str]:
    """Name, first line of the description, one line an option."""
    rows = [
        (option, f"a {parts[option].kind}" if option in parts else annotation(p), default(p))
        for option, p in parameters(target).items()
        if option not in FROM_PROGRAM.get(kind, ())
    ]
    wide = [max((len(row[column]) for row in rows), default=0) for column in (0, 1)]
    about = (inspect.getdoc(target) or "").partition("\n")[0]
    head = f"{name}: {about}" if about else name
    return [head, *(f"  {option:<{wide[0]}}  {of_type:<{wide[1]}}  {value}" for option, of_type, value in rows)]


def annotation(parameter: inspect.Parameter) -> str:
    kind: Any = parameter.annotation
    return "" if kind is inspect.Parameter.empty else kind if isinstance(kind, str) else inspect.formatannotation(kind)


def default(parameter: inspect.Parameter) -> str:
    value = parameter.default
    return "needed" if value is inspect.Parameter.empty else f"{value:.4g}" if isinstance(value, float) else repr(value)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m tools.options", description="Names, options, types and defaults of a configuration")
    parser.add_argument("kind", nargs="?", help=", ".join(KINDS))
    parser.add_argument("name", nargs="?", help="one name of this kind; all of them if left out")
    args = parser.parse_args(argv)
    try:
        print(*(describe(args.kind, args.name) if args.kind else overview()), sep="\n")
    except UserError as error:
        return tell(str(error))
    return 0


if __name__ == "__main__":
    sys.exit(main())
