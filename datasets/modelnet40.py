"""ModelNet40 (and its 10-class part) in the three forms that people have it.

txt   modelnet40_shape_names.txt, modelnet40_{train,test}.txt, <class>/<id>.txt with x,y,z,nx,ny,nz (10,000 rows)
dat   modelnet40_{train,test}_8192pts_fps.dat: pickles of the above after farthest point sampling
hdf5  shape_names.txt, ply_data_{train,test}*.h5 with 2,048 points (modelnet40_ply_hdf5_2048)
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from datasets.base import PointClouds
from datasets.listing import Columns, Listing, open_clouds
from datasets.pickles import read_pickle
from datasets.raw import Entry, check_split, find_root, pack_folder, read_h5, read_lines, read_table
from extensions import ops
from utils.errors import UserError

FOLDER = "ModelNet/modelnet40_normal_resampled"
SPLITS = ("train", "test")
Source = Literal["auto", "dat", "txt", "hdf5"]
KEPT = 8192  # points of a text file after farthest point sampling, as in the pickles
WHERE = "modelnet40_normal_resampled.zip"
TREE = (
    Entry("modelnet40_*_8192pts_fps.dat", "form dat: pickled clouds", 2, "Point-BERT's data page", required=False),
    Entry("*/*_[0-9]*.txt", "form txt: clouds", 12311, WHERE, required=False),
    Entry("modelnet40_shape_names.txt", "class names", 1, "not needed, they are known", required=False),
    Entry("modelnet40_t*.txt", "form txt: lists of 9,843 and 2,468 ids", 2, WHERE, required=False),
    Entry("ply_data_t*.h5", "form hdf5", 7, "modelnet40_ply_hdf5_2048.zip", required=False),
)
# clouds of each class: the first so many ids train, the next so many test
SIZES = {
    "airplane": (626, 100), "bathtub": (106, 50), "bed": (515, 100), "bench": (173, 20), "bookshelf": (572, 100),
    "bottle": (335, 100), "bowl": (64, 20), "car": (197, 100), "chair": (889, 100), "cone": (167, 20),
    "cup": (79, 20), "curtain": (138, 20), "desk": (200, 86), "door": (109, 20), "dresser": (200, 86),
    "flower_pot": (149, 20), "glass_box": (171, 100), "guitar": (155, 100), "keyboard": (145, 20),
    "lamp": (124, 20), "laptop": (149, 20), "mantel": (284, 100), "monitor": (465, 100), "night_stand": (200, 86),
    "person": (88, 20), "piano": (231, 100), "plant": (240, 100), "radio": (104, 20), "range_hood": (115, 100),
    "sink": (128, 20), "sofa": (680, 100), "stairs": (124, 20), "stool": (90, 20), "table": (392, 100),
    "tent": (163, 20), "toilet": (344, 100), "tv_stand": (267, 100), "vase": (475, 100), "wardrobe": (87, 20),
    "xbox": (103, 20),
}  # fmt: skip
TEN = ["bathtub", "bed", "chair", "desk", "dresser", "monitor", "night_stand", "sofa", "table", "toilet"]


def modelnet40(
    root: str,
    split: str = "train",
    num_points: int | None = None,
    classes: int = 40,
    source: Source = "auto",
    normals: bool = False,
    cache: str | None = None,
) -> PointClouds:
    """8,192 points a cloud in farthest-point order, so that the first num_points are an even sample; hdf5: 2,048 as
    they come.

    source: which form to read; auto takes dat, then txt, then hdf5, whichever is there. The coordinates are those of
    the files; `normalize` on the device makes them mean 0, radius 1.
    """
    check_split("modelnet40", split, SPLITS)
    return open_clouds(
        pack_folder(root, cache),
        pack_key(classes, source),
        lambda: listing(root, classes, source),
        split=split,
        parts=(split,),
        num_points=num_points,
        normals=normals,
    )


def pack_key(classes: int = 40, source: Source = "auto") -> str:
    return f"modelnet{classes}" if source == "auto" else f"modelnet{classes}_{source}"


def listing(root: str, classes: int = 40, source: Source = "auto") -> Listing:
    if classes not in (10, 40):
        raise UserError(f"modelnet40: classes must be 40 or 10, not {classes}")
    base = find_root(root, "modelnet40")
    form = _form(base, classes) if source == "auto" else source
    make = {"dat": _from_pickles, "txt": _from_text, "hdf5": _from_hdf5}[form]
    listed = make(base, classes)
    listed.name = f"modelnet{classes}" + ("_hdf5" if form == "hdf5" else "")
    if form != "hdf5":  # that release lacks three training clouds
        names = TEN if classes == 10 else list(SIZES)
        listed.expected = {part: sum(SIZES[name][place] for name in names) for place, part in enumerate(SPLITS)}
        listed.expected_classes = {name: sum(SIZES[name]) for name in names}
    return listed


def _form(base: Path, classes: int) -> str:
    patterns = {"dat": f"modelnet{classes}_*_8192pts_fps.dat", "txt": "*/*_[0-9]*.txt", "hdf5": "ply_data_*.h5"}
    for form, pattern in patterns.items():
        if next(base.glob(pattern), None) is not None:
            return form
    raise UserError(f"{base}: neither {', '.join(patterns.values())} in it; 'python -m tools.data check modelnet40'")


def _from_pickles(base: Path, classes: int) -> Listing:
    """Each pickle: [points, labels], lists of (8192, 6) arrays and of arrays with one number."""
    names = class_names(base, classes)
    clouds: list[np.ndarray] = []
    labels: list[int] = []
    parts: list[str] = []
    for part in SPLITS:
        path = base / f"modelnet{classes}_{part}_8192pts_fps.dat"
        found = read_pickle(path)
        if not isinstance(found, list | tuple) or len(found) != 2 or len(found[0]) != len(found[1]):
            raise UserError(f"{path}: expected [points, labels], two lists of the same length")
        for number, (cloud, label) in enumerate(zip(*found)):
            labels.append(checked_entry(cloud, label, len(names), f"{path}, cloud {number}"))
        clouds += found[0]
        parts += [part] * len(found[0])

    def read(index: int) -> Columns:
        cloud = np.asarray(clouds[index], np.float32)
        return {"points": cloud[:, :3], "normals": cloud[:, 3:6]}

    ids = [f"{part}/{number}" for number, part in enumerate(parts)]
    return Listing("", ids, np.array(labels), parts, names, read)


def checked_entry(cloud, label, num_classes: int, where: str) -> int:
    """The label of a pickled cloud, once both are found to be what they should."""
    if not isinstance(cloud, np.ndarray) or cloud.ndim != 2 or cloud.shape[1] < 6 or cloud.dtype.kind != "f":
        raise UserError(f"{where}: expected floats of shape (P, 6), found {getattr(cloud, 'shape', type(cloud))}")
    values = np.asarray(label).ravel()
    if values.size != 1 or values.dtype.kind not in "iu" or not 0 <= values[0] < num_classes:
        raise UserError(f"{where}: expected a label from 0 to {num_classes - 1}, found {label!r}")
    return int(values[0])


def _from_text(base: Path, classes: int) -> Listing:
    names, notes = class_names(base, classes), list[str]()
    listed = {part: _ids(base, part, classes, notes) for part in SPLITS}
    ids = [entry for part in SPLITS for entry in listed[part]]
    kinds = [entry.rpartition("_")[0] for entry in ids]
    odd = next((entry for entry, kind in zip(ids, kinds) if kind not in names), None)
    if odd is not None:
        raise UserError(f"{base}: the lists name '{odd}', whose class is not among the {len(names)} class names")
    files = [base / kind / f"{entry}.txt" for entry, kind in zip(ids, kinds)]

    def read(index: int) -> Columns:
        table = spread(read_table(files[index], 6, ","), KEPT)
        return {"points": table[:, :3], "normals": table[:, 3:]}

    labels = np.array([names.index(kind) for kind in kinds])
    parts = [part for part in SPLITS for _ in listed[part]]
    return Listing("", ids, labels, parts, names, read, files, notes=notes)


def spread(table: np.ndarray, count: int) -> np.ndarray:
    """The first `count` rows of farthest point sampling on columns 0 to 2, starting with row 0."""
    points = torch.from_numpy(np.ascontiguousarray(table[:, :3]))[None]
    return table[ops.farthest_point_sample(points, min(count, len(table)))[0].numpy()]


def _ids(base: Path, part: str, classes: int, notes: list[str]) -> list[str]:
    """Ids of a split. Without the list: the first ids of each class train and the rest test, if all are there."""
    path = base / f"modelnet{classes}_{part}.txt"
    if path.is_file():
        return read_lines(path)
    names = TEN if classes == 10 else list(SIZES)
    there = Counter(re.sub(r"_\d+\.txt$", "", file.name) for name in names for file in (base / name).glob("*_*.txt"))
    short = [name for name in names if there[name] != sum(SIZES[name])]
    if short:
        wanted = sum(SIZES[short[0]])
        raise UserError(
            f"{path}: not there, and it cannot be worked out: {short[0]}/ holds {there[short[0]]} of {wanted} clouds; "
            f"it comes with {WHERE}"
        )
    notes.append(f"{path} is not there; taken instead: the numbers of the clouds, which tell the split in ModelNet")
    begin = {name: 1 if part == "train" else SIZES[name][0] + 1 for name in names}
    count = {name: SIZES[name][SPLITS.index(part)] for name in names}
    return [f"{name}_{number:04d}" for name in names for number in range(begin[name], begin[name] + count[name])]


def class_names(base: Path, classes: int = 40) -> list[str]:
    for name in (f"modelnet{classes}_shape_names.txt", "shape_names.txt"):
        if (base / name).is_file():
            return read_lines(base / name)
    return TEN if classes == 10 else list(SIZES)


def _from_hdf5(base: Path, classes: int) -> Listing:
    """Blocks of clouds and their labels."""
    names = class_names(base)
    data: list[tuple[np.ndarray, int]] = []
    labels: list[int] = []
    parts: list[str] = []
    kept = range(len(names)) if classes == 40 else [names.index(name) for name in TEN]
    for part in SPLITS:
        files = _blocks(base, part)
        if not files:
            raise UserError(f"{base}: no ply_data_{part}*.h5 in it; they come with modelnet40_ply_hdf5_2048.zip")
        for path in files:
            clouds, label = read_h5(path, 3, "cloud")
            if label.min() < 0 or label.max() >= len(names):
                raise UserError(f"{path}: label {label.max()} found, classes run from 0 to {len(names) - 1}")
            rows = np.flatnonzero(np.isin(label, kept))
            data += [(clouds, row) for row in rows.tolist()]
            labels += [list(kept).index(value) for value in label[rows]]
            parts += [part] * len(rows)

    def read(index: int) -> Columns:
        clouds, row = data[index]
        return {"points": np.asarray(clouds[row, :, :3], np.float32)}

    ids = [f"{part}/{number}" for number, part in enumerate(parts)]
    return Listing("", ids, np.array(labels), parts, [names[value] for value in kept], read)


def _blocks(base: Path, part: str) -> list[Path]:
    """The files that the list names, by their last component; without a list those that are there, by number."""
    listed = base / f"{part}_files.txt"
    if listed.is_file():
        return [base / Path(line).name for line in read_lines(listed)]
    return sorted(base.glob(f"ply_data_{part}*.h5"), key=lambda path: int(re.sub(r"\D", "", path.stem) or 0))
