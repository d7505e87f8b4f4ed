"""Dense attention against attention in windows of sorted rows, and farthest point sampling against cells.

Every kind and length runs in a process of its own, so that its peak memory is its own: CPU time at one thread, forward
alone and forward with backward, and at 16384 tokens also wall time at two threads. The crossing point is where the
lines of time through neighbouring lengths meet.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise

import torch

from extensions import ops
from models.layers.attention import ATTENTION
from models.samplers.ass import adaptive_sparse_sample
from tools.bench.measure import interleaved, machine, median, seconds
from tools.bench.ops import ball, reference
from utils.cpu import tune

KINDS: dict[str, dict] = {
    "dense": {"name": "dense"},
    "sim first": {"name": "sim"},
    "sim per_head": {"name": "sim", "restore": "per_head"},
    "lsh": {"name": "lsh"},
}
LENGTHS = (1024, 4096, 16384, 65536)
WIDTHS = ((64, 1), (384, 6))  # channels, heads
TWO_THREADS_AT = 16384
DENSE_UP_TO = 65536 * 64  # tokens times channels; beyond, dense attention takes many minutes
SLOW = 4.0  # seconds; what takes longer is measured once
Row = Mapping[str, float]


def measure(kind: str, length: int, dim: int, heads: int, rounds: int) -> Row:
    """Seconds and bytes of one kind, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    layer = ATTENTION.build(KINDS[kind])(dim, heads)
    x = torch.randn(1, length, dim, requires_grad=True)

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    def both() -> None:
        layer(x).sum().backward()

    small = torch.randn(1, 256, dim, requires_grad=True)  # what is loaded and allocated once is not counted
    layer(small).sum().backward()
    before, result = _peak(), {}
    for name, call in (("forward", forward), ("both", both)):
        result[name] = _fastest(call, rounds, time.process_time)
        result[f"{name} memory"] = _peak() - before
    if length == TWO_THREADS_AT:
        torch.set_num_threads(2)
        result["two threads"] = _fastest(both, rounds, time.perf_counter)
    return result


def _peak() -> float:
    """Bytes; ru_maxrss is in kilobytes on Linux, in bytes on macOS."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fastest(call: Callable[[], None], rounds: int, clock: Callable[[], float]) -> float:
    """Seconds of the fastest of several calls: what else runs on the machine only adds."""
    times: list[float] = []
    while len(times) < rounds and not (times and times[0] > SLOW):
        start = clock()
        call()
        times.append(clock() - start)
    return min(times)


def in_own_process(kind: str, length: int, dim: int, heads: int, rounds: int) -> Row:
    words = [sys.executable, "-m", "tools.bench.attention", kind, *map(str, (length, dim, heads, rounds))]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{kind}, {length} tokens: {done.stderr.strip().splitlines()[-1:]}")
    return json.loads(done.stdout)


def crossing(dense: Mapping[int, float], sparse: Mapping[int, float]) -> str:
    """Where the sparse kind becomes faster, on lines through the logarithms."""
    lengths = sorted(set(dense) & set(sparse))
    gain = {n: math.log(dense[n] / sparse[n]) for n in lengths}
    if gain[lengths[0]] > 0:
        return f"below {lengths[0]}"
    for low, high in pairwise(lengths):
        if gain[high] > 0:
            share = -gain[low] / (gain[high] - gain[low])
            return f"about {round(math.exp(math.log(low) + share * math.log(high / low)), -1):.0f}"
    return f"above {lengths[-1]}"


def attention_table(dim: int, heads: int, rounds: int, only: str) -> list[str]:
    lines = [f"{dim} channels, {heads} heads, one cloud, float32, window 9:", ""]
    lines += ["| tokens | kind | forward | forward + backward | memory | times dense | 2 threads, times dense |"]
    lines += ["|---|---|---|---|---|---|---|"]
    found: dict[str, dict[int, Row]] = {kind: {} for kind in KINDS if only in kind or kind == "dense"}
    for length in LENGTHS:
        for kind, rows in found.items():
            if kind == "dense" and length * dim > DENSE_UP_TO:
                continue
            row = rows[length] = in_own_process(kind, length, dim, heads, rounds)
            dense = found["dense"].get(length, {})
            cells = [f"{length}", kind, seconds(row["forward"]), seconds(row["both"])]
            cells.append(f"{row['both memory'] / 2**20:.0f} MB")
            for key in ("both", "two threads"):
                cells.append(f"{dense[key] / row[key]:.1f}x" if key in row and key in dense else "-")
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    times = {kind: {n: row["both"] for n, row in rows.items()} for kind, rows in found.items()}
    meets = ", ".join(f"{kind} {crossing(times['dense'], times[kind])}" for kind in found if kind != "dense")
    return [*lines, "", f"Faster than dense, forward and backward, from (tokens): {meets}."]


def sampling_table(rounds: int) -> list[str]:
    tune()  # as every run does
    torch.set_num_threads(1)
    lines = ["One cloud, CPU time at one thread; the number in brackets is the time of FPS over that of ASS:", ""]
    lines += [
        "| points | samples | ASS, means | ASS, members | FPS | FPS in plain PyTorch |",
        "|---|---|---|---|---|---|",
    ]
    for length in LENGTHS:
        for number in (256, length // 16):
            points = ball(1, length)
            sample = partial(ops.farthest_point_sample, points, number)
            calls: dict[str, Callable[[], object]] = {
                "means": partial(adaptive_sparse_sample, points, number),
                "members": partial(adaptive_sparse_sample, points, number, member=True),
                "fps": sample,
                "plain": reference(sample),
            }
            times = {name: median(values) for name, values in interleaved(calls, rounds).items()}
            cells = [f"{length}", f"{number}", seconds(times["means"]), seconds(times["members"])]
            cells += [f"{seconds(times[name])} ({times[name] / times['means']:.2g}x)" for name in ("fps", "plain")]
            lines.append(f"| {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def run(args: argparse.Namespace) -> str:
    lines = [machine()]
    if args.only != "sampling":
        for dim, heads in WIDTHS:
            lines += ["", *attention_table(dim, heads, args.rounds, args.only)]
    if args.only in ("", "sampling"):
        lines += ["", *sampling_table(args.rounds)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], *map(int, sys.argv[2:6]))))
