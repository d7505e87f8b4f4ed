"""What choosing M of N points costs: SampleNet and the plain samplers on the same clouds, processor time.

Random clouds in the unit ball, float32. The networks are not trained, but their free points are spread over the ball as
those of a trained one are; "all completed" is the worst case, a network whose free points all meet the same point.
"""

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from models.samplers import SAMPLERS
from models.samplers.samplenet import SampleNet
from tools.bench.measure import interleaved, machine, median, seconds
from tools.bench.ops import ball

SIZES = ((1024, 32), (1024, 64), (2048, 64), (2048, 256))  # N, M
BATCHES = (1, 8)
PLAIN = ("fps", "random")

Call = Callable[[Tensor], object]


def samplers(num_out: int) -> dict[str, Call]:
    """The network alone, with soft projection, with matching (what evaluation does); and the others."""
    spread, collapsed = (SampleNet(num_out) for _ in range(2))
    for net, points in ((spread, ball(num_out)), (collapsed, torch.zeros(num_out, 3))):
        last: Any = net.head[-1].linear
        torch.nn.init.zeros_(last.weight)
        last.bias.copy_(points.T.flatten())
        net.eval()
    found: dict[str, Call] = {
        "SampleNet, network alone": spread.simplify,
        "SampleNet, soft (training)": lambda points: spread.project(spread.simplify(points), points),
        "SampleNet, matched": spread,
        "SampleNet, all completed": collapsed,
    }
    return found | {name: SAMPLERS.build({"name": name, "num_out": num_out}).eval() for name in PLAIN}


@torch.no_grad()
def run(args: argparse.Namespace) -> str:
    """A Markdown table; a row a sampler and size."""
    lines = [
        f"{machine()}; medians of {args.rounds} rounds, interleaved.",
        "",
        "| N | M | batch | sampler | time a cloud | of FPS |",
        "|---|---|---|---|---|---|",
    ]
    for num_points, num_out in SIZES:
        calls = {name: call for name, call in samplers(num_out).items() if args.only in name or name == "fps"}
        for batch in BATCHES:
            points = ball(batch, num_points)
            contenders: dict[str, Callable[[], object]] = {name: partial(call, points) for name, call in calls.items()}
            times = {name: median(each) / batch for name, each in interleaved(contenders, args.rounds).items()}
            for name in calls:
                row = (num_points, num_out, batch, name, seconds(times[name]), f"{times[name] / times['fps']:.1f}x")
                lines.append(f"| {' | '.join(map(str, row))} |")
    table = "\n".join(lines) + "\n"
    print(table)
    return table
