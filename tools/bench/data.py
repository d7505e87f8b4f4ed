"""How fast clouds are read: python -m tools.bench.data

The packed form through our loader, against a data set that opens one file an item, as upstream writes it: np.load,
a shuffled index array, the first points of it, then normalised. Both give batches of 128 clouds of 1,024 points out of
8,192, both in this process, in turn, on files that the system keeps in memory; best of several. Once with and once
without the normalisation, so that reading alone can be told from arithmetic.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import store
from datasets.loader import Loader
from datasets.shapenet55 import listing, pack_key, shapenet55
from datasets.transforms import Normalize, apply_all
from tools.bench.measure import machine
from utils.cpu import tune
from utils.random import BatchRandom

GOALS = {"clouds per second": 60_000, "ratio": 40}


class FilePerItem(torch.utils.data.Dataset):
    """One .npy file an item; a permutation that lives in the data set is shuffled anew for each."""

    def __init__(self, files: Sequence[Path], available: int, num_points: int, normalize: bool):
        self.files, self.num_points, self.normalize = list(files), num_points, normalize
        self.order = np.arange(available)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        points = np.load(self.files[index]).astype(np.float32)
        np.random.shuffle(self.order)
        points = points[self.order[: self.num_points]]
        if self.normalize:
            points = points - points.mean(axis=0)
            points = points / np.max(np.sqrt((points**2).sum(axis=1)))
        return torch.from_numpy(points).float(), index


def make_tree(root: Path, clouds: int, available: int) -> Path:
    """ShapeNet-55's form on disk, with random clouds."""
    (root / "shapenet_pc").mkdir(parents=True)
    (root / "ShapeNet-55").mkdir()
    rng = np.random.default_rng(0)
    names = [f"02691156-{i:06d}.npy" for i in range(clouds)]
    for name in names:
        np.save(root / "shapenet_pc" / name, rng.normal(size=(available, 3)).astype(np.float32))
    (root / "ShapeNet-55" / "train.txt").write_text("\n".join(names))
    (root / "ShapeNet-55" / "test.txt").write_text(names[0])
    return root


def per_file(options: argparse.Namespace, root: Path, normalize: bool) -> Iterator[Tensor]:
    files = sorted((root / "shapenet_pc").glob("*.npy"))
    dataset = FilePerItem(files, options.available, options.num_points, normalize)
    for points, _ in torch.utils.data.DataLoader(dataset, options.batch, shuffle=True, drop_last=True):
        yield points


def packed(options: argparse.Namespace, root: Path, normalize: bool) -> Iterator[Tensor]:
    clouds = shapenet55(str(root), "train", options.num_points)
    loader = Loader(clouds, options.batch, torch.device("cpu"), train=True)
    transforms, rng = [Normalize()] if normalize else [], BatchRandom(0)
    for epoch in range(options.epochs):
        for batch in loader.epoch(epoch):
            yield apply_all(transforms, batch, rng)["points"]


def speed(batches: Callable[[], Iterator[Tensor]]) -> float:
    """Clouds a second of processor time, threads of this process together."""
    started, clouds = time.process_time(), 0
    for points in batches():
        clouds += len(points)
    return clouds / (time.process_time() - started)


def table(args: Sequence[str] | None = None) -> str:
    """Markdown."""
    parser = argparse.ArgumentParser(prog="python -m tools.bench.data", description="packed form against single files")
    parser.add_argument("--clouds", type=int, default=2048)
    parser.add_argument("--available", type=int, default=8192, help="points of a cloud on disk")
    parser.add_argument("--num_points", type=int, default=1024, help="points read")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8, help="of the packed form, which is over too soon otherwise")
    options = parser.parse_args(args)
    tune()  # as every run does
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = make_tree(Path(folder) / "tree", options.clouds, options.available)
        store.write_store(root / "packed" / pack_key(), listing(str(root)))
        best: dict[tuple[str, bool], float] = {}
        for _ in range(options.repeats):
            for way in (per_file, packed):
                for normalize in (True, False):
                    key = (way.__name__, normalize)
                    best[key] = max(best.get(key, 0.0), speed(lambda: way(options, root, normalize)))  # noqa: B023
    lines = ["| | packed, clouds/s (goal) | a file an item | ratio (goal) |", "|---|---|---|---|"]
    for normalize, words in ((True, "read and normalised"), (False, "read")):
        ours, plain = best["packed", normalize], best["per_file", normalize]
        goals = [f" ({GOALS[key]:,})" if normalize else "" for key in ("clouds per second", "ratio")]
        lines.append(f"| {words} | {ours:,.0f}{goals[0]} | {plain:,.0f} | {ours / plain:.1f}{goals[1]} |")
    return f"{machine()}\n\n" + "\n".join(lines) + "\n"


def run(args: argparse.Namespace) -> str:
    return table([])


def main(args: Sequence[str] | None = None) -> int:
    sys.stdout.write(table(args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
