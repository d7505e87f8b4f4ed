"""ModelNet few-shot: a pickle for every way, shot and fold, as Point-BERT released them; also how to draw new ones.

    5way_10shot/0.pkl (or 5way10shot/0.pkl)   {'train': [(array (8192, 6), label, original label), ...], 'test': [...]}

Train holds `shot` clouds of each of `way` classes from ModelNet40's train split, test 20 of each from its test split.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import numpy as np

from datasets.base import PointClouds
from datasets.listing import Columns, Listing, open_clouds
from datasets.modelnet40 import Source, checked_entry, class_names, modelnet40
from datasets.pickles import read_pickle
from datasets.raw import Entry, check_split, find_root, pack_folder
from utils.errors import UserError

FOLDER = "ModelNetFewshot"
SPLITS = ("train", "test")
WHERE = "Point-BERT's data page, or draw your own: python -m tools.data fewshot"
TREE = tuple(
    Entry(f"{way}way*{shot}shot/*.pkl", f"{way}-way {shot}-shot, 10 folds", 10, WHERE, required=False)
    for way in (5, 10)
    for shot in (10, 20)
)
TEST_CLOUDS = 20  # of each class


def modelnet_fewshot(
    root: str,
    way: int = 5,
    shot: int = 10,
    fold: int = 0,
    split: str = "train",
    num_points: int | None = None,
    normals: bool = False,
    cache: str | None = None,
) -> PointClouds:
    """One fold: labels are 0 to way - 1, class names those of ModelNet40. Coordinates as in the files."""
    check_split("modelnet_fewshot", split, SPLITS)
    return open_clouds(
        pack_folder(root, cache),
        pack_key(way, shot, fold),
        lambda: listing(root, way, shot, fold),
        split=split,
        parts=(split,),
        num_points=num_points,
        normals=normals,
    )


def pack_key(way: int = 5, shot: int = 10, fold: int = 0) -> str:
    return f"{way}way_{shot}shot_{fold}"


def listing(root: str, way: int = 5, shot: int = 10, fold: int = 0) -> Listing:
    base = find_root(root, "modelnet_fewshot")
    path = _find(base, way, shot, fold)
    content = read_pickle(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(part), list) for part in SPLITS):
        raise UserError(f"{path}: expected a dictionary with the lists 'train' and 'test'")
    entries = [(part, entry) for part in SPLITS for entry in content[part]]
    names: dict[int, str] = {}
    known = class_names(base)
    labels = []
    for number, (part, entry) in enumerate(entries):
        where = f"{path}, {part} cloud {number}"
        if not isinstance(entry, tuple | list) or len(entry) != 3:
            raise UserError(f"{where}: expected (points, label, original label)")
        labels.append(checked_entry(entry[0], entry[1], way, where))
        original = checked_entry(entry[0], entry[2], len(known), where)
        if names.setdefault(labels[-1], known[original]) != known[original]:
            raise UserError(f"{where}: label {labels[-1]} means {known[original]} here and {names[labels[-1]]} before")

    def read(index: int) -> Columns:
        cloud = np.asarray(entries[index][1][0], np.float32)
        return {"points": cloud[:, :3], "normals": cloud[:, 3:6]}

    ids = [f"{part}/{number}" for number, (part, _) in enumerate(entries)]
    parts = [part for part, _ in entries]
    missing = [str(label) for label in range(way) if label not in names]
    if missing:
        raise UserError(f"{path}: no clouds with label {', '.join(missing)}; it should hold {way} classes")
    class_of = [names[label] for label in range(way)]
    listed = Listing(f"modelnet_{pack_key(way, shot, fold)}", ids, np.array(labels), parts, class_of, read)
    listed.expected = {"train": way * shot, "test": way * TEST_CLOUDS}
    return listed


def _find(base: Path, way: int, shot: int, fold: int) -> Path:
    """Both spellings of the folder are in use."""
    paths = [base / name / f"{fold}.pkl" for name in (f"{way}way_{shot}shot", f"{way}way{shot}shot")]
    found = next((path for path in paths if path.is_file()), None)
    if found is None:
        raise UserError(f"{paths[0]}: not there, nor {paths[1]}; draw one: python -m tools.data fewshot")
    return found


def draw_fold(train: PointClouds, test: PointClouds, way: int, shot: int, fold: int, seed: int) -> dict[str, list]:
    """Content of a pickle: classes and clouds are a function of (seed, way, shot, fold)."""
    rng = np.random.default_rng([seed, way, shot, fold])
    if way > train.num_classes:
        raise UserError(f"way: {way} classes asked for, there are {train.num_classes}")
    chosen = rng.permutation(train.num_classes)[:way]
    content: dict[str, list] = {}
    for part, data, count in (("train", train, shot), ("test", test, TEST_CLOUDS)):
        entries = []
        for label, original in enumerate(chosen.tolist()):
            members = np.flatnonzero(data.class_labels == original)
            if len(members) < count:
                name = data.class_names[original]
                raise UserError(f"shot: {count} {part} clouds asked for, class {name} has {len(members)}")
            batch = data.fetch(rng.permutation(members)[:count])
            clouds = np.concatenate([batch["points"].numpy(), batch["normals"].numpy()], axis=2)
            entries += [(cloud, label, original) for cloud in clouds]
        content[part] = [entries[place] for place in rng.permutation(len(entries))]
    return content


def write_folds(
    modelnet: str, out: Path, ways: list[int], shots: list[int], folds: int, seed: int, source: Source = "auto"
) -> int:
    """Pickles in the released form below `out`; number of files written. Existing files are left alone."""
    data = {part: modelnet40(modelnet, part, source=source, normals=True) for part in SPLITS}
    written = 0
    for way, shot, fold in ((w, s, f) for w in ways for s in shots for f in range(folds)):
        path = out / f"{way}way_{shot}shot" / f"{fold}.pkl"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part")
        partial.write_bytes(pickle.dumps(draw_fold(data["train"], data["test"], way, shot, fold, seed), protocol=4))
        os.replace(partial, path)
        written += 1
    return written
