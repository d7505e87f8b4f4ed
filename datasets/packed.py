"""Packed data sets: one `.npz`, `.h5` or `.hdf5` file that holds equally sized clouds and their labels.

n clouds, P points a cloud, C classes, S parts. Keys of a file (others are ignored):
    points (or data)  (n, P, 3) floats of any size, float16 included; (n, P, 6) when the last three columns are normals
    labels (or label) (n,) or (n, 1) integers; a file without labels becomes one class, "unlabelled"
    normals           (n, P, 3) floats, or integers of any scale (int8 x 127, say): `fetch` brings them to unit length
    seg               (n, P) part labels
    names             (C,) class names; "0", "1", ... up to the largest label where there are none
    group             (n,) clouds with the same number are near-duplicates
    part_names        (S,) with part_category (S,): the class each part belongs to

Uncompressed arrays are memory-mapped where they lie in the file, so that starting costs nothing and forked workers
share the pages; compressed or chunked ones are read into memory. No file stays open. Pickles are never read.
"""

from __future__ import annotations

import difflib
import json
import logging
import math
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.base import PointClouds
from utils.errors import UserError

log = logging.getLogger(__name__)

MAPPED = ("points", "data", "normals", "seg")  # arrays as long as the data; the others are small
KEYS = (*MAPPED, "labels", "label", "names", "group", "part_names", "part_category")
EXTENSIONS = (".npz", ".h5", ".hdf5")
MOST_COMPRESSION = 1100  # deflate reaches 1032 to 1; damaged sizes are refused before memory is asked for
PATIENCE = 60  # seconds for the strings of an HDF5 file
# the program of the other process, see _strings: what it prints is its answer
READ_STRINGS = """
import json, sys
import h5py
with h5py.File(sys.argv[1], "r") as file:
    values = file[sys.argv[2]][()]
values = values.ravel().tolist() if hasattr(values, "ravel") else [values]
print(json.dumps([value.decode(errors="replace") for value in values]))
"""
MOST_NUMBERED_CLASSES = 65536  # without names, larger labels are ids or damage, not classes


def packed(path: str, split: str = "train", num_points: int | None = None, name: str | None = None) -> PointClouds:
    """Data set in one file a split: `{split}` in the path stands for the split; without it the file is used as it is.

    `num_points` keeps the first points of each cloud; files are expected in farthest-point (or random) order, where
    the first points are themselves an even sample.
    """
    file = Path(path.replace("{split}", split)).expanduser()
    if not file.is_file():
        raise UserError(_not_found(Path(path).expanduser(), file, split))
    arrays, keys = read_arrays(file)
    if name is None:
        name = Path(path.replace("{split}", "")).stem.strip("_-.") or file.stem
    return _clouds(arrays, keys, str(file), name, split, num_points)


def write_packed(
    path: str | Path,
    points: np.ndarray,  # (n, P, 3)
    labels: np.ndarray,  # (n,)
    class_names: Sequence[str],
    *,
    normals: np.ndarray | None = None,
    seg: np.ndarray | None = None,
    group: np.ndarray | None = None,
    part_names: Sequence[str] | None = None,
    part_category: Sequence[int] | None = None,
    ids: Sequence[str] | None = None,  # where each cloud comes from: for people, `packed` does not read it
) -> None:
    """Check the arrays as `packed` will, then write an uncompressed `.npz`: the whole file appears, or nothing."""
    path = Path(path)
    if path.suffix != ".npz":
        raise UserError(f"{path}: packed files are written as .npz, not '{path.suffix}'")
    given = {"points": points, "labels": labels, "names": list(class_names), "normals": normals, "seg": seg}
    given |= {"group": group, "part_names": part_names, "part_category": part_category, "ids": ids}
    arrays = {key: np.asarray(value) for key, value in given.items() if value is not None}
    for key, array in arrays.items():
        if array.dtype.hasobject:
            raise UserError(f"{path}: '{key}' is not an array of numbers or strings")
    _clouds(arrays, list(arrays), str(path), path.stem, "", None)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _not_found(pattern: Path, file: Path, split: str) -> str:
    """Line for a file that is not there: the splits that are, or the nearest name."""
    if file.is_dir():
        return f"{file}: is a folder; a packed data set is one file ({', '.join(EXTENSIONS)})"
    if not file.parent.is_dir():
        return f"{file}: not found, there is no folder {file.parent}"
    names = sorted(entry.name for entry in file.parent.iterdir() if entry.is_file())
    if "{split}" in pattern.name:
        before, after = (re.escape(part) for part in pattern.name.split("{split}", 1))
        matches = [re.fullmatch(f"{before}(.+){after}", name) for name in names]
        splits = [match[1] for match in matches if match]
        if splits:
            return f"{file}: not found, there is no split '{split}'; splits there: {', '.join(splits)}"
    near = difflib.get_close_matches(file.name, names, n=1)
    return f"{file}: not found" + (f"; did you mean '{near[0]}'?" if near else "")


