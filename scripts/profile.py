"""Where the time of a training step goes: `python scripts/profile.py [--model point_mae] [--batch 16]`.

Ten lines: kinds of work, their share, milliseconds a step. `--device cuda` for a GPU; `--trace F` writes a file for
chrome://tracing.
"""

import argparse
import re
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # not this folder: Python has a module `profile` that PyTorch loads

KINDS = (  # the first pattern that the name of an operation matches
    ("matrix products", r"mm$|addmm|bmm|gemm|conv|nvjet|cutlass|linear"),
    ("norm and rectifier of patches", r"NormRelu|_Lift"),
    ("maximum over a patch", r"GroupMax|aten::(max|amax)"),
    ("point operations", r"pointsmith::|fps|knn|chamfer|group_\d"),
    ("attention", r"softmax|attention|flash"),
    ("norms", r"norm"),
    ("optimizer", r"adam|sgd|multi_tensor"),
    ("gather and scatter", r"index|gather|scatter|cat|sort"),
    ("copies", r"copy|to$|clone|fill|zero|contiguous|memset|memcpy"),
    ("elementwise", r"gelu|relu|add|mul|sub|div|elementwise|sum|rand|where"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("point_mae", "point_m2ae"), default="point_mae")
    parser.add_argument("--mode", choices=("pretrain", "classify"), default="pretrain")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--published", action="store_true", help="the published formulation instead of ours")
    parser.add_argument("--trace", help="also write every event to this file")
    args = parser.parse_args()
    if (args.model, args.mode) == ("point_m2ae", "classify"):
        parser.error("--mode classify goes with --model point_mae")
    print(profile(args))


def profile(args: argparse.Namespace) -> str:
    from utils.cpu import tune

    tune()
    import torch
    from torch.profiler import ProfilerActivity

    from tools.bench.measure import synchronize
    from tools.bench.train import Contender, Step

    torch.set_num_threads(args.threads)
    step = Step(Contender(not args.published, True, args.precision), args.model, args.mode, args.batch, args.device)
    for _ in range(2):
        step()
    synchronize(args.device)
    on_gpu = args.device != "cpu"
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        for _ in range(args.steps):
            step()
        synchronize(args.device)
    if args.trace:
        found.export_chrome_trace(args.trace)
    spent: dict[str, float] = {}
    for event in found.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        spent[kind(event.key)] = spent.get(kind(event.key), 0) + own / 1e3 / args.steps
    total = sum(spent.values())
    lines = [f"{args.model}, {args.mode}, {args.batch} clouds, {args.precision}: {total:.1f} ms a step"]
    ranked = sorted(spent.items(), key=lambda item: -item[1])[:9]
    return "\n".join(lines + [f"{100 * ms / total:5.1f} %  {ms:8.1f} ms  {name}" for name, ms in ranked])


def kind(name: str) -> str:
    return next((what for what, pattern in KINDS if re.search(pattern, name, re.IGNORECASE)), "other")


if __name__ == "__main__":
    main()
