"""Surfaces as small quadrilaterals, and sampling them by area.

Every primitive returns quads: an array (Q, 4, 3) of corner positions. Curved surfaces are grids fine enough that the
facets are smaller than the sampling noise. A quad with two equal corners is a triangle. The world has y up and z to the
front; "width, height, depth" are the extents along x, y, z.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy import ndarray

Vector = Sequence[float] | ndarray
Pieces = list[tuple[str, ndarray]]  # (name of the part, quads)

_BOX = np.array([[x, y, z] for x in (-0.5, 0.5) for y in (-0.5, 0.5) for z in (-0.5, 0.5)])
_FACES = np.array([[0, 1, 3, 2], [4, 5, 7, 6], [0, 1, 5, 4], [2, 3, 7, 6], [0, 2, 6, 4], [1, 3, 7, 5]])
_TRIANGLES = np.array([[0, 1, 2], [0, 2, 3]])


def grid(points: ndarray) -> ndarray:
    """Quads between neighbouring points of a surface grid (R, C, 3)."""
    rows, columns = points.shape[0] - 1, points.shape[1] - 1
    quads = np.empty((rows, columns, 4, 3))
    quads[:, :, 0], quads[:, :, 1] = points[:-1, :-1], points[1:, :-1]
    quads[:, :, 2], quads[:, :, 3] = points[1:, 1:], points[:-1, 1:]
    return quads.reshape(-1, 4, 3)


def loft(rings: ndarray) -> ndarray:
    """Closed skin over closed rings (R, C, 3), whose first and last column agree; both ends are filled."""
    return grid(np.concatenate((_centre(rings[:1]), rings, _centre(rings[-1:]))))


def _centre(ring: ndarray) -> ndarray:
    return np.broadcast_to(ring[:, :-1].mean(1, keepdims=True), ring.shape)


def box(width: float, height: float, depth: float, at: Sequence[float] = (0, 0, 0), taper: float = 1.0) -> ndarray:
    """Box centred at `at`; `taper` scales its top face."""
    corners = _BOX * (width, height, depth)
    corners[[2, 3, 6, 7]] *= (taper, 1, taper)
    return (corners + at)[_FACES]


def slab(surface: ndarray, thickness: Vector) -> ndarray:
    """Surface grid (R, C, 3) thickened symmetrically by the vector `thickness`, rim included."""
    half = np.asarray(thickness) / 2
    ring = np.concatenate((surface + half, surface[:, ::-1] - half, surface[:, :1] + half), axis=1)
    middle = np.concatenate((surface, surface[:, ::-1], surface[:, :1]), axis=1)
    return grid(np.concatenate((middle[:1], ring, middle[-1:])))


def circle(sides: int, power: float = 2.0) -> ndarray:
    """Closed unit superellipse (sides + 1, 2): power 2 is a circle, larger ones go to a square."""
    angle = np.linspace(0, 2 * np.pi, sides + 1) + np.pi / sides
    xy = np.stack((np.cos(angle), np.sin(angle)), axis=1)
    return xy if power == 2 else np.sign(xy) * np.abs(xy) ** (2 / power)


def revolve(profile: Sequence[Sequence[float]] | ndarray, sides: int = 20) -> ndarray:
    """Surface of revolution about y of a profile of (radius, height); ends with radius 0 close it."""
    radius, height = np.asarray(profile, dtype=float).T
    rings = np.empty((len(radius), sides + 1, 3))
    rings[:, :, ::2] = radius[:, None, None] * circle(sides)
    rings[:, :, 1] = height[:, None]
    return grid(rings)


def cylinder(radius: float, height: float, top: float | None = None, sides: int = 20) -> ndarray:
    """Cylinder or, with another `top` radius, frustum or cone: from y = 0 to `height`, both ends closed."""
    return revolve([(0, 0), (radius, 0), (radius if top is None else top, height), (0, height)], sides)


def hull(z: ndarray, width, height, centre=0.0, power: float = 2.0, sides: int = 16) -> ndarray:
    """Closed body along z (R,): superelliptic sections of the given half widths and half heights about y = centre."""
    rings = np.empty((len(z), sides + 1, 3))
    section = circle(sides, power)
    rings[:, :, 0] = np.reshape(width, (-1, 1)) * section[:, 0]
    rings[:, :, 1] = np.reshape(height, (-1, 1)) * section[:, 1] + np.reshape(centre, (-1, 1))
    rings[:, :, 2] = z[:, None]
    return loft(rings)


def ellipsoid(width: float, height: float, depth: float, power: float = 2.0, sides: int = 16) -> ndarray:
    """Ellipsoid of these half extents; a larger power makes it boxy."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, 10)
    across, along = np.cos(angle) ** (2 / power), np.sign(angle) * np.abs(np.sin(angle)) ** (2 / power)
    return hull(depth * along, width * across, height * across, 0.0, power, sides)


def tube(curve: ndarray, radius, across=None, sides: int = 10) -> ndarray:
    """Tube along a curve (R, 3), closed at its ends. `radius` and `across` (the radius along the axis that the curve
    moves along least) may vary along it; four sides make a square section."""
    tangent = np.gradient(curve, axis=0) if len(curve) > 2 else np.repeat(curve[1:] - curve[:1], 2, axis=0)
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True) + 1e-12
    axis = int(np.abs(tangent).mean(0).argmin())
    second = -tangent[:, axis, None] * tangent
    second[:, axis] += 1
    length = np.sqrt(second[:, axis, None])  # of `second`, since `tangent` has length 1
    second /= length
    i, j = (axis + 1) % 3, (axis + 2) % 3
    first = np.zeros_like(tangent)  # tangent x second
    first[:, i], first[:, j] = tangent[:, j], -tangent[:, i]
    first /= length
    section = circle(sides)
    first = first * np.reshape(radius, (-1, 1))
    second = second * np.reshape(radius if across is None else across, (-1, 1))
    return loft(curve[:, None] + first[:, None] * section[:, :1] + second[:, None] * section[:, 1:])