def read_arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """Arrays of the keys we know, and the names of all keys in the file."""
    if path.suffix.lower() not in EXTENSIONS:
        raise UserError(f"{path}: a packed data set is one of {', '.join(EXTENSIONS)}, not '{path.suffix}'")
    is_npz = path.suffix.lower() == ".npz"
    arrays, place = {}, ""
    try:
        opened: Any = zipfile.ZipFile(path) if is_npz else _open_h5(path)
        with opened as file:
            keys = sorted(key.removesuffix(".npy") for key in (file.namelist() if is_npz else file.keys()))
            for key in [key for key in KEYS if key in keys]:
                place = f"'{key}' "
                arrays[key] = _from_npz(path, file, key) if is_npz else _from_h5(path, file, key)
    except UserError:
        raise
    except Exception as error:  # damaged bytes make the zip, npy and HDF5 readers raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: {place}cannot be read, the file is damaged or of another kind ({reason})") from error
    return arrays, keys


def _from_npz(path: Path, archive: zipfile.ZipFile, key: str) -> np.ndarray:
    info = archive.getinfo(key + ".npy")
    with archive.open(info) as member:
        version = np.lib.format.read_magic(member)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"npy version {version}")
        shape, fortran, dtype = readers[version](member)
        if dtype.hasobject:
            raise UserError(f"{path}: '{key}' holds pickled objects, which can run code; refused")
        start, size = member.tell(), dtype.itemsize * math.prod(shape)
        if size != info.file_size - start:
            raise ValueError(f"{size} bytes promised, {info.file_size - start} there")
        order: Any = "F" if fortran else "C"
        if key not in MAPPED or info.compress_type != zipfile.ZIP_STORED or size == 0:
            return np.ndarray(shape, dtype, buffer=member.read(), order=order)
    with open(path, "rb") as file:  # a zip entry is 30 bytes, a name, extra fields and then the data
        file.seek(info.header_offset + 26)
        name_and_extra = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    return np.memmap(path, dtype, "r", info.header_offset + 30 + name_and_extra + start, shape, order)


def _open_h5(path: Path):
    import h5py

    return h5py.File(path, "r")


def _from_h5(path: Path, file, key: str) -> np.ndarray:
    import h5py

    dataset = file[key]
    if not isinstance(dataset, h5py.Dataset):
        raise UserError(f"{path}: '{key}' is a group, not an array")
    if dataset.nbytes > path.stat().st_size * (MOST_COMPRESSION if dataset.chunks else 1):
        raise ValueError(f"{dataset.nbytes} bytes promised, more than such a file can hold")
    if dataset.dtype.hasobject and h5py.check_string_dtype(dataset.dtype) is None:
        raise UserError(f"{path}: '{key}' holds {dataset.dtype} objects, not numbers or strings")
    if dataset.dtype.hasobject:
        return np.array(_strings(path, key), object).reshape(dataset.shape)
    plain = key in MAPPED and dataset.size and dataset.chunks is None and not dataset.is_virtual
    offset = dataset.id.get_offset() if plain else None
    if offset is None:
        return np.asarray(dataset[()])
    return np.memmap(path, dataset.dtype, "r", offset, dataset.shape)


def _strings(path: Path, key: str) -> list[str]:
    """Strings of any length lie in a heap, and HDF5's library walks a damaged one in circles without end: so another
    process reads them, which can be stopped."""
    command = [sys.executable, "-c", READ_STRINGS, str(path), key]
    try:
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        raise ValueError(f"its strings do not end within {PATIENCE} s") from None
    if done.returncode:
        reason = done.stderr.strip().splitlines()
        raise ValueError(reason[-1] if reason else f"reading its strings ended with code {done.returncode}")
    return json.loads(done.stdout)


