"""The gate on speed: a third of the ratios to plain PyTorch and scipy that docs/PERFORMANCE.md asks for.

Half of them is what a CPU reaches whose vector units are half as wide as those the goals were set on; the rest is for
machines that are busy with other things.
"""

from collections.abc import Callable, Iterator

import pytest
import torch

from extensions import library
from tools.bench import ops as bench
from tools.bench.measure import interleaved

ROUNDS = 5
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
        assert best[name] / best["ours"] >= case.wanted[name] / 3, (case.name, best)
