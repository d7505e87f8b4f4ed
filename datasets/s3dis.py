"""S3DIS: indoor rooms, every point labelled with one of 13 classes; six areas, one of which tests.

    blocks  all_files.txt, room_filelist.txt, ply_data_all_*.h5   4,096 points, nine channels
    rooms   Area_<k>_<type>_<n>.npy                               x y z r g b class, metres and 0-255

points are x y z, features the other six channels: red, green, blue and the place in the room, all from 0 to 1.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from datasets.base import PointClouds
from datasets.listing import Columns, Listing, open_arrays, open_clouds
from datasets.raw import Entry, check_split, find_root, pack_folder, read_h5, read_lines, read_npy
from datasets.windows import Windows
from utils.errors import UserError

FOLDER = "S3DIS"
SPLITS = ("train", "test")
Form = Literal["auto", "blocks", "rooms"]
PARTS = [
    "ceiling", "floor", "wall", "beam", "column", "window", "door", "table", "chair", "sofa", "bookcase", "board",
    "clutter",
]  # fmt: skip
ROOM_TYPES = [
    "WC", "auditorium", "conferenceRoom", "copyRoom", "hallway", "lobby", "lounge", "office", "openspace",
    "pantry", "storage",
]  # fmt: skip
ROOM = re.compile(r"(Area_(\d))_([A-Za-z]+)_\d+")
BLOCKS, ROOMS = "indoor3d_sem_seg_hdf5_data", "stanford_indoor3d (made from the S3DIS release by collect_indoor3d_data)"
TREE = (
    Entry("Area_*.npy", "form rooms", 272, ROOMS, required=False),
    Entry("ply_data_all_*.h5", "form blocks: 23,585 blocks", 24, BLOCKS, required=False),
    Entry("room_filelist.txt", "form blocks: the room of each block", 1, BLOCKS, required=False),
    Entry("all_files.txt", "form blocks: order of the files", 1, "not needed, they are numbered", required=False),
)
ENOUGH, TRIES = 1024, 100  # a crop with fewer points is drawn again


def s3dis(
    root: str,
    split: str = "train",
    area: int = 5,
    form: Form = "auto",
    num_points: int = 4096,
    block: float = 1.0,
    cache: str | None = None,
) -> PointClouds:
    """Split test is one area, train the other five. The label of a cloud is the kind of its room, seg are the classes.

    rooms: each item is a crop of block x block metres around a random point, drawn anew in every epoch of training and
    always the same otherwise. blocks: as stored, their first num_points.
    """
    check_split("s3dis", split, SPLITS)
    if not 1 <= area <= 6:
        raise UserError(f"s3dis: area must be 1 to 6, not {area}")
    form = find_form(root, cache) if form == "auto" else form
    folder, key = pack_folder(root, cache), pack_key(form)
    parts = [f"Area_{number}" for number in range(1, 7) if (number == area) == (split == "test")]
    if form == "blocks":
        return open_clouds(folder, key, lambda: listing(root, form), split=split, parts=parts, num_points=num_points)
    listed, arrays, offsets, rows = open_arrays(folder, key, lambda: listing(root, form), split, parts)
    return RoomCrops(listed, arrays, offsets, rows, split, num_points, block)


def find_form(root: str, cache: str | None) -> Form:
    folder = pack_folder(root, cache)
    forms: tuple[tuple[Form, str], ...] = (("rooms", "Area_*.npy"), ("blocks", "ply_data_all_*.h5"))
    for form, pattern in forms:
        if (folder / pack_key(form)).is_dir() or next(Path(root).expanduser().glob(pattern), None):
            return form
    raise UserError(f"{root}: neither Area_*.npy nor ply_data_all_*.h5 in it; 'python -m tools.data check s3dis'")


def pack_key(form: Form = "auto") -> str:
    return f"s3dis_{form}"


def listing(root: str, form: Form = "auto") -> Listing:
    base = find_root(root, "s3dis")
    form = find_form(root, None) if form == "auto" else form
    return _rooms(base) if form == "rooms" else _blocks(base)


def _rooms(base: Path) -> Listing:
    files = sorted(path for path in base.glob("Area_*.npy") if ROOM.fullmatch(path.stem))
    if not files:
        raise UserError(f"{base}: no Area_<k>_<type>_<n>.npy in it; they are {ROOMS}")

    def read(index: int) -> Columns:
        table = read_npy(files[index], 7)
        points, colors, classes = table[:, :3].astype(np.float32), table[:, 3:6], table[:, 6]
        if colors.min() < 0 or colors.max() > 255:
            raise UserError(f"{files[index]}: colours run from {colors.min():g} to {colors.max():g}, expected 0 to 255")
        return {"points": points, "colors": colors.astype(np.uint8), "seg": classes.astype(np.int64)}

    return _listing("s3dis_rooms", [path.stem for path in files], [path.stem for path in files], read, files)


def _blocks(base: Path) -> Listing:
    files = sorted(base.glob("ply_data_all_*.h5"), key=lambda path: int(path.stem.rpartition("_")[2]))
    if not files:
        raise UserError(f"{base}: no ply_data_all_*.h5 in it; they are {BLOCKS}")
    rooms = read_lines(base / "room_filelist.txt", f"it tells the area of each block and comes with {BLOCKS}")
    found = [read_h5(path, 9, "point") for path in files]
    places = [(data, label, row) for data, label in found for row in range(len(data))]
    if len(rooms) != len(places):
        raise UserError(f"{base / 'room_filelist.txt'}: {len(rooms)} lines, but the files hold {len(places)} blocks")

    def read(index: int) -> Columns:
        data, label, row = places[index]
        channels = np.asarray(data[row], np.float32)
        return {"points": channels[:, :3], "features": channels[:, 3:9], "seg": label[row].astype(np.int64)}

    return _listing("s3dis_blocks", [f"{room}/{number}" for number, room in enumerate(rooms)], rooms, read, [])


def _listing(name: str, ids: list[str], rooms: Sequence[str], read, files: list[Path]) -> Listing:
    matches = [ROOM.match(room) for room in rooms]
    odd = next((room for room, match in zip(rooms, matches) if match is None or match[3] not in ROOM_TYPES), None)
    if odd is not None:
        raise UserError(f"{name}: '{odd}' is not the name of a room such as Area_1_office_1")
    labels = np.array([ROOM_TYPES.index(match[3]) for match in matches if match])
    areas = [match[1] for match in matches if match]
    return Listing(name, ids, labels, areas, ROOM_TYPES, read, files, part_names=PARTS, up_axis="z")


def crop(xyz: np.ndarray, colors: np.ndarray, chosen: np.ndarray, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points (P, 3) around the centre, z kept; features (P, 6): colours, place in the room as a share of its size."""
    points = xyz[chosen]
    return points - centre * (1, 1, 0), describe(points, colors[chosen], xyz.max(axis=0))


