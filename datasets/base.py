"""The one form every data set takes: equally sized clouds with labels, read in batches by index.

P points a cloud, C classes. Reading is a pure function of the index and, where clouds hold more points than are read
(`datasets/windows.py`), of a number drawn for each cloud from seed and epoch; everything else that is random
(resampling, augmentation) happens later, on the device, in `datasets/transforms.py`.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.made import Field
from datasets.windows import Windows
from utils.errors import UserError


class PointClouds:
    """Clouds held in memory, memory-mapped, made when first read, or as `Windows` of longer ones: anything that
    NumPy-style indexing reads.

    up_axis and normalized (mean 0, largest radius 1) are declared by the data set, None where nobody knows.
    """

    def __init__(
        self,
        points,  # (n, P, 3) any float type
        labels: np.ndarray,  # (n,) integers
        class_names: Sequence[str],
        *,
        name: str,
        split: str,
        seg=None,  # (n, P) part labels
        part_names: Sequence[str] = (),
        part_category: Sequence[int] = (),  # class index of each part
        normals=None,  # (n, P, 3)
        features=None,  # (n, P, F) further channels of each point: colours and the like
        groups: np.ndarray | None = None,  # (n,) near-duplicates share a number and stay on one side of a split
        index: np.ndarray | None = None,  # rows of the arrays that belong to this data set
        up_axis: str | None = None,
        normalized: bool | None = None,
    ):
        self.points, self.seg, self.normals, self.features = points, seg, normals, features
        self.up_axis, self.normalized = up_axis, normalized
        self.labels = np.asarray(labels, dtype=np.int64)
        self.class_names, self.part_names = tuple(class_names), tuple(part_names)
        self.part_category = tuple(int(c) for c in part_category)
        self.name, self.split, self.groups = name, split, groups
        self.index = np.arange(len(points)) if index is None else np.asarray(index, dtype=np.int64)
        self._check()

    def _check(self) -> None:
        where = f"data set '{self.name}' ({self.split})"
        if len(self.index) == 0:
            raise UserError(f"{where}: no clouds in it")
        if len(self.points.shape) != 3 or self.points.shape[2] != 3:
            raise UserError(f"{where}: 'points' must have shape (n, P, 3), found {tuple(self.points.shape)}")
        arrays = {"labels": self.labels, "seg": self.seg, "normals": self.normals, "features": self.features}
        for key, array in arrays.items():
            if array is not None and len(array) != len(self.points):
                raise UserError(f"{where}: 'points' holds {len(self.points)} clouds but '{key}' holds {len(array)}")
        low, high = int(self.labels.min()), int(self.labels.max())
        if low < 0 or high >= len(self.class_names):
            raise UserError(
                f"{where}: labels run from {low} to {high} but there are {len(self.class_names)} class names"
            )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def num_points(self) -> int:
        return int(self.points.shape[1])

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def class_labels(self) -> np.ndarray:
        """Label of every cloud of this data set, in its order."""
        return self.labels[self.index]

    @property
    def windowed(self) -> bool:
        """Whether a draw chooses which points of a cloud are read."""
        return isinstance(self.points, Windows)

    @property
    def made(self) -> bool:
        """Whether clouds are made as they are read, and kept."""
        return isinstance(self.points, Field)

    def fetch(self, positions: Sequence[int] | np.ndarray, draws: np.ndarray | None = None) -> dict[str, Tensor]:
        """Batch: points (b, P, 3) float32, label (b,), index (b,); seg, unit normals, features where there are any.

        draws (b,), numbers in [0, 1), choose the window of each cloud where there is a choice; None: the first one.
        """
        rows = self.index[np.asarray(positions, dtype=np.int64)]
        points = torch.from_numpy(_read(self.points, rows, draws, np.float32))
        if not torch.isfinite(points.sum()) and not torch.isfinite(points).all():  # the sum is the quick look
            bad = rows[int((~torch.isfinite(points)).any(-1).any(-1).nonzero()[0, 0])]
            raise UserError(
                f"data set '{self.name}' ({self.split}): cloud {bad} holds NaN or infinite coordinates; remove it"
            )
        batch = {"points": points, "label": torch.from_numpy(self.labels[rows]), "index": torch.from_numpy(rows)}
        if self.seg is not None:
            batch["seg"] = torch.from_numpy(_read(self.seg, rows, draws, np.int64))
        if self.normals is not None:
            normals = torch.from_numpy(_read(self.normals, rows, draws, np.float32))
            batch["normals"] = torch.nn.functional.normalize(normals, dim=-1)  # may be stored as int8 or float16
        if self.features is not None:
            batch["features"] = torch.from_numpy(_read(self.features, rows, draws, np.float32))
        return batch

    def subset(self, positions: np.ndarray, split: str) -> PointClouds:
        """The clouds at these positions, sharing the arrays."""
        part = copy.copy(self)
        part.index, part.split = self.index[positions], split
        return part

    def fingerprint(self) -> str:
        """Short hash that tells two data sets apart: size, labels and a few clouds."""
        digest = hashlib.sha256(repr((self.name, self.split, len(self), self.num_points, self.class_names)).encode())
        digest.update(self.class_labels.tobytes())
        for position in {0, len(self) // 2, len(self) - 1}:
            digest.update(np.ascontiguousarray(self.points[self.index[position]], dtype=np.float32).tobytes())
        return digest.hexdigest()[:12]


def _read(array, rows: np.ndarray, draws: np.ndarray | None, kind: type) -> np.ndarray:
    read = array.take(rows, draws) if isinstance(array, Windows) else array[rows]
    return np.ascontiguousarray(read, dtype=kind)
