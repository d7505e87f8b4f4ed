"""ScanObjectNN: 15 classes of scanned objects, 2,048 points each, as the h5_files archive has them.

main_split/{training,test}_objectdataset.h5                            with background (objbg), 2,309 and 581
main_split/{training,test}_objectdataset_augmentedrot_scale75.h5       PB_T50_RS (hardest), 11,416 and 2,882
main_split_nobg/...                                                    the same without background
"""

from __future__ import annotations

import numpy as np

from datasets.base import PointClouds
from datasets.listing import Columns, Listing, open_clouds
from datasets.raw import Entry, check_split, find_root, pack_folder, read_h5
from utils.errors import UserError

FOLDER = "ScanObjectNN"
SPLITS = ("train", "test")
CLASSES = [
    "bag", "bin", "box", "cabinet", "chair", "desk", "display", "door", "shelf", "table", "bed", "pillow", "sink",
    "sofa", "toilet",
]  # fmt: skip
SUFFIXES = {"t25": "_augmented25_norot", "t25r": "_augmented25rot", "t50r": "_augmentedrot"}
VARIANTS = {  # name: folder, end of the file names
    "hardest": ("main_split", "_augmentedrot_scale75"),
    "objbg": ("main_split", ""),
    "objonly": ("main_split_nobg", ""),
    "hardest_nobg": ("main_split_nobg", "_augmentedrot_scale75"),
    **{name: ("main_split", suffix) for name, suffix in SUFFIXES.items()},
    **{f"{name}_nobg": ("main_split_nobg", suffix) for name, suffix in SUFFIXES.items()},
}
FORM = "h5_files.zip, by request from the authors of ScanObjectNN"
TREE = tuple(
    Entry(f"{folder}/{stem}_objectdataset{suffix}.h5", name, 1, FORM)
    for name, (folder, suffix) in list(VARIANTS.items())[:3]
    for stem in ("training", "test")
)
COUNTS = {"hardest": {"train": 11416, "test": 2882}, "objbg": {"train": 2309, "test": 581}}
COUNTS |= {"objonly": COUNTS["objbg"]}  # of the published protocols


def scanobjectnn(
    root: str,
    split: str = "train",
    variant: str = "hardest",
    num_points: int | None = None,
    cache: str | None = None,
) -> PointClouds:
    """hardest (PB_T50_RS), objbg, objonly, t25, t25r, t50r; each but objonly also without background, as ..._nobg.

    Neither centred nor scaled, as in the published protocols. `root` holds main_split and main_split_nobg.
    """
    check_split("scanobjectnn", split, SPLITS)
    folder = pack_folder(root, cache)
    return open_clouds(
        folder, pack_key(variant), lambda: listing(root, variant), split=split, parts=(split,), num_points=num_points
    )


def pack_key(variant: str = "hardest") -> str:
    if variant not in VARIANTS:
        raise UserError(f"scanobjectnn: variant must be one of {', '.join(VARIANTS)}, not '{variant}'")
    return f"scanobjectnn_{variant}"


def listing(root: str, variant: str = "hardest") -> Listing:
    base = find_root(root, "scanobjectnn")
    pack_key(variant)
    folder, suffix = VARIANTS[variant]
    ids: list[str] = []
    parts: list[str] = []
    data: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    for part, stem in (("train", "training"), ("test", "test")):
        path = base / folder / f"{stem}_objectdataset{suffix}.h5"
        clouds, label = read_h5(path, 3, "cloud")
        if label.min() < 0 or label.max() >= len(CLASSES):
            raise UserError(f"{path}: labels run from {label.min()} to {label.max()}, the classes are 0 to 14")
        ids += [f"{part}/{number}" for number in range(len(clouds))]
        parts += [part] * len(clouds)
        data.append(clouds)
        labels.append(label)
    places = [(clouds, row) for clouds in data for row in range(len(clouds))]

    def read(index: int) -> Columns:
        clouds, row = places[index]
        return {"points": np.asarray(clouds[row, :, :3], np.float32)}

    return Listing(
        name=f"scanobjectnn_{variant}",
        ids=ids,
        labels=np.concatenate(labels).astype(np.int64),
        parts=parts,
        class_names=CLASSES,
        read=read,
        expected=COUNTS.get(variant.removesuffix("_nobg"), {}),
    )
