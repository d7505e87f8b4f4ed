"""The command line of main_pretrain.py and main_finetune.py, and the steps of a run."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import nn

from datasets.transforms import apply_all
from tools.adapt import fill_banks, is_adapted, report
from tools.build import (
    build_data,
    build_device,
    build_model,
    build_optimizer,
    build_runner,
    build_schedule,
    build_task,
    check_config,
    compat,
    set_determinism,
)
from tools.experiment import Experiment, config_hash, machine
from tools.frozen import describe_parameters, frozen_at_random
from tools.mismatch import mismatches, too_few_steps
from tools.monitor import duration
from tools.plain_run import PlainRun
from tools.quantize.check import has_quantization, with_policy
from tools.quantize.run import QuantizedRun
from tools.report import results_table, write_report
from tools.runner import Runner
from tools.signals import Stopped
from tools.splits import DataSplits
from tools.sweep import ALL_FOLDS, EPISODE, is_sweep, prefix, start_of, sweep, with_episode
from tools.tasks.base import evaluating
from tools.teacher import resolve_teacher
from utils import dist
from utils.checkpoint import read_checkpoint
from utils.config import describe_config, load_config, to_plain
from utils.cpu import emulates_bfloat16, tune
from utils.errors import UserError, first_line
from utils.logging import get_logger, start_logging
from utils.random import BatchRandom, seed_everything
from utils.schema import hint


class Parser(argparse.ArgumentParser):
    """One line for a wrong option, with the nearest match, instead of the whole usage."""

    def error(self, message: str) -> NoReturn:
        wrong = next((word.split("=")[0] for word in message.split() if word.startswith("--")), "")
        known = [option for action in self._actions for option in action.option_strings]
        tip = hint(wrong, known) if "unrecognized" in message else ""
        self.exit(2, f"error: {message}.{tip} See --help.\n")


def parse_arguments(mode: str, argv: Sequence[str] | None) -> argparse.Namespace:
    parser = Parser(
        prog=f"main_{mode}.py", description="Train, test or probe what a configuration describes.", allow_abbrev=False
    )
    parser.add_argument("--config", required=True, help="YAML file; see cfgs/")
    parser.add_argument("--exp_name", default="default", help="name of the run: experiments/<config>/<exp_name>/")
    parser.add_argument("--root", default="experiments", help="where the folders of the runs lie")
    parser.add_argument("--ckpts", help="checkpoint to start from, test or probe")
    parser.add_argument(
        "--adapter", help="adaptation-only file, put on the backbone of --ckpts (see `peft` in the docs)"
    )
    parser.add_argument("--resume", action="store_true", help="continue the run of this name")
    parser.add_argument("--overwrite", action="store_true", help="start anew; an old folder is kept under another name")
    parser.add_argument("--test", action="store_true", help="test the checkpoint, train nothing")
    parser.add_argument("--svm", action="store_true", help="probe the frozen features of the checkpoint (or of none)")
    parser.add_argument("--seed", type=int, help="random seed; default from the configuration, else 0")
    parser.add_argument("--seeds", type=int, metavar="N", help="run seeds 0 to N-1, then tell mean and deviation")
    parser.add_argument("--deterministic", action="store_true", default=None, help="refuse what may differ run to run")
    parser.add_argument("--print-config", action="store_true", help="show every value and where it comes from")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="a.b=value", help="override options")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="the same, without --set")
    parser.add_argument("--local_rank", "--local-rank", type=int, help=argparse.SUPPRESS)  # old launchers pass it
    if mode == "finetune":
        parser.add_argument("--finetune_model", action="store_true", help="fine-tune from the pre-trained --ckpts")
        parser.add_argument("--scratch_model", action="store_true", help="train the same model from scratch")
        parser.add_argument("--with_scratch", action="store_true", help="the same from scratch beside it, in one table")
        parser.add_argument("--vote", action="store_true", help="also test by voting over 10 augmented views")
        parser.add_argument("--way", type=int, help="few-shot: number of classes")
        parser.add_argument("--shot", type=int, help="few-shot: training clouds a class")
        parser.add_argument("--fold", type=int, help="few-shot: which episode")
        parser.add_argument("--folds", type=folds, metavar="all|N", help=f"few-shot: all {ALL_FOLDS} folds, or N")
    args = parser.parse_intermixed_args(argv)
    for name in ("finetune_model", "scratch_model", "with_scratch", "vote"):
        setattr(args, name, getattr(args, name, False))
    for name in (*EPISODE, "folds"):
        setattr(args, name, getattr(args, name, None))
    return args


def folds(text: str) -> int:
    return ALL_FOLDS if text == "all" else int(text)


def check_arguments(args: argparse.Namespace, mode: str) -> None:
    """Contradictions on the command line."""
    if args.resume and (args.test or args.svm):
        raise UserError("--resume continues training; it does not go with --test or --svm")
    if args.resume and args.ckpts and not is_sweep(args):
        raise UserError("--resume continues from the run's own checkpoint; leave out --ckpts")
    if args.test and not args.ckpts:
        raise UserError("--test needs --ckpts: which model to test")
    if args.adapter and not args.ckpts:
        raise UserError("--adapter needs --ckpts: the backbone that the adaptation was trained on")
    if args.finetune_model and args.scratch_model:
        raise UserError("--finetune_model starts from a checkpoint, --scratch_model from nothing; choose one")
    if args.finetune_model and not args.ckpts and not (args.resume and not is_sweep(args)):
        raise UserError("--finetune_model needs --ckpts: the pre-trained model (from scratch: --scratch_model)")
    if args.scratch_model and args.ckpts:
        raise UserError("--scratch_model starts from nothing; leave out --ckpts")
    if args.with_scratch and not (args.ckpts and (args.finetune_model or args.svm)):
        raise UserError("--with_scratch stands beside --finetune_model --ckpts P, or --svm --ckpts P")
    if args.folds is not None and (args.fold is not None or args.seeds is not None):
        raise UserError("--folds runs every fold with one seed; leave out --fold and --seeds")
    if args.seeds is not None and args.seed is not None:
        raise UserError("--seeds N runs seeds 0 to N-1; leave out --seed")
    for name in ("seeds", "folds"):
        if getattr(args, name) is not None and getattr(args, name) < 1:
            raise UserError(f"--{name}: {getattr(args, name)}; use at least 1")


def check_start(args: argparse.Namespace, mode: str, config: dict[str, Any]) -> None:
    """A run says where its weights come from."""
    if not (mode == "finetune" and not (args.test or args.svm or args.resume or args.print_config)):
        return
    if has_quantization(config) and not args.ckpts:
        raise UserError("quantize: needs --ckpts: the finished float model")
    if not (args.finetune_model or args.scratch_model or has_quantization(config)):
        raise UserError("say --finetune_model --ckpts P, --scratch_model, --test --ckpts P or --svm")


def main(mode: str, argv: Sequence[str] | None = None) -> int:
    """Exit code: 0 done, 2 a person's mistake told in one line, 128 + signal when stopped."""
    try:
        args = parse_arguments(mode, argv)
        check_arguments(args, mode)
        loaded, origins = load_config(args.config, [*args.set, *args.overrides])
        config = to_plain(loaded)
        for key in ("seed", "deterministic"):
            if getattr(args, key) is not None:
                config[key], origins[key] = getattr(args, key), "command line"
        check_config(config)
        check_start(args, mode, config)
        if args.vote and not config["task"].get("vote_times"):
            config["task"]["vote_times"], origins["task.vote_times"] = 10, "command line"
            check_config(config)
        episode = {key: getattr(args, key) for key in EPISODE if getattr(args, key) is not None}
        if episode or args.folds is not None:
            config = with_episode(config, **(episode or {"fold": 0}))
            check_config(config)
        if args.print_config:
            print(describe_config(config, origins))
            return 0
        config = with_policy(config)
        if is_sweep(args):
            sweep(args, config, run)
        else:
            run(args, config)
    except (UserError, OSError) as error:
        return tell(str(error))
    except torch.OutOfMemoryError as error:
        return tell(f"{first_line(error)}: out of memory; use a smaller data.batch_size, more runner.accumulate")
    except Stopped as stop:
        get_logger().warning(str(stop))
        return 128 + stop.signal
    except KeyboardInterrupt:
        tell("interrupted; training was not under way, so nothing is lost")
        return 128 + signal.SIGINT
    finally:
        dist.shutdown()
    return 0


