"""Pickles from outside, read without running what they ask for: arrays, numbers, text, lists, tuples, dictionaries."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from utils.errors import UserError


def _latin1(text: str, encoding: str) -> bytes:
    """What protocols before 3 call to keep bytes in text."""
    return text.encode("latin-1")


ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}
for _core in ("numpy.core", "numpy._core"):  # before and since NumPy 2; the functions are what arrays themselves name
    ALLOWED[f"{_core}.multiarray", "_reconstruct"] = np.empty(0).__reduce__()[0]
    ALLOWED[f"{_core}.multiarray", "scalar"] = np.float32(0).__reduce__()[0]
    ALLOWED[f"{_core}.numeric", "_frombuffer"] = np.empty(1).__reduce_ex__(5)[0]


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise UserError(f"it asks for {module}.{name}, which could run code; only plain data are read")
        return ALLOWED[module, name]


def read_pickle(path: Path) -> Any:
    """Content of the file; whatever is not plain data is refused, and damage is told with the file's name."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with open(path, "rb") as file:
            return _load(file)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a pickle that can be read ({reason})") from error


def _load(file: BinaryIO) -> Any:
    return _Reader(file, encoding="latin1").load()
