"""The 16 categories and 50 parts of ShapeNetPart, in its order, and the function that draws a shape of each."""

from __future__ import annotations

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from datasets.shapes import furniture, objects, primitives, vehicles

PARTS = {
    "Airplane": ("body", "wing", "tail", "engine"),
    "Bag": ("handle", "body"),
    "Cap": ("crown", "peak"),
    "Car": ("roof", "hood", "wheel", "body"),
    "Chair": ("back", "seat", "leg", "arm"),
    "Earphone": ("earphone", "headband", "wire"),
    "Guitar": ("head", "neck", "body"),
    "Knife": ("blade", "handle"),
    "Lamp": ("base", "shade", "canopy", "tube"),
    "Laptop": ("keyboard", "screen"),
    "Motorbike": ("tank", "seat", "wheel", "handle", "light", "frame"),
    "Mug": ("handle", "cup"),
    "Pistol": ("barrel", "handle", "trigger"),
    "Rocket": ("body", "fin", "nose"),
    "Skateboard": ("wheel", "deck", "truck"),
    "Table": ("top", "leg", "support"),
}
LAID_DOWN = {"Guitar": 0.25, "Knife": 0.3, "Pistol": 0.1, "Rocket": 0.25, "Skateboard": 0.15}  # or stood up: how often
CATEGORIES = tuple(PARTS)
PART_NAMES = tuple(f"{category}/{part}" for category, parts in PARTS.items() for part in parts)
PART_CATEGORY = tuple(label for label, parts in enumerate(PARTS.values()) for _ in parts)

MAKERS = (
    vehicles.airplane,
    objects.bag,
    objects.cap,
    vehicles.car,
    furniture.chair,
    objects.earphone,
    objects.guitar,
    objects.knife,
    furniture.lamp,
    objects.laptop,
    vehicles.motorbike,
    objects.mug,
    objects.pistol,
    vehicles.rocket,
    vehicles.skateboard,
    furniture.table,
)


def draw_shape(label: int, count: int, rng: Generator) -> tuple[ndarray, ndarray]:
    """Points (count, 3) of a random shape of this category, distorted a little as a whole, and part ids (count,)."""
    parts = PARTS[CATEGORIES[label]]
    first = PART_CATEGORY.index(label)
    pieces = [(first + parts.index(part), quads) for part, quads in MAKERS[label](rng)]
    points, seg = primitives.sample(pieces, count, rng)
    if rng.random() < LAID_DOWN.get(CATEGORIES[label], 0):
        points = points[:, [0, 2, 1]]
    return _distorted(points, rng), seg


def _distorted(points: ndarray, rng: Generator) -> ndarray:
    """Stretched along the axes, bent by a gentle wave, tilted by a few degrees: no two shapes share proportions."""
    points = points * np.exp(rng.normal(0, 0.22, 3).clip(-0.4, 0.4))
    size = max(float(np.ptp(points, axis=0).max()), 1e-9)
    wave = rng.normal(0, 0.03, 3) * size
    points = points + wave * np.sin(points[:, [1, 2, 0]] * (rng.uniform(2, 6, 3) / size) + rng.uniform(0, 6.28, 3))
    tilt = rng.normal(0, 0.08, 3)
    return (
        points
        @ (primitives.rotation("x", tilt[0]) @ primitives.rotation("y", tilt[1]) @ primitives.rotation("z", tilt[2])).T
    )