def tell(message: str) -> int:
    """One line for a person; the exit code of a mistake."""
    if dist.launched_rank() > 0:
        time.sleep(10)  # most mistakes are everybody's: the launcher ends this process before it repeats the line
    print(f"error: {message}", file=sys.stderr, flush=True)
    return 2


def run(args: argparse.Namespace, config: dict[str, Any]) -> None:
    """Build everything, then train, test or probe, and write down what came out."""
    config = resolve_teacher(args, config, run)
    seed, started = config.get("seed", 0), time.monotonic()
    device = build_device(config.get("device", "auto"))
    dist.init_from_environment(device)
    start_logging(dist.is_main())
    tuned = tune()
    set_determinism(config.get("deterministic", False))
    experiment = find_experiment(args)
    data = build_data(config, device, seed)
    seed_everything(seed)  # the same initial weights in every process
    model, task = build_model(config, data), build_task(config)
    asked = (QuantizedRun if has_quantization(config) else PlainRun)(config, model)
    start = recorded_start(experiment, args)
    checkpoint = read_checkpoint(start) if start and (args.ckpts or asked.from_finished) else {}
    weights, loaded = asked.load(args, checkpoint, start, data, task, device)
    runner = build_runner(config, model.to(device))
    runner.prepare(
        model,
        task,
        data,
        build_optimizer(config, model, trains=not (args.test or args.svm)),
        build_schedule(config),
        experiment,
        config=config,
        seed=seed,
        **compat(**config.get("compat", {})),
    )
    num_points = check_first_batch(runner)
    seed_everything(seed, dist.rank())  # dropout and the like differ between processes
    if args.resume and asked.resumes:
        weights.append(runner.resume())
    weights += fill_banks(runner.models(), data, runner.autocast)
    experiment.open()  # from here on the run leaves traces
    experiment.record_start(config, seed, start or start_of(args))
    announce(experiment, config, data, model, device, weights, tuned)
    trains = not (args.test or args.svm)
    warnings = mismatches(checkpoint, config, num_points, trains)
    afresh = trains and not asked.from_finished
    warnings += frozen_at_random(model, loaded) if afresh and not args.resume else []
    for line in warnings + (too_few_steps(model, runner.total_epochs * runner.steps) if afresh else []):
        get_logger().warning(f"warning: {line}")
    del checkpoint  # may be large
    rows = asked.work(args, runner, seed)
    if dist.is_main() and not args.svm:
        task.draw(runner.eval_model(), data, runner.autocast, experiment.folder)
    finish(
        experiment,
        [{**row, "start": start or start_of(args)} for row in rows],
        config,
        data,
        time.monotonic() - started,
    )


