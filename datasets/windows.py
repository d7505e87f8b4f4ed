"""Clouds of any size as equally sized ones: P consecutive points of each, which ones a draw says.

Points lie in random order in the file, so P consecutive ones are a random subset, read with one copy. At the end of a
cloud reading goes on at its start, so clouds with fewer than P points repeat some.
"""

from __future__ import annotations

import numpy as np


class Windows:
    """`take(rows, draws)` reads (b, P, ...); plain indexing reads the first P points of each cloud."""

    def __init__(self, flat: np.ndarray, offsets: np.ndarray, num_points: int):
        # (T, ...) all points one after the other; (n + 1,) where clouds begin
        self.flat, self.offsets = np.asarray(flat), offsets
        self.shape = (len(offsets) - 1, num_points, *flat.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows) -> np.ndarray:
        taken = self.take(np.atleast_1d(rows))
        return taken[0] if np.ndim(rows) == 0 else taken

    def take(self, rows: np.ndarray, draws: np.ndarray | None = None) -> np.ndarray:
        """The window of each row that starts at the share `draws` (b,) in [0, 1) of its cloud; None: at 0."""
        num_points = self.shape[1]
        begins, sizes = self.offsets[rows], self.offsets[rows + 1] - self.offsets[rows]
        starts = np.zeros_like(sizes) if draws is None else (draws * sizes).astype(np.int64)
        if len(self.flat) < num_points:
            taken = np.empty((len(rows), *self.shape[1:]), self.flat.dtype)
        else:  # every row of this view is a window; all are copied in one call
            windows = np.moveaxis(np.lib.stride_tricks.sliding_window_view(self.flat, num_points, axis=0), -1, 1)
            taken = windows[np.minimum(begins + starts, len(windows) - 1)]
        for i in np.flatnonzero(starts + num_points > sizes).tolist():  # on at the start of its cloud
            cloud, first = self.flat[begins[i] : begins[i] + sizes[i]], int(sizes[i] - starts[i])
            taken[i, :first] = cloud[starts[i] :]
            rest = num_points - first
            taken[i, first:] = np.resize(cloud[:rest], (rest, *cloud.shape[1:]))  # small clouds repeat
        return taken
