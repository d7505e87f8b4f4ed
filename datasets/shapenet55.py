"""ShapeNet-55/34: 52,470 clouds of 8,192 points, the usual pre-training data.

shapenet_pc/<synset>-<model>.npy    (8192, 3)
ShapeNet-55/{train,test}.txt        file names, 41,952 and 10,518
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import PointClouds
from datasets.listing import Columns, Listing, open_clouds
from datasets.raw import Entry, check_split, find_root, pack_folder, read_lines, read_npy
from utils.errors import UserError

FOLDER = "ShapeNet55-34"
SPLITS = ("train", "test", "whole")
WHERE = "the archive lacks it; it lies in the Point-BERT repository, data/ShapeNet55-34/ShapeNet-55/"
TREE = (
    Entry("shapenet_pc/*.npy", "clouds", 52470, "the archive ShapeNet55.zip of Point-BERT's data page"),
    Entry("ShapeNet-55/train.txt", "list of 41,952 files", 1, WHERE, required=False),
    Entry("ShapeNet-55/test.txt", "list of 10,518 files", 1, WHERE, required=False),
)
COUNTS = {"train": 41952, "test": 10518}
SYNSETS = {
    "02691156": "airplane", "02747177": "trash bin", "02773838": "bag", "02801938": "basket",
    "02808440": "bathtub", "02818832": "bed", "02828884": "bench", "02843684": "birdhouse",
    "02871439": "bookshelf", "02876657": "bottle", "02880940": "bowl", "02924116": "bus", "02933112": "cabinet",
    "02942699": "camera", "02946921": "can", "02954340": "cap", "02958343": "car", "02992529": "cellphone",
    "03001627": "chair", "03046257": "clock", "03085013": "keyboard", "03207941": "dishwasher",
    "03211117": "display", "03261776": "earphone", "03325088": "faucet", "03337140": "file cabinet",
    "03467517": "guitar", "03513137": "helmet", "03593526": "jar", "03624134": "knife", "03636649": "lamp",
    "03642806": "laptop", "03691459": "loudspeaker", "03710193": "mailbox", "03759954": "microphone",
    "03761084": "microwave", "03790512": "motorbike", "03797390": "mug", "03928116": "piano", "03938244": "pillow",
    "03948459": "pistol", "03991062": "flowerpot", "04004475": "printer", "04074963": "remote",
    "04090263": "rifle", "04099429": "rocket", "04225987": "skateboard", "04256520": "sofa", "04330267": "stove",
    "04379243": "table", "04401088": "telephone", "04460130": "tower", "04468005": "train",
    "04530566": "watercraft", "04554684": "washer",
}  # fmt: skip


def shapenet55(
    root: str,
    split: str = "train",
    num_points: int | None = None,
    lists: str = "ShapeNet-55",
    clouds: str = "shapenet_pc",
    cache: str | None = None,
) -> PointClouds:
    """Split train, test, or whole (both). Points are in random order; num_points reads a window of each cloud, in
    training another one every epoch; None: all 8,192. Not normalised: sample, then `normalize` on the device.
    """
    check_split("shapenet55", split, SPLITS)
    parts = ("train", "test") if split == "whole" else (split,)
    key = lists.lower().replace("-", "")
    folder = pack_folder(root, cache)
    return open_clouds(
        folder, key, lambda: listing(root, lists, clouds), split=split, parts=parts, num_points=num_points
    )


def pack_key(lists: str = "ShapeNet-55") -> str:
    return lists.lower().replace("-", "")


def listing(root: str, lists: str = "ShapeNet-55", clouds: str = "shapenet_pc") -> Listing:
    base = find_root(root, "shapenet55")
    names, notes = _names(base, lists, clouds)
    ids = [name.removesuffix(".npy") for part in names.values() for name in part]
    synsets = [name.split("-", 1)[0] for name in ids]
    unknown = sorted(set(synsets) - SYNSETS.keys())
    classes = [*SYNSETS, *unknown]
    files = [base / clouds / f"{name}.npy" for name in ids]

    def read(index: int) -> Columns:
        return {"points": read_npy(files[index], 3).astype(np.float32)}

    return Listing(
        name="shapenet55",
        ids=ids,
        labels=np.array([classes.index(synset) for synset in synsets]),
        parts=[part for part, listed in names.items() for _ in listed],
        class_names=[*SYNSETS.values(), *unknown],
        read=read,
        files=files,
        shuffled=True,
        notes=notes,
        expected=COUNTS if lists == "ShapeNet-55" else {},
    )


def _names(base: Path, lists: str, clouds: str) -> tuple[dict[str, list[str]], list[str]]:
    """File names of both splits. A missing list is what the other one leaves of a complete folder."""
    paths = {part: base / lists / f"{part}.txt" for part in ("train", "test")}
    missing = [part for part, path in paths.items() if not path.is_file()]
    if len(missing) == 2:
        raise UserError(f"{base / lists}: neither train.txt nor test.txt is there; {WHERE}")
    names = {part: read_lines(path) for part, path in paths.items() if part not in missing}
    if not missing:
        return names, []
    there = sorted(path.name for path in (base / clouds).glob("*.npy"))
    rest = sorted(set(there) - set(*names.values()))
    if lists == "ShapeNet-55" and len(rest) == COUNTS[missing[0]] and len(there) == sum(COUNTS.values()):
        names[missing[0]] = rest
        note = f"{paths[missing[0]]} is not there; taken instead: the {len(rest):,} clouds that the other list lacks"
        return {part: names[part] for part in paths}, [note]
    raise UserError(
        f"{paths[missing[0]]}: not there, and it cannot be worked out: {clouds} holds "
        f"{len(there):,} of 52,470 clouds; {WHERE}"
    )