def _clouds(
    arrays: dict[str, np.ndarray], keys: list[str], where: str, name: str, split: str, num_points: int | None
) -> PointClouds:
    """Check every array against the others; `where` starts each error line."""
    key = "points" if "points" in arrays else "data"
    if key not in arrays:
        near = difflib.get_close_matches("points", keys, n=1)
        hint = f"; rename '{near[0]}'?" if near else ""
        raise UserError(f"{where}: no 'points' in it; keys found: {', '.join(keys) or 'none'}{hint}")
    points = arrays[key]
    if points.ndim != 3 or points.shape[2] not in (3, 6) or points.dtype.kind != "f" or points.size == 0:
        raise UserError(f"{where}: '{key}' must be floats of shape (n, P, 3) or (n, P, 6), found {_form(points)}")
    n, available, columns = points.shape
    if num_points is not None and not 1 <= num_points <= available:
        raise UserError(f"{where}: num_points must be between 1 and the {available} in the file, not {num_points}")
    normals = arrays.get("normals", points[..., 3:] if columns == 6 else None)
    points = points[..., :3]
    if normals is not None and (normals.shape != points.shape or normals.dtype.kind not in "fi"):
        raise UserError(f"{where}: 'normals' must be numbers of shape {points.shape}, found {_form(normals)}")
    labels, class_names = _labels(arrays, keys, where, n)
    seg, part_names, part_category = _parts(arrays, where, (n, available), len(class_names))
    groups = _integers(arrays, "group", where, (n,)) if "group" in arrays else None
    return PointClouds(
        points[:, :num_points],
        labels,
        class_names,
        name=name,
        split=split,
        seg=None if seg is None else seg[:, :num_points],
        part_names=part_names,
        part_category=part_category,
        normals=None if normals is None else normals[:, :num_points],
        groups=groups,
    )


def _labels(arrays: dict[str, np.ndarray], keys: list[str], where: str, n: int) -> tuple[np.ndarray, list[str]]:
    key = "labels" if "labels" in arrays else "label"
    if key not in arrays:
        near = difflib.get_close_matches("labels", keys, n=1)
        if near:
            raise UserError(f"{where}: no 'labels' in it, but '{near[0]}'; rename it to 'labels'")
        log.warning("%s: no labels in it; all clouds are of one class, 'unlabelled'", where)
        return np.zeros(n, np.int64), ["unlabelled"]
    labels = _integers(arrays, key, where, (n,))
    if "names" in arrays:
        names = [_text(name) for name in arrays["names"].ravel().tolist()]
    else:
        names = [str(number) for number in range(min(int(labels.max()) + 1, MOST_NUMBERED_CLASSES))]
    _check_range(labels, key, where, len(names), "class names")
    return labels, names


def _parts(
    arrays: dict[str, np.ndarray], where: str, shape: tuple[int, int], num_classes: int
) -> tuple[np.ndarray | None, list[str], list[int]]:
    if "seg" not in arrays:
        return None, [], []
    seg = _integers(arrays, "seg", where, shape)
    if "part_names" in arrays:
        part_names = [_text(name) for name in arrays["part_names"].ravel().tolist()]
    else:
        part_names = [str(number) for number in range(min(int(seg.max()) + 1, MOST_NUMBERED_CLASSES))]
    _check_range(seg, "seg", where, len(part_names), "part names")
    if "part_category" not in arrays:
        return seg, part_names, []
    part_category = _integers(arrays, "part_category", where, (len(part_names),))
    _check_range(part_category, "part_category", where, num_classes, "class names")
    return seg, part_names, part_category.tolist()


def _integers(arrays: dict[str, np.ndarray], key: str, where: str, shape: tuple[int, ...]) -> np.ndarray:
    """Integer array of this shape; one more axis of length 1 is dropped, labels often come as (n, 1)."""
    array = arrays[key]
    if array.dtype.kind not in "iu" or array.shape not in (shape, (*shape, 1)):
        raise UserError(f"{where}: '{key}' must be integers of shape {shape}, found {_form(array)}")
    return array.reshape(shape)


def _check_range(array: np.ndarray, key: str, where: str, count: int, what: str) -> None:
    low, high = int(array.min()), int(array.max())
    if low < 0 or high >= count:
        raise UserError(f"{where}: '{key}' runs from {low} to {high} but there are {count} {what}")


def _form(array: np.ndarray) -> str:
    return f"{array.dtype} of shape {array.shape}"


def _text(name: object) -> str:
    return name.decode(errors="replace") if isinstance(name, bytes) else str(name)