def recorded_start(experiment: Experiment, args: argparse.Namespace) -> str | None:
    """The checkpoint that this run, or the one it continues, starts from."""
    return experiment.read_json("environment.json").get("start", "?") if args.resume else args.ckpts


def check_first_batch(runner: Runner) -> int:
    """Send two clouds through: what does not fit together shows before a folder is made. Points a cloud when tested."""
    data, loader = runner.data, runner.data.train
    batch = loader.dataset.fetch(range(min(2, len(loader.dataset))))
    batch = {key: value.to(loader.device) for key, value in batch.items()}
    with evaluating(runner.autocast):
        for transforms in (data.augment, data.eval_transform):
            rng = BatchRandom(0, loader.device, rank=0, world=1)
            prepared = apply_all(transforms, batch, rng)
            runner.task.losses(runner.eval_model(), prepared, rng)
    return prepared["points"].shape[1]


def find_experiment(args: argparse.Namespace) -> Experiment:
    name = prefix(args) + args.exp_name
    return Experiment(args.root, args.config, name, resume=args.resume, overwrite=args.overwrite)


def announce(
    experiment: Experiment,
    config: dict[str, Any],
    data: DataSplits,
    model: nn.Module,
    device: torch.device,
    weights: list[str],
    tuned: list[str],
) -> None:
    log = start_logging(dist.is_main(), experiment.folder / "train.log")
    log.info(f"folder: {experiment.folder}")
    log.info(data.describe())
    log.info(f"model: {config['model']['name']}, {'adapted' if is_adapted(model) else describe_parameters(model)}")
    notes = getattr(model, "notes", None)
    for line in weights + (notes(device) if notes else []) + (report(model) if is_adapted(model) else []):
        log.info(line)
    log.info(f"device: {device}, {machine()}, {dist.world_size()} process(es), {torch.get_num_threads()} threads")
    log.info(f"process set-up: {', '.join(tuned) or 'nothing to do'}")
    in_bf16 = config.get("runner", {}).get("precision") == "bf16" or config["model"].get("average_precision") == "bf16"
    if device.type == "cpu" and in_bf16 and emulates_bfloat16():
        log.warning("warning: this CPU has no bfloat16 units: products are many times slower than with fp32")


def finish(experiment: Experiment, rows: list[dict], config: dict[str, Any], data: DataSplits, seconds: float) -> None:
    """results.json, the report, and a table on the terminal."""
    test = data.test.dataset if data.test is not None else None
    protocol = {
        "dataset": test.name if test else None,
        "fingerprint": test.fingerprint() if test else None,
        "seed": config.get("seed", 0),
        "epochs": config.get("runner", {}).get("epochs"),
        "config_hash": config_hash(config),
        "machine": machine(),
    }
    experiment.write_json("results.json", {"seconds": round(seconds, 1), "rows": [{**row, **protocol} for row in rows]})
    if dist.is_main():
        write_report(experiment.folder)
        log = get_logger()
        for line in results_table(rows):
            log.info(line)
        log.info(f"finished in {duration(seconds)}; report: {experiment.folder / 'report.html'}")
