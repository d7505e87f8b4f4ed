"""A training step against the published formulation: `python scripts/bench.py train --model point_mae --mode pretrain`

The peers are `tools.bench.plain`. Every contender lives in a process of its own, as the tuning of memory and matrix
products belongs to a process, and they take turns. Before the timing all must agree on the loss. A step is forward,
backward and AdamW. Efficiency is the products counted in our step, over the rate of large products in the same process.
"""

from __future__ import annotations

import argparse
import multiprocessing as mp
import os
import statistics
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from models.layers.patch_embed import Embed
from models.point_m2ae import PointM2AE
from models.point_mae import PointMAE, PointMAEClassifier
from tools.bench.measure import machine, memory, product_rate, synchronize
from tools.bench.plain import PlainClassifier, PlainMAE, same_weights
from tools.bench.plain_m2ae import PlainM2AE
from tools.optim import AdamW
from tools.runner import DTYPES
from utils.cpu import emulates_bfloat16, tune
from utils.random import BatchRandom

WARM_UP = 3  # rounds until a tuned process has the memory it keeps
CLASSES = 40
PUBLISHED = "published formulation"
# model and mode: (points a cloud, whether the published formulation gets our point operations, goals of the ratio)
SETTINGS = {
    ("point_mae", "pretrain"): (1024, False, {"ours fp32": 2.3, "ours bf16": 4.0, "visible only bf16": 5.0}),
    ("point_mae", "classify"): (1024, False, {"ours fp32": 2.0, "ours bf16": 3.7}),
    ("point_m2ae", "pretrain"): (2048, True, {"ours fp32": 2.8, "ours bf16": 4.5, "visible only bf16": 5.5}),
}


@dataclass(frozen=True)
class Contender:
    ours: bool
    tuned: bool
    precision: str = "fp32"
    embed: Embed = "all"


def contenders(mode: str, precision: str) -> dict[str, Contender]:
    found = {PUBLISHED: Contender(False, False), f"{PUBLISHED}, tuned process": Contender(False, True)}
    for kind in ("fp32", "bf16") if precision == "all" else (precision,):
        found[f"ours {kind}, stock process"] = Contender(True, False, kind)
        found[f"ours {kind}"] = Contender(True, True, kind)
        if mode == "pretrain":
            found[f"visible only {kind}"] = Contender(True, True, kind, "visible_only")
    return found


def ours(model: str, mode: str, embed: Embed = "all") -> nn.Module:
    if mode == "classify":
        return PointMAEClassifier(CLASSES)
    return PointMAE(embed=embed) if model == "point_mae" else PointM2AE(embed=embed)


def published(model: str, mode: str) -> nn.Module:
    """With the weights that ours has from the same seed."""
    network = ours(model, mode)
    plain = PlainClassifier(CLASSES) if mode == "classify" else PlainMAE() if model == "point_mae" else PlainM2AE()
    same_weights(plain, network)
    return plain


def clouds(batch: int, num_points: int) -> Tensor:
    """Points on ellipsoids: surfaces, as the shapes of the data sets are."""
    points = F.normalize(torch.randn(batch, num_points, 3), dim=-1) * (0.3 + 0.7 * torch.rand(batch, 1, 3))
    return points / points.norm(dim=-1).amax(1)[:, None, None]


def loss_of(model: nn.Module, points: Tensor, labels: Tensor | None, rng: BatchRandom) -> Tensor:
    if labels is not None:
        return F.cross_entropy(model(points).float(), labels)
    out = model(points, rng=rng)
    return out["loss"] if isinstance(out, dict) else out


class Step:
    """What is timed: a contender's network, data and optimizer on a device."""

    def __init__(self, contender: Contender, model: str, mode: str, batch: int, device: str):
        torch.manual_seed(0)
        network = ours(model, mode, contender.embed) if contender.ours else published(model, mode)
        self.network, self.device = network.to(device), torch.device(device)
        torch.manual_seed(0)
        self.points = clouds(batch, SETTINGS[model, mode][0]).to(device)
        self.labels = torch.randint(CLASSES, (batch,)).to(device) if mode == "classify" else None
        self.rng, self.dtype = BatchRandom(0, self.device), DTYPES[contender.precision]
        # the published runs take PyTorch's default optimizer; ours the one that `optimizer.name: AdamW` builds
        kind = AdamW if contender.ours else torch.optim.AdamW
        self.optimizer = kind(self.network.parameters(), lr=1e-4, fused=contender.ours or None)

    def __call__(self) -> Tensor:
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            loss = loss_of(self.network, self.points, self.labels, self.rng)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.detach()


