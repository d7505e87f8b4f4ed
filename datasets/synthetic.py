"""The built-in data: labelled shapes of the 16 ShapeNetPart categories with their 50 parts, made on the fly.

A cloud is a pure function of (seed, split, index): the same in every process, whatever is read before it (on another
kind of processor the last digits may differ). Classes take turns, so that every prefix is balanced. Axes: y up, z to
the front. Clouds have mean 0 and largest radius 1, in both variants.

Variants: `clean` has a canonical pose (long things sometimes lie down) with a tilt of a few degrees and a little noise;
`scan` is partial, turned about the vertical, noisy and surrounded by background, whose points have part id -1.
"""

from __future__ import annotations

import functools
import os
import uuid
from pathlib import Path

import numpy as np
from numpy import ndarray

from datasets.base import PointClouds
from datasets.made import Made
from datasets.shapes.categories import CATEGORIES, PART_CATEGORY, PART_NAMES, draw_shape
from datasets.shapes.scan import draw_scan
from utils.errors import UserError

CODE_VERSION = 1  # raise it when any cloud changes: cached files of other versions are not read
SPLITS = ("train", "test", "val")  # the place in this list enters the seed
SIZES = {"train": 2048, "val": 512, "test": 512}
VARIANTS = ("clean", "scan")


def synthetic_shapes(
    split: str = "train",
    size: int | None = None,
    num_points: int = 1024,
    variant: str = "clean",
    seed: int = 0,
    cache: str | None = None,
) -> PointClouds:
    """`size` clouds (2048 to train, 512 else) of `num_points` points; `cache` is a folder to keep them in."""
    _check(split, size, num_points, variant, seed)
    size = SIZES[split] if size is None else size
    record = np.dtype([("points", "<f4", (num_points, 3)), ("seg", "i1", (num_points,))])
    clouds: Made | ndarray
    if cache is None:
        clouds = _make(size, record, split, variant, seed)
    else:
        clouds = _cached(Path(cache), size, record, split, variant, seed)
    return PointClouds(
        clouds["points"],
        np.arange(size) % len(CATEGORIES),
        CATEGORIES,
        name=f"synthetic_{variant}",
        split=split,
        seg=clouds["seg"],
        part_names=PART_NAMES,
        part_category=PART_CATEGORY,
    )


def _check(split: str, size: int | None, num_points: int, variant: str, seed: int) -> None:
    if split not in SPLITS:
        raise UserError(f"synthetic_shapes: split must be one of {', '.join(SPLITS)}, not '{split}'")
    if variant not in VARIANTS:
        raise UserError(f"synthetic_shapes: variant must be one of {', '.join(VARIANTS)}, not '{variant}'")
    for name, value, least in (("size", size, 1), ("num_points", num_points, 1), ("seed", seed, 0)):
        if value is not None and value < least:
            raise UserError(f"synthetic_shapes: {name} must be at least {least}, not {value}")


def make_cloud(
    split: str, index: int, num_points: int, variant: str = "clean", seed: int = 0
) -> tuple[ndarray, ndarray]:
    """Cloud number `index` of a split: points (num_points, 3) float32 and part ids (num_points,)."""
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    label = index % len(CATEGORIES)
    if variant == "scan":
        points, seg = draw_scan(label, num_points, rng)
    else:
        points, seg = draw_shape(label, num_points, rng)
        points = points + rng.normal(0, rng.uniform(0.001, 0.01), points.shape)
    points = points - points.mean(0)
    radius = float(np.sqrt((points * points).sum(1).max()))
    return (points / max(radius, 1e-9)).astype(np.float32), seg


@functools.lru_cache(maxsize=2)  # training and test clouds of runs with several seeds
def _make(size: int, record: np.dtype, split: str, variant: str, seed: int) -> Made:
    num_points = record["points"].shape[0]
    return Made(size, record, lambda index: make_cloud(split, index, num_points, variant, seed))


def _cached(folder: Path, size: int, record: np.dtype, split: str, variant: str, seed: int) -> ndarray:
    """The clouds memory-mapped from the folder; made first where the file is absent.

    Two processes that start at once both make the file, each under a name of its own, and the renaming is atomic.
    """
    num_points = record["points"].shape[0]
    path = folder / f"synthetic_v{CODE_VERSION}_{variant}_{split}_{size}x{num_points}_seed{seed}.npy"
    if not path.exists():
        _write(path, _make(size, record, split, variant, seed).whole())
    try:
        clouds = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable cache file ({error}); delete it and run again") from error
    if clouds.dtype != record or clouds.shape != (size,):
        raise UserError(f"{path}: holds other data than its name says; delete it and run again")
    return clouds


def _write(path: Path, clouds: ndarray) -> None:
    part = path.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            np.save(file, clouds, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"synthetic_shapes: cannot write into cache '{path.parent}': {error}") from error
    finally:
        if part.parent.is_dir():
            part.unlink(missing_ok=True)