def rod(start: Vector, end: Vector, radius: float, end_radius: float | None = None, sides: int = 8) -> ndarray:
    """Straight tube between two points."""
    return tube(
        np.array((start, end), dtype=float), (radius, radius if end_radius is None else end_radius), sides=sides
    )


def arc(radius: float, start: float, end: float, count: int = 12, height: float | None = None) -> ndarray:
    """Points (count, 3) of an ellipse in the xy plane, from angle `start` to `end` (radians, 0 along x)."""
    angle = np.linspace(start, end, count)
    curve = np.zeros((count, 3))
    curve[:, 0], curve[:, 1] = radius * np.cos(angle), (radius if height is None else height) * np.sin(angle)
    return curve


def ring(radius: float, thickness: float, across: float | None = None, sides: int = 8, count: int = 20) -> ndarray:
    """Torus in the xy plane."""
    return tube(arc(radius, 0, 2 * np.pi, count + 1), thickness, across, sides)


def prism(outline: ndarray, depth: float, bevel: float = 1.0) -> ndarray:
    """Outline (K, 2) in the xy plane, star-shaped about its mean, extruded symmetrically along z.

    `bevel` < 1 shrinks the two faces, so that the rim bulges.
    """
    outline = np.concatenate((outline, outline[:1]))
    middle = outline[:-1].mean(0)
    face = middle + bevel * (outline - middle)
    rings = np.empty((3 if bevel < 1 else 2, len(outline), 3))
    rings[:, :, :2] = outline
    rings[0, :, :2] = rings[-1, :, :2] = face
    rings[:, :, 2] = np.linspace(-depth / 2, depth / 2, len(rings))[:, None]
    return loft(rings)


def move(points: ndarray, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> ndarray:
    return points + np.array((x, y, z))


def turn(quads: ndarray, axis: str, angle: float) -> ndarray:
    """Rotated about the x, y or z axis, right-handed, in radians."""
    return quads @ rotation(axis, angle).T


def rotation(axis: str, angle: float) -> ndarray:
    """Rotation matrix (3, 3) about the x, y or z axis."""
    c, s = math.cos(angle), math.sin(angle)
    if axis == "x":
        return np.array(((1, 0, 0), (0, c, -s), (0, s, c)))
    if axis == "y":
        return np.array(((c, 0, s), (0, 1, 0), (-s, 0, c)))
    return np.array(((c, -s, 0), (s, c, 0), (0, 0, 1)))


def mirrored(quads: ndarray) -> ndarray:
    """The quads and their mirror image at x = 0."""
    return np.concatenate((quads, quads * (-1, 1, 1)))


def wing(root: Vector, tip: Vector, root_chord: float, tip_chord: float, thickness: Vector) -> ndarray:
    """Flat blade from the middle of its root to the middle of its tip, chords along z, thinner at the tip."""
    ends = np.array((root, root, tip, tip), dtype=float).reshape(2, 2, 3)
    ends[:, :, 2] += np.array(((-root_chord, root_chord), (-tip_chord, tip_chord))) / 2
    return slab(ends, thickness)


def sample(
    pieces: list[tuple[int, ndarray]], count: int, rng: np.random.Generator, floor: float = 0.015
) -> tuple[ndarray, ndarray]:
    """Points (count, 3) evenly by area and the part (count,) of each, in random order.

    A part smaller than the share `floor` of the whole is sampled as if it had that share: the trigger of a pistol
    would otherwise get no point at all.
    """
    pieces = sorted(pieces, key=lambda piece: piece[0])
    quads = np.concatenate([quads for _, quads in pieces])
    part = np.repeat([part for part, _ in pieces], [2 * len(quads) for _, quads in pieces])
    corners = quads[:, _TRIANGLES].reshape(-1, 3, 3)
    origin, first, second = corners[:, 0], corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    share = _area(first, second)
    per_part = np.bincount(part, share)
    boost = np.maximum(1, max(floor, 2 / count) * per_part.sum() / np.maximum(per_part, 1e-12))
    edges = np.cumsum(share * boost[part])
    # one draw in each of `count` equal strata: as even as random sampling can be
    draw = (np.arange(count) + rng.random(count)) * (edges[-1] / count)
    pick = np.minimum(np.searchsorted(edges, draw), len(edges) - 1)[rng.permutation(count)]
    u, v = rng.random((2, count, 1))
    fold = u + v > 1
    u, v = np.where(fold, 1 - u, u), np.where(fold, 1 - v, v)
    return origin[pick] + u * first[pick] + v * second[pick], part[pick]


def _area(a: ndarray, b: ndarray) -> ndarray:
    """Areas of the triangles spanned by (T, 3) and (T, 3); np.cross is several times slower."""
    x = a[:, 1] * b[:, 2] - a[:, 2] * b[:, 1]
    y = a[:, 2] * b[:, 0] - a[:, 0] * b[:, 2]
    z = a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
    return np.sqrt(x * x + y * y + z * z) / 2
