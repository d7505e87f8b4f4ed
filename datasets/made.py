"""Clouds that a function makes: each when it is first read, so that a run need not wait for those it reads later."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray


class Made:
    """`clouds[i]`, a record of named fields, is what `make(i)` returns, and kept. `made[name]` is a field of all."""

    def __init__(self, size: int, record: np.dtype, make: Callable[[int], tuple]):
        self.clouds, self.make = np.empty(size, record), make
        self.there = np.zeros(size, dtype=bool)
        self.read_only = self.clouds.view()
        self.read_only.setflags(write=False)

    def __getitem__(self, name: str) -> Field:
        return Field(self, name)

    def with_rows(self, rows) -> ndarray:
        """All clouds, of which these rows, anything that NumPy indexes by, are made."""
        wanted = np.arange(len(self.there))[rows]
        for row in np.unique(wanted[~self.there[wanted]]).tolist():
            self.clouds[row] = self.make(row)
            self.there[row] = True  # only now: another thread may read, and at worst makes the same once more
        return self.read_only

    def whole(self) -> ndarray:
        return self.with_rows(slice(None))


class Field:
    """One field of all clouds: reads like an array indexed along its first axis."""

    def __init__(self, made: Made, name: str):
        self.made, self.name = made, name
        self.shape = made.clouds[name].shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> ndarray:
        return self.made.with_rows(rows)[self.name][rows]

    def __array__(self, dtype=None, copy=None) -> ndarray:
        return np.array(self[:], dtype=dtype)
