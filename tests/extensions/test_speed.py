"""The gate on speed: a share of the ratios to plain PyTorch and scipy that docs/PERFORMANCE.md asks for.

The goals were set on a CPU with AVX-512. A third of them is asked for there, since other tests run at the same time,
and a sixth where vectors are half as wide or less: plain PyTorch loses less by that than our kernels do.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

from extensions import library
from tools.bench import ops as bench
from tools.bench.measure import interleaved, machine

ROUNDS = 5
SHARE = 1 / 3 if "avx512" in machine() else 1 / 6
PEERS = ("torch loop", "cKDTree", "cdist", "cdist + topk", "product form", "torch gather", "scipy assignment")
SLOW = ("32 x 2048", "65536")  # too long for a gate


@pytest.mark.parametrize("group", bench.GROUPS)
def test_ratios(group: Callable[[], Iterator[bench.Case]]) -> None:
    if not library.kernels("cpu"):
        pytest.skip("no compiled operations here; `python -m extensions.build` says why")
    for case in group():
        if not any(word in case.name for word in SLOW):
            check(case)


def check(case: bench.Case) -> None:
    peers = {name: call for name, call in case.peers.items() if name in PEERS and name in case.wanted}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        best = {name: min(times) for name, times in interleaved({"ours": case.ours, **peers}, ROUNDS).items()}
    finally:
        torch.set_num_threads(before)
    for name in peers:
        assert best[name] / best["ours"] >= case.wanted[name] * SHARE, (case.name, best)