def worker(pipe: Connection, contender: Contender, args: argparse.Namespace) -> None:
    """One contender: seconds until the first step is done, its loss, products of the second; then a step at every word,
    answered with its seconds (clock, processor) and memory; at the end the rate of large products."""
    started = time.perf_counter()
    if contender.tuned:
        tune()
    if not (contender.ours or SETTINGS[args.model, args.mode][1]):
        os.environ["POINT_OPS"] = "torch"
    torch.set_num_threads(args.threads)
    step = Step(contender, args.model, args.mode, args.batch, args.device)
    torch.manual_seed(1)  # the same paths are dropped in all contenders
    loss = step().item()
    ready = time.perf_counter() - started
    with FlopCounterMode(display=False) as counter:  # loads PyTorch's compiler
        step()
    pipe.send((ready, loss, counter.get_total_flops()))
    while pipe.recv():
        clock, processor = time.perf_counter(), time.process_time()
        step()
        synchronize(args.device)
        pipe.send((time.perf_counter() - clock, time.process_time() - processor, memory(args.device)))
    clock_of = time.perf_counter if by_clock(args) else time.process_time
    pipe.send(product_rate(step.dtype, args.device, clock_of))


def by_clock(args: argparse.Namespace) -> bool:
    """One thread is measured in processor time, which other programs disturb least."""
    return args.threads > 1 or args.device != "cpu"


@dataclass
class Result:
    start: float  # seconds until the first step is done
    loss: float  # of the first step
    flops: int
    rows: list[tuple[float, float, float]]  # clock, processor, memory
    peak: float = 0.0

    def seconds(self, which: int) -> float:
        return statistics.median(row[which] for row in self.rows[WARM_UP:])


def measure(args: argparse.Namespace, names: dict[str, Contender]) -> dict[str, Result]:
    """All contenders in turn."""
    context = mp.get_context("spawn")
    pipes: dict[str, Connection] = {}
    workers: dict[str, mp.process.BaseProcess] = {}
    results: dict[str, Result] = {}
    for name, contender in names.items():
        pipes[name], other = context.Pipe()
        workers[name] = context.Process(target=worker, args=(other, contender, args), daemon=True)
        workers[name].start()
        other.close()  # so that a contender that dies is noticed
        start, loss, flops = pipes[name].recv()
        results[name] = Result(start, loss, flops, [])
    for _ in range(WARM_UP + args.rounds):
        for name, pipe in pipes.items():
            pipe.send(True)
            results[name].rows.append(pipe.recv())
    for name, pipe in pipes.items():
        pipe.send(False)
        results[name].peak = pipe.recv()
        workers[name].join()  # returning its memory would slow down the products of the next one
    return results


def check_losses(results: dict[str, Result], names: dict[str, Contender]) -> None:
    """The first losses, with the same weights and masks, must agree, or these are not the same networks."""
    expected = results[PUBLISHED].loss
    for name, result in results.items():
        tolerance = {"fp32": 1e-4, "bf16": 2e-2}[names[name].precision] + (0.1 if names[name].embed != "all" else 0)
        if abs(result.loss - expected) > tolerance * abs(expected):
            raise RuntimeError(f"{name}: loss {result.loss}, the {PUBLISHED} has {expected}")


def run(args: argparse.Namespace) -> str:
    """Contenders in turn; a table in Markdown."""
    names = contenders(args.mode, args.precision)
    note = ""
    if args.device == "cpu" and emulates_bfloat16():
        names = {name: contender for name, contender in names.items() if contender.precision != "bf16"}
        note = "; this CPU has no bfloat16 products: left out"
    results = measure(args, names)
    check_losses(results, names)
    num_points, with_ops, goals = SETTINGS[args.model, args.mode]
    which, clock = (0, "wall clock") if by_clock(args) else (1, "processor time")
    peer = "our" if with_ops else "plain PyTorch's"
    lines = [
        f"{args.model}, {args.mode}, {args.batch} clouds of {num_points:,} points; {machine(args.device)}; {clock}, "
        f"median of {args.rounds} steps in turn; the {PUBLISHED} with {peer} point operations{note}",
        "",
        "| | clouds/s | ratio (goal) | products, GFLOP/s | of peak | memory, GB | until the first step is done |",
        "|---|---|---|---|---|---|---|",
    ]
    base = results[PUBLISHED].seconds(which)
    for name, result in results.items():
        spent, rate = result.seconds(which), result.flops / result.seconds(which) / 1e9
        goal = f" ({goals[name]:g})" if name in goals and args.device == "cpu" else ""
        lines.append(
            f"| {name} | {args.batch / spent:.1f} | {base / spent:.2f}{goal} | {rate:.0f} | "
            f"{100 * rate / result.peak:.0f} % | {result.rows[-1][2]:.2f} | {result.start:.1f} s |"
        )
    return "\n".join(lines) + "\n"
