"""Interleaved timing: every contender once a round, medians over the rounds, so that a busy machine hits all alike."""

import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

MINIMUM = 0.004  # seconds that a measurement should last at least; shorter calls are repeated


def interleaved(
    contenders: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float] = time.process_time
) -> dict[str, list[float]]:
    """Seconds of every call in every round."""
    repeats = {}
    for name, call in contenders.items():
        call()
        start = clock()
        call()
        repeats[name] = max(1, min(200, int(MINIMUM / max(clock() - start, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - start) / repeats[name])
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


def machine() -> str:
    """CPU, instruction set and versions, in one line."""
    model, vectors = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        model = fields.get("model name", model)
        vectors = next((v for v in ("avx512f", "avx2", "asimd") if v in fields.get("flags", "").split()), "")
    cores = torch.get_num_threads()
    return f"{model} {vectors}, {cores} threads, Python {platform.python_version()}, torch {torch.__version__}"


def seconds(value: float) -> str:
    return f"{value * 1e6:.0f} us" if value < 1e-3 else f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"
