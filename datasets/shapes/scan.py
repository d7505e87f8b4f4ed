"""A shape as a depth sensor would see it, after ScanObjectNN's hardest variant (PB_T50_RS).

The shape is turned about the vertical, stands on a floor, perhaps before a wall and among fragments of other shapes,
and is seen from one side. Hidden points are removed with a z-buffer (orthographic, on points): 20 times faster than the
convex hull of the flipped cloud, with the same effect at this density. The crop box around the object is moved by up to
half its size, turned and scaled, so that parts are lost and background comes in. Background points have part id -1.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from datasets.shapes.categories import CATEGORIES, draw_shape
from datasets.shapes.primitives import move, rotation

BACKGROUND = -1
_CELL = 0.03  # of the z-buffer, where the radius of the object is 1
_DENSE = 5  # points drawn on the object for each point delivered


def draw_scan(label: int, count: int, rng: Generator) -> tuple[ndarray, ndarray]:
    """Points (count, 3) of a scanned shape of this category with its surroundings, and part ids (count,)."""
    points, seg = draw_shape(label, _DENSE * count, rng)
    points = _unit(points) @ rotation("y", rng.uniform(0, 2 * np.pi)).T
    low, high = points.min(0), points.max(0)
    around = _surroundings(count, float(low[1]), rng)
    scene = np.concatenate((points, around))
    seg = np.concatenate((seg, np.full(len(around), BACKGROUND)))
    seen = _visible(scene, rng.uniform(0.1, 0.7))
    scene, seg = scene[seen], seg[seen]
    kept = _crop(scene, seg, (low + high) / 2, high - low, rng)
    pick = kept[rng.permutation(len(kept))[np.arange(count) % len(kept)]]
    noise = rng.normal(0, rng.uniform(0.004, 0.015), (count, 3))
    noise[rng.random(count) < 0.01] *= 6  # flying pixels
    return (scene[pick] + noise) @ rotation("y", rng.uniform(0, 2 * np.pi)).T, seg[pick]


def _unit(points: ndarray) -> ndarray:
    """Within the unit sphere about the centre of the bounding box."""
    points = points - (points.min(0) + points.max(0)) / 2
    return points / max(float(np.linalg.norm(points, axis=1).max()), 1e-9)


def _surroundings(count: int, floor: float, rng: Generator) -> ndarray:
    """A floor, a wall behind, a fragment beside or behind: none, some or all of them."""
    u, parts = rng.uniform, [np.zeros((0, 3))]
    if u() < 0.7:
        x, z = u(-1.3, 1.3, (2, 4 * count))
        parts.append(np.stack((x, np.full(4 * count, floor), z), axis=1))
    if u() < 0.3:
        x, y = u(-1.3, 1.3, 4 * count), floor + u(0, 2, 4 * count)
        wall = np.stack((x, y, np.full(4 * count, -u(0.6, 1.2))), axis=1)
        parts.append(wall @ rotation("y", u(-0.6, 0.6)).T)
    for _ in range(rng.integers(2)):
        other = _unit(draw_shape(int(rng.integers(len(CATEGORIES))), 2 * count, rng)[0]) * u(0.3, 0.9)
        cut = other @ rng.normal(size=3)
        other = other[cut >= np.quantile(cut, u(0, 0.6))]  # a half-space of it
        angle, away = u(-0.4, np.pi + 0.4), u(0.6, 1.2)
        other = move(other, away * np.cos(angle), floor - other[:, 1].min(), -away * np.sin(angle))
        parts.append(other)
    return np.concatenate(parts)


def _visible(points: ndarray, elevation: float) -> ndarray:
    """Mask of the points with nothing clearly in front of them, seen from far out on +z and this far up (radians)."""
    view = points @ rotation("x", elevation).T
    cell = np.floor(view[:, :2] / _CELL).astype(np.int64)
    row, column = (cell - cell.min(0) + 1).T
    front = np.full((row.max() + 2, column.max() + 2), -np.inf)
    np.maximum.at(front, (row, column), view[:, 2])
    for axis in (0, 1):  # each point covers its 3 x 3 cells: no holes, and no stripes where a surface is steep
        front = np.maximum(front, np.maximum(np.roll(front, 1, axis), np.roll(front, -1, axis)))
    return view[:, 2] > front[row, column] - 4 * _CELL


def _crop(points: ndarray, seg: ndarray, centre: ndarray, size: ndarray, rng: Generator) -> ndarray:
    """Rows of the points within the perturbed box, no more than three of the background for each of the object.

    The shift is halved until half of the object's visible points are inside.
    """
    shift, scale = rng.uniform(-0.5, 0.5, 3) * size, rng.uniform(0.9, 1.2)
    turned = rotation("y", rng.uniform(-0.5, 0.5))
    on_object = seg != BACKGROUND
    for _ in range(8):
        local = (points - centre - shift) @ turned
        inside = (np.abs(local) <= size * scale / 2 + 0.05).all(1)
        if (inside & on_object).sum() >= on_object.sum() / 2:
            break
        shift = shift / 2
    kept, around = np.flatnonzero(inside & on_object), np.flatnonzero(inside & ~on_object)
    return np.concatenate((kept, rng.permutation(around)[: 3 * len(kept)]))
