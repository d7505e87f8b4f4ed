"""Whole rooms as overlapping blocks of equally many points, for semantic segmentation.

A block is a column of the room with a square base, its x and y relative to the middle of the base, z to the floor; z
is up. Every point of a room lies in at least one block, most in several: predictions are voted point by point.

n points of a room, m blocks, P points a block, S classes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy import ndarray
from torch import Tensor

from datasets.base import PointClouds
from utils.errors import UserError


@dataclass
class Room:
    """One room as it was scanned; a negative label is none."""

    points: ndarray  # (n, 3)
    seg: ndarray  # (n,)
    features: ndarray | None = None  # (n, F): further channels of each point


class Gathered:
    """Reads like the array `values[source] - origin` (m, P, ...) but is made row by row."""

    def __init__(self, values: ndarray, source: ndarray, origin: ndarray | None = None):
        self.values, self.source, self.origin = values, source, origin
        self.shape = (*source.shape, *values.shape[1:])

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows) -> ndarray:
        taken = self.values[self.source[rows]]
        return taken if self.origin is None else taken - self.origin[rows][..., None, :]


class RoomBlocks(PointClouds):
    """Blocks of rooms. A batch also holds `source` (b, P): which point of all rooms together each point is.

    block_size, stride: side of a block and distance of neighbouring ones, in the units of the data. least: blocks with
    fewer points are left out, which is for training; 1 keeps every point.
    """

    def __init__(
        self,
        rooms: Sequence[Room],
        seg_names: Sequence[str],
        *,
        name: str,
        split: str,
        num_points: int = 4096,
        block_size: float = 1.0,
        stride: float = 0.5,
        least: int = 1,
    ):
        if not 0 < stride <= block_size or num_points < 1:
            raise UserError(f"{name}: stride {stride} must be above 0 and at most block_size {block_size}")
        self.sizes = np.array([len(room.points) for room in rooms], dtype=np.int64)
        self.first = np.concatenate([[0], np.cumsum(self.sizes)])  # where each room begins among all points
        source: list[ndarray] = []
        origin: list[tuple[float, float, float]] = []
        of_room: list[int] = []
        for number, room in enumerate(rooms):
            floor = room.points[:, 2].min()
            for middle, members in blocks(room.points, block_size, stride):
                if len(members) < least:
                    continue
                for rows in shares(members, num_points, seed=[number, len(source)]):
                    source.append(self.first[number] + rows)
                    origin.append((*middle, floor))
                    of_room.append(number)
        if not source:
            raise UserError(f"{name} ({split}): no block holds {least} points; use a smaller `least`")
        self.truth = np.concatenate([room.seg for room in rooms]).astype(np.int64)
        self.source = np.array(source, dtype=np.int64)
        points = np.concatenate([np.asarray(room.points, dtype=np.float32) for room in rooms])
        super().__init__(
            Gathered(points, self.source, np.array(origin, dtype=np.float32)),
            np.zeros(len(source), dtype=np.int64),
            ("room",),
            name=name,
            split=split,
            seg=Gathered(self.truth, self.source),
            features=self._features(rooms),
            part_names=seg_names,
            part_category=[0] * len(seg_names),
            groups=np.array(of_room, dtype=np.int64),  # blocks of a room overlap: they stay on one side of a split
        )

    def _features(self, rooms: Sequence[Room]) -> Gathered | None:
        """Those of the points, where every room has them."""
        found = [room.features for room in rooms if room.features is not None]
        if len(found) < len(rooms):
            return None
        return Gathered(np.concatenate(found).astype(np.float32), self.source)

    def fetch(self, positions, *args) -> dict[str, Tensor]:
        batch = super().fetch(positions, *args)
        return {**batch, "source": torch.from_numpy(self.source[batch["index"].numpy()])}

    def subset(self, positions: ndarray, split: str) -> PointClouds:
        part = object.__new__(type(self))
        part.__dict__ = {**self.__dict__, "index": self.index[positions], "split": split}
        return part


def each_room(data: PointClouds) -> Iterator[tuple[PointClouds, int, ndarray]] | None:
    """For every room: its blocks, the number of its first point in `source`, and the labels of its points.

    None for data that are no rooms. A data set that keeps rooms whole has `rooms`, their numbers, and
    `room(number)` -> x y z (n, 3), ..., labels (n,), and, where its clouds have features, `room_features(x y z, ...)`;
    it is cut into half overlapping blocks of the size of its crops.
    """
    if isinstance(data, RoomBlocks):
        return _own_rooms(data)
    return _cut_rooms(data) if hasattr(data, "room") else None


def _own_rooms(data: RoomBlocks) -> Iterator[tuple[PointClouds, int, ndarray]]:
    assert data.groups is not None
    of_room = data.groups[data.index]
    for number in np.unique(of_room):
        begin, end = data.first[number], data.first[number + 1]
        yield data.subset(np.flatnonzero(of_room == number), data.split), int(begin), data.truth[begin:end]


def _cut_rooms(data) -> Iterator[tuple[PointClouds, int, ndarray]]:
    sizes = {"num_points": data.num_points, "block_size": data.block, "stride": data.block / 2}
    for number in data.rooms:
        points, *others, seg = data.room(number)
        features = data.room_features(points, *others) if hasattr(data, "room_features") else None
        room = RoomBlocks([Room(points, seg, features)], data.part_names, name=data.name, split=data.split, **sizes)
        yield room, 0, room.truth


def blocks(points: ndarray, block_size: float, stride: float) -> Iterator[tuple[tuple[float, float], ndarray]]:
    """Middle of the base and points (k,) of every block that holds any, over a grid that covers the room."""
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    columns = np.ceil(np.maximum(high - low - block_size, 0) / stride).astype(int) + 1
    for i in range(columns[0]):
        left = low[0] + i * stride
        strip = np.flatnonzero((points[:, 0] >= left) & (points[:, 0] <= left + block_size))
        for j in range(columns[1]):
            front = low[1] + j * stride
            y = points[strip, 1]
            members = strip[(y >= front) & (y <= front + block_size)]
            if len(members):
                yield (left + block_size / 2, front + block_size / 2), members


def shares(members: ndarray, num_points: int, seed: Sequence[int]) -> ndarray:
    """All members (k,) in random order, `num_points` a row; the last row is filled up with points drawn again."""
    rng = np.random.default_rng(seed)
    missing = -len(members) % num_points
    padding = rng.choice(members, missing, replace=missing > len(members))
    return np.concatenate([rng.permutation(members), padding]).reshape(-1, num_points)


def rooms(
    path: str,
    split: str = "train",
    num_points: int = 4096,
    block_size: float = 1.0,
    stride: float = 0.5,
    least: int = 1,
    seg_names: list[str] | None = None,
) -> RoomBlocks:
    """Your own rooms: `path/<split>/*.npy`, each (n, 4 or more) with x, y, z first and the label last."""
    folder = Path(path).expanduser() / split
    files = sorted(folder.glob("*.npy"))
    if not files:
        raise UserError(f"{folder}: no .npy files; a room is one file (n, 4) of x, y, z, label")
    found = [read_room(file) for file in files]
    highest = max(int(room.seg.max()) for room in found)
    names = [str(label) for label in range(highest + 1)] if seg_names is None else seg_names
    if highest >= len(names):
        raise UserError(f"{folder}: labels run to {highest}, but seg_names names {len(names)}")
    return RoomBlocks(
        found,
        names,
        name=Path(path).name,
        split=split,
        num_points=num_points,
        block_size=block_size,
        stride=stride,
        least=least,
    )


def read_room(file: Path) -> Room:
    try:
        table = np.load(file, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{file}: not a readable .npy file of numbers ({error})") from error
    if table.ndim != 2 or table.shape[1] < 4 or not len(table) or table.dtype.kind not in "fiu":
        raise UserError(f"{file}: expected numbers (n, 4 or more): x, y, z, ..., label; found {table.shape}")
    return Room(np.asarray(table[:, :3], dtype=np.float32), table[:, -1].astype(np.int64))
