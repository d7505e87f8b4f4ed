"""Reading the files that data sets come in; whatever is missing or damaged is told by name in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from utils.errors import UserError


class Entry(NamedTuple):
    """A line of the tree that a data set is expected to have."""

    pattern: str  # glob below the root
    about: str
    number: int  # files that the complete set has
    advice: str = ""  # where it comes from if it is missing
    required: bool = True  # False: one of several forms, or something that may be worked out from the rest


def find_root(root: str, name: str) -> Path:
    path = Path(root).expanduser()
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; 'python -m tools.data check {name}' tells what belongs there")
    return path


def pack_folder(root: str, cache: str | None) -> Path:
    """Where packed forms lie: the folder named `cache`, else `packed` next to the raw files."""
    return Path(cache).expanduser() if cache else Path(root).expanduser() / "packed"


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    if split not in splits:
        raise UserError(f"{name}: split must be one of {', '.join(splits)}, not '{split}'")


def read_lines(path: Path, advice: str = "") -> list[str]:
    """Lines of a list file without blanks."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        reason = "not there" if not path.exists() else f"cannot be read ({error})"
        raise UserError(f"{path}: {reason}" + (f"; {advice}" if advice else "")) from error
    if not lines:
        raise UserError(f"{path}: empty" + (f"; {advice}" if advice else ""))
    return lines


def read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_table(path: Path, columns: int, delimiter: str | None = None) -> np.ndarray:
    """Rows of numbers (P, columns) float32 of a text file."""
    try:
        table = np.loadtxt(path, np.float32, delimiter=delimiter, ndmin=2)
    except (OSError, ValueError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: {'no such file' if not path.exists() else f'damaged ({error})'}") from error
    if table.shape[1] != columns:
        raise UserError(f"{path}: {columns} columns expected, found {table.shape[1]}")
    return table


def read_npy(path: Path, columns: int) -> np.ndarray:
    """(P, columns) array of a .npy file; pickled objects are refused."""
    try:
        array = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path}: {'no such file' if not path.exists() else f'damaged ({error})'}") from error
    if array.ndim != 2 or array.shape[1] != columns or array.dtype.kind not in "fiu":
        raise UserError(f"{path}: numbers of shape (P, {columns}) expected, found {array.dtype} {array.shape}")
    return array


def read_h5(path: Path, columns: int, label_shape: str) -> tuple[np.ndarray, np.ndarray]:
    """'data' (n, P, columns or more) and 'label' of an HDF5 file: (n,), or (n, P) if label_shape is "point"."""
    from datasets.packed import read_arrays

    if not path.is_file():
        raise UserError(f"{path}: no such file")
    arrays, keys = read_arrays(path)
    for key in ("data", "label"):
        if key not in arrays:
            raise UserError(f"{path}: no '{key}' in it; found {', '.join(keys) or 'nothing'}")
    data, label = arrays["data"], arrays["label"]
    if data.ndim != 3 or data.shape[2] < columns or data.dtype.kind != "f":
        raise UserError(f"{path}: 'data' must be floats of shape (n, P, {columns}), found {data.dtype} {data.shape}")
    wanted = data.shape[:2] if label_shape == "point" else data.shape[:1]
    if label.dtype.kind not in "iuf" or label.size != int(np.prod(wanted)):
        raise UserError(f"{path}: 'label' must be integers of shape {wanted}, found {label.dtype} {label.shape}")
    return data, label.reshape(wanted)
