"""What a data set on disk consists of, and how one cloud of it is read: the common ground of all named data sets.

A `Listing` is made from list files, without reading clouds. `open_clouds` makes the data set of it: from the packed
form (`datasets/store.py`) where there is one, else by reading the raw files. n clouds, P points a cloud.
"""

from __future__ import annotations

import logging
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets import store
from datasets.base import PointClouds
from datasets.windows import Windows
from utils.errors import UserError

log = logging.getLogger(__name__)

MANY = 200  # clouds that take a while to read
Columns = dict[str, np.ndarray]  # points (P, 3), maybe normals (P, 3), seg (P,), colors (P, 3), features (P, F)


@dataclass
class Listing:
    """Every cloud of a data set, all its splits together."""

    name: str
    ids: list[str]  # (n,) what each cloud is called
    labels: np.ndarray  # (n,) classes
    parts: list[str]  # (n,) the split, or area, that each cloud belongs to
    class_names: Sequence[str]
    read: Callable[[int], Columns]  # one cloud; raises UserError with the name of its file
    files: list[Path] = field(default_factory=list)  # (n,) where each cloud lies; empty if they share files
    part_names: Sequence[str] = ()
    part_category: Sequence[int] = ()
    up_axis: str = "y"
    normalized: bool = False
    shuffled: bool = False  # points are put into random order, so that any window is a random subset
    notes: list[str] = field(default_factory=list)  # what was worked out where files lacked
    expected: dict[str, int] = field(default_factory=dict)  # clouds of each part in the complete set, where known
    expected_classes: dict[str, int] = field(default_factory=dict)  # clouds of each class, all parts together

    def cloud(self, index: int) -> Columns:
        """One cloud as it is packed: checked, normalised and in random order where the data set says so."""
        columns = self.read(index)
        self._check(columns, index)
        if self.normalized:
            columns["points"] = normalized(columns["points"])
        if self.shuffled:
            order = np.random.default_rng(zlib.crc32(self.ids[index].encode())).permutation(len(columns["points"]))
            columns = {key: values[order] for key, values in columns.items()}
        return columns

    def _check(self, columns: Columns, index: int) -> None:
        where = self.files[index] if self.files else f"{self.name}: {self.ids[index]}"
        points = columns["points"]
        if points.ndim != 2 or points.shape[1] != 3 or len(points) == 0:
            raise UserError(f"{where}: points must have shape (P, 3), found {points.shape}")
        if not np.isfinite(points).all():
            raise UserError(f"{where}: point {int((~np.isfinite(points)).any(1).argmax())} is NaN or infinite")
        seg = columns.get("seg")
        if seg is not None and not 0 <= int(seg.min()) <= int(seg.max()) < len(self.part_names):
            known = f"0 to {len(self.part_names) - 1}"
            raise UserError(f"{where}: part labels run from {seg.min()} to {seg.max()}, known are {known}")


def open_clouds(
    folder: Path,
    key: str,
    make_listing: Callable[[], Listing],
    *,
    split: str,
    parts: Sequence[str],
    num_points: int | None,
    normals: bool = False,
) -> PointClouds:
    """The clouds whose part is in `parts`; `folder` is where the packed form would lie, under the name `key`.

    num_points: of shuffled sets a window of each cloud, in training another one every epoch; of others the first ones.
    """
    if num_points is not None and num_points < 1:
        raise UserError(f"num_points: {num_points}; use at least 1")
    listed, arrays, offsets, rows = open_arrays(folder, key, make_listing, split, parts)
    views = {name: _view(array, offsets, num_points, listed.shuffled, split) for name, array in arrays.items()}
    return PointClouds(
        views["points"],
        listed.labels,
        listed.class_names,
        name=listed.name,
        split=split,
        seg=views.get("seg"),
        normals=views.get("normals") if normals else None,
        features=views.get("features"),
        part_names=listed.part_names,
        part_category=listed.part_category,
        index=rows,
        up_axis=listed.up_axis,
        normalized=listed.normalized,
    )


def open_arrays(
    folder: Path, key: str, make_listing: Callable[[], Listing], split: str, parts: Sequence[str]
) -> tuple[Listing, Columns, np.ndarray, np.ndarray]:
    """Listing, arrays (T, ...) of clouds one after the other, where each begins, and the clouds that are asked for."""
    packed = store.open_store(folder / key)
    if packed is not None:
        listed, arrays, offsets = packed
        rows = rows_of(listed.parts, parts, split, key)
    else:
        listed = make_listing()
        for note in listed.notes:
            log.warning("%s", note)
        wanted = rows_of(listed.parts, parts, split, key)
        arrays, offsets = _read_all(listed, wanted, split)
        listed.labels, listed.ids = listed.labels[wanted], [listed.ids[row] for row in wanted]
        rows = np.arange(len(wanted))
    return listed, arrays, offsets, rows


def rows_of(parts_of: Sequence[str], parts: Sequence[str], split: str, key: str) -> np.ndarray:
    rows = np.flatnonzero(np.isin(parts_of, list(parts)))
    if not len(rows):
        there = ", ".join(sorted(set(parts_of))) or "nothing"
        raise UserError(f"{key}: no clouds of split '{split}' in it; there is {there}")
    return rows


def _read_all(listing: Listing, rows: np.ndarray, split: str) -> tuple[Columns, np.ndarray]:
    """The clouds of these rows in memory, one after the other, and where each begins (n + 1,)."""
    if len(rows) >= MANY:
        log.warning(
            "%s %s: reading %d raw clouds; 'python -m tools.data pack' makes it quick", listing.name, split, len(rows)
        )
    bar = tqdm(rows.tolist(), desc=f"reading {listing.name}", unit="cloud", disable=len(rows) < MANY or None)
    clouds = [listing.cloud(index) for index in bar]
    offsets = np.cumsum([0, *(len(cloud["points"]) for cloud in clouds)])
    arrays: Columns = {}
    for key in list(clouds[0]):
        arrays[key] = np.concatenate([cloud.pop(key) for cloud in clouds])  # popped: not everything twice
    return arrays, offsets


def _view(array: np.ndarray, offsets: np.ndarray, num_points: int | None, shuffled: bool, split: str):
    """(n, P, ...) of clouds that lie one after the other."""
    sizes = np.diff(offsets)
    least, most = int(sizes.min()), int(sizes.max())
    if shuffled and num_points is not None:
        return Windows(array, offsets, num_points)
    if least != most:
        raise UserError(f"num_points: clouds of {split} hold {least} to {most} points; say how many to take of each")
    if num_points is not None and num_points > most:
        raise UserError(f"num_points: {num_points} asked for, but the clouds hold {most}")
    return array.reshape(len(sizes), most, *array.shape[1:])[:, :num_points]


def normalized(points: np.ndarray) -> np.ndarray:
    """Mean 0, largest radius 1."""
    centred = points - points.mean(axis=0, dtype=np.float64)
    radius = np.sqrt((centred**2).sum(axis=1).max())
    return (centred / max(radius, 1e-12)).astype(np.float32)
