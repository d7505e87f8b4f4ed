"""A folder of cloud and mesh files as a data set; a class is a sub-folder. File formats: see `datasets/files.py`.

Three layouts: `<path>/<split>/<class>/*`, `<path>/<class>/<split>/*` (as ModelNet comes), and `<path>/<class>/*`, which
is one split, "train". Files and folders are taken in sorted order; names that begin with a dot are skipped.
"""

from __future__ import annotations

import hashlib
import logging
import zlib
from pathlib import Path

import numpy as np
from tqdm import tqdm

from datasets.base import PointClouds
from datasets.files import READERS, read_cloud, sample_mesh
from datasets.packed import packed, write_packed
from utils.errors import UserError

log = logging.getLogger(__name__)

SAMPLING = 1  # raise when clouds come out differently, so that old caches are not used


def folder(
    path: str,
    split: str = "train",
    num_points: int = 1024,
    seed: int = 0,
    cache: str | None = None,
    normalize: bool = True,
) -> PointClouds:
    """Every file becomes a cloud of `num_points` points, the same ones each time for a seed.

    Meshes are sampled evenly over their surface; of larger clouds a random subset is kept, points of smaller ones are
    repeated. `normalize` moves the mean to 0 and scales the largest radius to 1. `cache` names a folder that keeps the
    result as a packed file, used as long as files and arguments stay the same.
    """
    root = Path(path).expanduser()
    if num_points < 1 or seed < 0:
        raise UserError(f"{root}: num_points must be at least 1 and seed at least 0, not {num_points} and {seed}")
    class_names, files, labels = _list_files(root, split)
    if cache is None:
        points, normals = _load(root, files, num_points, seed, normalize)
        return PointClouds(points, labels, class_names, name=root.name, split=split, normals=normals)
    key = hashlib.sha256(repr((SAMPLING, class_names, split, num_points, seed, normalize)).encode())
    for file in files:
        status = file.stat()
        key.update(repr((file.relative_to(root).as_posix(), status.st_size, status.st_mtime_ns)).encode())
    kept = Path(cache).expanduser() / f"{root.name}_{split}_{key.hexdigest()[:16]}.npz"
    if not kept.exists():
        points, normals = _load(root, files, num_points, seed, normalize)
        write_packed(kept, points, labels, class_names, normals=normals, ids=[str(f.relative_to(root)) for f in files])
    return packed(str(kept), split, name=root.name)


def _list_files(root: Path, split: str) -> tuple[list[str], list[Path], np.ndarray]:
    """Class names, files and their labels. Classes are numbered over all splits, so that splits agree."""
    if not root.is_dir():
        raise UserError(f"{root}: no such folder")
    classes = _class_folders(root, split)
    names = sorted({name for name, _ in classes})
    files: list[Path] = []
    labels: list[int] = []
    for name, directory in classes:
        if directory is None:
            continue
        entries = sorted(entry for entry in _visible(directory) if entry.is_file())
        readable = [entry for entry in entries if entry.suffix.lower() in READERS]
        if not readable:
            found = ", ".join(sorted({entry.suffix or "no extension" for entry in entries})) or "nothing"
            raise UserError(f"{directory}: no readable files (found {found}); readable: {', '.join(READERS)}")
        files += readable
        labels += [names.index(name)] * len(readable)
    return names, files, np.array(labels, dtype=np.int64)


def _class_folders(root: Path, split: str) -> list[tuple[str, Path | None]]:
    """Every class with the folder of its files in this split, None where the split lacks the class."""
    first = [entry for entry in _visible(root) if entry.is_dir()]
    second = {entry.name: [sub.name for sub in _visible(entry) if sub.is_dir()] for entry in first}
    if not first:
        raise UserError(f"{root}: no class sub-folders in it; expected {root}/{split}/<class>/<files>")
    if (root / split).is_dir():  # <split>/<class>
        if not second[split]:
            raise UserError(f"{root / split}: no class sub-folders in it; expected {root}/{split}/<class>/<files>")
        splits = [names for names in second.values() if set(names) & set(second[split])]  # others are no splits
        names = sorted({name for names in splits for name in names})
        return [(name, root / split / name if name in second[split] else None) for name in names]
    if any(split in names for names in second.values()):  # <class>/<split>
        return [(entry.name, entry / split if split in second[entry.name] else None) for entry in first]
    if not any(second.values()) and split == "train":  # <class>
        return [(entry.name, entry) for entry in first]
    nested = sorted({name for names in second.values() for name in names})
    there = f"; sub-folders: {', '.join(entry.name for entry in first[:20])}" + (
        f"; below them: {', '.join(nested[:20])}" if nested else "; they hold files, which are split 'train'"
    )
    raise UserError(f"{root}: there is no split '{split}'{there}")


def _visible(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))


def _load(
    root: Path, files: list[Path], num_points: int, seed: int, normalize: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Points (n, num_points, 3), and normals when every file has them or is a mesh."""
    points = np.empty((len(files), num_points, 3), dtype=np.float32)
    normals: np.ndarray | None = np.empty_like(points)
    repeated = []
    for i, file in enumerate(tqdm(files, desc=f"reading {root.name}", disable=len(files) < 200 or None)):
        generator = np.random.default_rng([seed, zlib.crc32(file.relative_to(root).as_posix().encode())])
        vertices, faces, directions = read_cloud(file)
        if faces is not None:
            try:
                points[i], directions = sample_mesh(vertices, faces, num_points, generator)
            except UserError as error:
                raise UserError(f"{file}: {error}") from error
        else:
            chosen = np.resize(generator.permutation(len(vertices)), num_points)  # goes round when there are fewer
            points[i] = vertices[chosen]
            directions = None if directions is None else directions[chosen]
            if len(vertices) < num_points:
                repeated.append(file)
        if normalize:
            points[i] = _normalized(points[i])
        if normals is not None and directions is not None:
            normals[i] = directions
        else:
            normals = None
    if repeated:
        log.warning(
            "%d of %d clouds in %s hold fewer than %d points, which are repeated (the first: %s)",
            len(repeated), len(files), root, num_points, repeated[0],
        )  # fmt: skip
    return points, normals


def _normalized(points: np.ndarray) -> np.ndarray:
    centred = points - points.mean(axis=0, dtype=np.float64)
    radius = np.sqrt((centred**2).sum(axis=1).max())
    return centred / radius if radius > 0 else centred