def describe(points: np.ndarray, colors: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Colours and the place in a room of this size, from 0 to 1 (P, 6)."""
    return np.concatenate([colors / 255.0, points / size], axis=1)


class RoomCrops(PointClouds):
    """Crops of whole rooms. A room counts as often as its points make full crops, so items are spread over the area.

    `room(i)` is a whole room, for inference; `index` names the room of each item.
    """

    def __init__(
        self, listed: Listing, arrays: Columns, offsets: np.ndarray, rows: np.ndarray, split: str, num_points: int,
        block: float,
    ):  # fmt: skip
        sizes = np.diff(offsets)
        super().__init__(
            Windows(arrays["points"], offsets, num_points),
            listed.labels,
            listed.class_names,
            name=listed.name,
            split=split,
            seg=Windows(arrays["seg"], offsets, num_points),
            part_names=listed.part_names,
            groups=np.arange(len(sizes)),
            index=np.repeat(rows, items_of(sizes[rows], num_points)),
            up_axis=listed.up_axis,
            normalized=False,
        )
        self.arrays, self.offsets, self.rooms, self.block = arrays, offsets, rows, block
        self.seeds = [zlib.crc32(name.encode()) for name in listed.ids]

    def room(self, row: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """x y z (T, 3), colours (T, 3) of 0 to 255, classes (T,) of a whole room; `rooms` lists those of this split."""
        begin, end = self.offsets[row : row + 2]
        return tuple(np.asarray(self.arrays[key][begin:end]) for key in ("points", "colors", "seg"))  # type: ignore[return-value]

    def room_features(self, points: np.ndarray, colors: np.ndarray) -> np.ndarray:
        """What the points of a whole room have besides coordinates (T, 6)."""
        return describe(points, colors, points.max(axis=0)).astype(np.float32)

    def fetch(self, positions: Sequence[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, Tensor]:
        positions = np.asarray(positions, dtype=np.int64)
        rows = self.index[positions]
        seeds = positions if draws is None else (draws * 2**53).astype(np.int64)
        items = [self._item(row, seed) for row, seed in zip(rows.tolist(), seeds.tolist())]
        points, features, seg = (np.stack(arrays) for arrays in zip(*items))
        return {
            "points": torch.from_numpy(points.astype(np.float32)),
            "features": torch.from_numpy(features.astype(np.float32)),
            "seg": torch.from_numpy(seg.astype(np.int64)),
            "label": torch.from_numpy(self.labels[rows]),
            "index": torch.from_numpy(rows),
        }

    def _item(self, row: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A crop that is a function of the seed: around points drawn until there is enough around one."""
        xyz, colors, seg = self.room(row)
        rng = np.random.default_rng([self.seeds[row], seed])
        inside, centre = np.zeros(0, np.int64), xyz[0]
        for _ in range(TRIES):
            tried = xyz[rng.integers(len(xyz))]
            near = np.flatnonzero((np.abs(xyz[:, :2] - tried[:2]) <= self.block / 2).all(axis=1))
            if len(near) > len(inside):
                inside, centre = near, tried
            if len(inside) > min(ENOUGH, len(xyz) - 1):
                break
        chosen = rng.choice(inside, self.num_points, replace=len(inside) < self.num_points)
        return (*crop(xyz, colors, chosen, centre), seg[chosen])


def items_of(sizes: np.ndarray, num_points: int) -> np.ndarray:
    """Crops of each room: together as many as all points make, shared by size."""
    total = sizes.sum()
    return np.maximum(1, np.round(sizes / total * int(total / num_points)).astype(np.int64))
