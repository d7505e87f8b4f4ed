"""One command run several times: over seeds, over few-shot folds, with a scratch baseline beside it; then one table.

Every run has its own folder beside that of the summary. With --resume finished runs are read, not repeated.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import DATASETS
from tools.experiment import LAST, Experiment, config_hash
from tools.report import read_results, results_table, write_report
from utils import dist
from utils.errors import UserError
from utils.logging import get_logger, start_logging
from utils.schema import parameters

ALL_FOLDS = 10
EPISODE = ("way", "shot", "fold")
SCRATCH = "scratch"


@dataclass
class Run:
    """One of the runs: its command line, its configuration, the folder where its results will be."""

    args: argparse.Namespace
    config: dict[str, Any]
    folder: Path
    done: bool = False


def is_sweep(args: argparse.Namespace) -> bool:
    return args.seeds is not None or args.folds is not None or args.with_scratch


def sweep(
    args: argparse.Namespace, config: dict[str, Any], run: Callable[[argparse.Namespace, dict[str, Any]], None]
) -> None:
    """Run what is not there yet, then write and print means and standard deviations."""
    summary = Path(args.root) / Path(args.config).stem / (prefix(args) + args.exp_name)
    if (summary / "environment.json").is_file():
        raise UserError(f"{summary}: is the folder of a single run; choose another --exp_name for several")
    runs = plan(args, config)
    for each in runs:
        prepare(each)
    start_logging(dist.launched_rank() == 0)
    for number, each in enumerate(runs, 1):
        if not each.done:
            run(each.args, each.config)
        get_logger().info(f"run {number}/{len(runs)} {'was there' if each.done else 'done'}: {each.folder}")
    dist.barrier()
    start_logging(dist.is_main())  # no longer into the log file of the last run
    if dist.is_main():
        write_summary(summary, runs, args)


def plan(args: argparse.Namespace, config: dict[str, Any]) -> list[Run]:
    """Every seed or fold, and where asked for each of them from scratch as well."""
    seed = config.get("seed", 0)
    if args.folds is not None:
        changes = [(f"fold{fold}", with_episode(config, fold=fold)) for fold in range(args.folds)]
    else:
        seeds = [seed] if args.seeds is None else range(args.seeds)
        changes = [(f"seed{each}", {**config, "seed": each}) for each in seeds]
    starts = [("", args)]
    if args.with_scratch:
        scratch = copy.copy(args)
        scratch.ckpts, scratch.finetune_model, scratch.scratch_model = None, False, not args.svm
        starts.append((f"-{SCRATCH}", scratch))
    runs = []
    for name, changed in changes:
        for infix, start in starts:
            own = copy.copy(start)
            own.exp_name = f"{args.exp_name}{infix}-{name}"
            runs.append(Run(own, changed, Path(args.root) / Path(args.config).stem / (prefix(args) + own.exp_name)))
    return runs


def prepare(run: Run) -> None:
    """Look at the run's folder: nothing there, a finished run, or one to continue."""
    if not run.args.resume:
        Experiment(run.args.root, run.args.config, run.folder.name, overwrite=run.args.overwrite)
        return
    run.args.resume = False
    if (run.folder / "results.json").is_file():
        made_with = json.loads((run.folder / "environment.json").read_text(encoding="utf-8"))
        if (made_with["config_hash"], made_with.get("start")) != (config_hash(run.config), start_of(run.args)):
            raise UserError(
                f"{run.folder}: finished with another configuration or checkpoint; choose another --exp_name"
            )
        run.done = True
    elif (run.folder / LAST).is_file():
        run.args.resume, run.args.ckpts = True, None
    else:
        run.args.overwrite = True  # it was stopped before anything was saved


def start_of(args: argparse.Namespace) -> str:
    """Which weights a run starts from."""
    return args.ckpts or SCRATCH


def prefix(args: argparse.Namespace) -> str:
    return "test_" if args.test else "svm_" if args.svm else ""


def with_episode(config: dict[str, Any], **options: int) -> dict[str, Any]:
    """The configuration for another few-shot episode: options of the data set if it has ready-made ones, else of
    `data.few_shot`, which cuts episodes out of any data set."""
    changed = copy.deepcopy(config)
    data = changed["data"]
    ready = [data[key] for key in ("train", "val", "test") if has_episodes(data.get(key))]
    if not ready:
        ready = [data.setdefault("few_shot", {})]
    for cfg in ready:
        cfg.update(options)
    return changed


def has_episodes(cfg: dict[str, Any] | None) -> bool:
    return cfg is not None and set(EPISODE) <= set(parameters(DATASETS.get(cfg["name"], "data")))


def write_summary(folder: Path, runs: list[Run], args: argparse.Namespace) -> None:
    """results.json, report and a table: mean and sample standard deviation of every figure."""
    kind = "folds" if args.folds is not None else "seeds"
    rows = summarise([row for run in runs for row in read_results(run.folder)["rows"]], kind)
    folder.mkdir(parents=True, exist_ok=True)
    results = {"runs": [str(run.folder) for run in runs], "rows": rows}
    (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    log = get_logger()
    log.info(f"mean +- sample standard deviation (n - 1) over {rows[0]['n']} {kind}" if rows else "no test set")
    for line in results_table(rows):
        log.info(line)
    log.info(f"report: {write_report(folder)}")


def summarise(rows: list[dict], kind: str) -> list[dict]:
    """One row for each figure, rule of selection and starting point, in the order of the first run."""
    grouped: dict[tuple, list[dict]] = {}
    for row in rows:
        grouped.setdefault((row["start"], row.get("selection"), row["metric"]), []).append(row)
    kept = ("metric", "split", "selection", "start", "protocol", "voting", "epochs", "machine")
    return [summary_row(group, kept, kind) for group in grouped.values()]


def summary_row(group: list[dict], kept: tuple[str, ...], kind: str) -> dict:
    values = [row["value"] for row in group]
    same = {key: group[0][key] for key in kept if key in group[0]}
    if any(row.get("protocol") != group[0].get("protocol") for row in group):
        same["protocol"] = group[0]["protocol"].rpartition(", ")[0] + ", chosen in each run"
    details = [row["per_class"] for row in group if row.get("per_class")]
    if details and all(each.keys() == details[0].keys() for each in details):  # folds have other classes each
        same["per_class"] = {name: statistics.fmean(each[name] for each in details) for name in details[0]}
    return {
        **same,
        "value": statistics.fmean(values),
        "std": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
        "values": values,
        "over": kind,
        "dataset": sorted({str(row["dataset"]) for row in group}),
        "fingerprint": sorted({str(row["fingerprint"]) for row in group}),
    }
