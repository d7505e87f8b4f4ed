"""ShapeNetPart (benchmark v0 with normals): 16,881 clouds of 16 categories, each point labelled with one of 50 parts.

synsetoffset2category.txt                                     name and synset; line order = category
<synset>/<token>.txt                                          x y z nx ny nz part, 500 to 3,000 rows
train_test_split/shuffled_{train,val,test}_file_list.json     12,137, 1,870 and 2,874 entries
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from datasets.base import PointClouds
from datasets.listing import Columns, Listing, open_clouds
from datasets.raw import Entry, check_split, find_root, pack_folder, read_json, read_lines, read_table
from datasets.shapes.categories import CATEGORIES, PART_CATEGORY, PART_NAMES
from utils.errors import UserError

FOLDER = "shapenetcore_partanno_segmentation_benchmark_v0_normal"
SPLITS = ("trainval", "train", "val", "test")
COUNTS = {"train": 12137, "val": 1870, "test": 2874}
SYNSETS = [
    "02691156", "02773838", "02954340", "02958343", "03001627", "03261776", "03467517", "03624134", "03636649",
    "03642806", "03790512", "03797390", "03948459", "04099429", "04225987", "04379243",
]  # fmt: skip
TREE = (
    Entry("synsetoffset2category.txt", "names of the 16 categories", 1, "not needed, it is known", required=False),
    Entry("[0-9]*/*.txt", "clouds", 16881, "the archive shapenetcore_partanno_segmentation_benchmark_v0_normal.zip"),
    *(
        Entry(
            f"train_test_split/shuffled_{part}_file_list.json",
            f"list of {count:,} clouds",
            1,
            "the same archive",
            required=False,
        )
        for part, count in COUNTS.items()
    ),
)


def shapenetpart(
    root: str,
    split: str = "trainval",
    num_points: int = 2048,
    normals: bool = False,
    cache: str | None = None,
) -> PointClouds:
    """Whole clouds are normalised, then num_points are read: outside training the first ones of a random order that
    belongs to the cloud, the same at every run; in training another window of that order each epoch. Clouds with fewer
    points repeat some.
    """
    check_split("shapenetpart", split, SPLITS)
    parts = ("train", "val") if split == "trainval" else (split,)
    folder = pack_folder(root, cache)
    return open_clouds(
        folder,
        pack_key(),
        lambda: listing(root),
        split=split,
        parts=parts,
        num_points=num_points,
        normals=normals,
    )


def pack_key() -> str:
    return "shapenetpart"


def listing(root: str) -> Listing:
    base = find_root(root, "shapenetpart")
    notes: list[str] = []
    categories = _categories(base, notes)
    entries = _lists(base, categories, notes)
    ids = [entry for part in entries.values() for entry in part]
    files = [base / f"{entry}.txt" for entry in ids]

    def read(index: int) -> Columns:
        table = read_table(files[index], 7)
        return {"points": table[:, :3], "normals": table[:, 3:6], "seg": table[:, 6].astype(np.int64)}

    return Listing(
        name="shapenetpart",
        ids=ids,
        labels=np.array([categories[entry.split("/")[0]] for entry in ids]),
        parts=[part for part, listed in entries.items() for _ in listed],
        class_names=CATEGORIES,
        read=read,
        files=files,
        part_names=PART_NAMES,
        part_category=PART_CATEGORY,
        normalized=True,
        shuffled=True,
        notes=notes,
        expected=COUNTS,
    )


def _categories(base: Path, notes: list[str]) -> dict[str, int]:
    """Synset -> category; the file that says so must agree with what the part numbers mean."""
    path = base / "synsetoffset2category.txt"
    if not path.is_file():
        notes.append(f"{path} is not there; the known 16 categories are taken")
        return {synset: number for number, synset in enumerate(SYNSETS)}
    found = [line.split()[-1] for line in read_lines(path)]
    if not set(found) <= set(SYNSETS):
        raise UserError(f"{path}: names {sorted(set(found) - set(SYNSETS))[0]}, which is none of the 16 categories")
    return {synset: SYNSETS.index(synset) for synset in found}


def _lists(base: Path, categories: dict[str, int], notes: list[str]) -> dict[str, list[str]]:
    """`synset/token` of every split, sorted by category and name; one missing list is what the others leave."""
    paths = {part: base / "train_test_split" / f"shuffled_{part}_file_list.json" for part in COUNTS}
    missing = [part for part, path in paths.items() if not path.is_file()]
    entries = {part: _entries(path, categories) for part, path in paths.items() if part not in missing}
    if missing:
        there = {f"{path.parent.name}/{path.stem}" for synset in categories for path in (base / synset).glob("*.txt")}
        rest = there.difference(*entries.values())
        if len(missing) > 1 or len(there) != sum(COUNTS.values()) or len(rest) != COUNTS[missing[0]]:
            raise UserError(f"{paths[missing[0]]}: not there; it comes with the archive and cannot be worked out here")
        entries[missing[0]] = list(rest)
        notes.append(f"{paths[missing[0]]} is not there; taken instead: the {len(rest):,} clouds in no other list")
    return {part: sorted(entries[part], key=lambda e: (categories[e.split("/")[0]], e)) for part in COUNTS}


def _entries(path: Path, categories: dict[str, int]) -> list[str]:
    listed = read_json(path)
    if not isinstance(listed, list) or not all(isinstance(entry, str) and entry.count("/") == 2 for entry in listed):
        raise UserError(f"{path}: expected a list of 'shape_data/<synset>/<token>'")
    entries = [entry.split("/", 1)[1] for entry in listed]
    odd = next((entry for entry in entries if entry.split("/")[0] not in categories), None)
    if odd is not None:
        raise UserError(f"{path}: names '{odd}', whose category is not in synsetoffset2category.txt")
    return entries
