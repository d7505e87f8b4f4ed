"""Interleaved timing: every contender has a turn in every round, so that a busy machine hits all alike."""

import math
import platform
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

TURN = 0.05  # seconds that are measured in a turn at least: shorter calls are repeated


def interleaved(
    contenders: dict[str, Callable[[], object]],
    rounds: int,
    clock: Callable[[], float] = time.process_time,
    turn: float = TURN,
) -> dict[str, list[float]]:
    """Seconds of a call in every round. The first call of a turn finds its data and code cold and is not counted; with
    a turn of 0 nothing but such calls is measured."""
    repeats = {}
    for name, call in contenders.items():
        call()
        start = clock()
        call()
        repeats[name] = max(1, min(200, int(turn / max(clock() - start, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(rounds):
        for name, call in contenders.items():
            if turn:
                call()
            start = clock()
            for _ in range(repeats[name]):
                call()
            times[name].append((clock() - start) / repeats[name])
    return times


def median(times: list[float]) -> float:
    return statistics.median(times)


def synchronize(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)


def memory(device: str) -> float:
    """GB that were held at most: by the process, or on the device."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def product_rate(dtype: torch.dtype, device: str, clock: Callable[[], float], size: int = 2048) -> float:
    """GFLOP/s of large matrix products with the threads of this process: the best of several."""
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = math.inf
    for _ in range(6):
        synchronize(device)
        start = clock()
        left @ right
        synchronize(device)
        best = min(best, clock() - start)
    return 2 * size**3 / best / 1e9


def machine(device: str = "cpu") -> str:
    """Processor, instruction set and versions, in one line."""
    if device != "cpu":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    model, vectors = platform.processor() or platform.machine(), ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = dict(line.split(":", 1) for line in info.read_text().splitlines() if ":" in line)
        fields = {key.strip(): value.strip() for key, value in lines.items()}
        model = fields.get("model name", model)
        flags = fields.get("flags", "").split()
        vectors = next((v for v in ("avx512_bf16", "avx512f", "avx2", "asimd") if v in flags), "")
    cores = torch.get_num_threads()
    return f"{model} {vectors}, {cores} threads, Python {platform.python_version()}, torch {torch.__version__}"


def seconds(value: float) -> str:
    return f"{value * 1e6:.0f} us" if value < 1e-3 else f"{value * 1e3:.2f} ms" if value < 1 else f"{value:.2f} s"
