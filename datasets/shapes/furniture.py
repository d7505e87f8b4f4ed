"""Chair, lamp, table: functions of a random generator that return labelled pieces. They stand on y = 0, front at +z."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from datasets.shapes.primitives import (
    Pieces,
    arc,
    box,
    circle,
    cylinder,
    ellipsoid,
    mirrored,
    move,
    prism,
    revolve,
    rod,
    slab,
    tube,
    turn,
)


def four_legs(rng: Generator, width: float, depth: float, height: float) -> ndarray:
    """Round or square legs under the corners, straight, splayed or tapered."""
    u = rng.uniform
    radius, splay = u(0.02, 0.06), max(0.0, u(-0.08, 0.12))
    x, z = width / 2 - radius, depth / 2 - radius
    sides, taper = (4 if u() < 0.5 else 8), u(0.5, 1.1)
    right = [rod((x, height, s * z), (x + splay, 0, s * (z + splay)), radius, radius * taper, sides) for s in (-1, 1)]
    return mirrored(np.concatenate(right))


def pedestal(rng: Generator, height: float, reach: float) -> ndarray:
    """One central column on a disc, a dome, a star of feet with or without casters, or a cross."""
    u, kind = rng.uniform, rng.integers(4)
    radius = u(0.02, 0.07)
    column = cylinder(radius, height, radius * u(0.6, 1.3), sides=10)
    if kind < 2:
        thick = u(0.02, 0.06)
        foot = cylinder(reach, thick, reach * u(0.8, 1)) if kind == 0 else revolve(_dome(reach, u(0.06, 0.2)))
        return np.concatenate((column, foot))
    count, caster = int(rng.integers(3, 6)), u(0.0, 0.05) * (kind == 2)
    rise, turned = u(0.02, 0.15), u(0, 1)
    feet = []
    for angle in turned + np.arange(count) * 2 * np.pi / count:
        x, z = reach * np.cos(angle), reach * np.sin(angle)
        feet.append(rod((0, caster + rise, 0), (x, caster + 0.03, z), 0.035, 0.02, sides=6))
        if caster > 0.02:
            feet.append(move(ellipsoid(caster, caster, caster, sides=8), x, caster, z))
    return np.concatenate([column, *feet])


def _dome(radius: float, height: float) -> ndarray:
    angle = np.linspace(0, np.pi / 2, 7)
    return np.stack((radius * np.cos(angle), height * np.sin(angle)), axis=1)


def sled(rng: Generator, width: float, depth: float, height: float) -> ndarray:
    """A bent frame on each side: two uprights and a runner on the floor."""
    radius, x, z = rng.uniform(0.015, 0.035), width / 2 - 0.03, depth / 2 - 0.03
    lean = rng.uniform(-0.06, 0.1)
    points = [(x, height, -z), (x, radius, -z - lean), (x, radius, z + lean), (x, height, z)]
    return mirrored(np.concatenate([rod(a, b, radius) for a, b in pairwise(points)]))


def panels(rng: Generator, width: float, depth: float, height: float) -> ndarray:
    """A board on each side, sometimes slanted."""
    thick, slant = rng.uniform(0.02, 0.06), rng.uniform(-0.08, 0.08)
    x = width / 2 - thick
    side = np.array(
        [[[x, height, -depth / 2], [x, height, depth / 2]], [[x - slant, 0, -depth / 2], [x - slant, 0, depth / 2]]]
    )
    return mirrored(slab(side, (thick, 0, 0)))


def plate(rng: Generator, width: float, depth: float, thick: float, shapes: int) -> ndarray:
    """Horizontal board about the origin: rectangle, rounded, oval or polygon (one of the first `shapes` of these)."""
    kind = rng.integers(shapes)
    if kind == 0:
        return box(width, thick, depth)
    outline = (circle(24, rng.uniform(3, 8)), circle(24), circle(int(rng.integers(5, 9))))[kind - 1]
    outline = outline[:-1] / np.abs(outline).max(0) * (width / 2, depth / 2)
    return turn(prism(outline, thick, rng.uniform(0.9, 1.0)), "x", np.pi / 2)


def chair(rng: Generator) -> Pieces:
    u = rng.uniform
    width, depth, height, thick = u(0.45, 0.75), u(0.45, 0.65), u(0.25, 0.7), u(0.03, 0.12)
    kind = rng.choice(6, p=(0.4, 0.18, 0.12, 0.1, 0.14, 0.06))
    if kind == 5:
        return _pouf(rng, width, depth)
    if kind in (0, 3) and u() < 0.12:  # a bench
        width *= u(1.6, 2.6)
    pieces: Pieces = []
    if kind == 0:
        pieces.append(("leg", four_legs(rng, width, depth, height)))
    elif kind == 1:
        pieces.append(("leg", pedestal(rng, height, u(0.2, 0.36))))
    elif kind == 2:
        pieces.append(("leg", sled(rng, width, depth, height)))
    elif kind == 3:
        pieces.append(("leg", panels(rng, width, depth, height)))
    else:  # an armchair: a thick seat on short feet
        width, depth, thick, height = width * u(1.1, 1.9), depth * 1.2, u(0.16, 0.3), u(0.1, 0.3)
        pieces.append(("leg", four_legs(rng, width, depth, height)))
    pieces.append(("seat", move(plate(rng, width, depth, thick, 3), 0, height + thick / 2, 0)))
    top = height + thick
    if u() > 0.1:  # the rest are stools
        pieces.append(("back", move(_back(rng, width, u(0.35, 0.8), thick, kind == 4), 0, top, -depth / 2 + 0.03)))
    if kind == 4 or u() < 0.35:
        pieces.append(("arm", move(_arms(rng, width, depth, kind == 4), 0, top, 0)))
    return pieces


def _pouf(rng: Generator, width: float, depth: float) -> Pieces:
    """A seat on the floor without legs, with a low back or none."""
    u, tall = rng.uniform, rng.uniform(0.25, 0.5)
    seat = move(ellipsoid(width / 2, tall / 2, depth / 2, u(2, 6)), 0, tall / 2)
    if u() < 0.4:
        return [("seat", seat)]
    back = ellipsoid(width / 2 * u(0.7, 1), u(0.2, 0.4), u(0.06, 0.15), u(2, 4))
    return [("seat", seat), ("back", move(back, 0, tall, -depth * 0.4))]


def _back(rng: Generator, width: float, height: float, thick: float, solid: bool) -> ndarray:
    """Back rest above the origin: bowed panel, vertical slats, ladder of bars, or an arch."""
    u, kind = rng.uniform, 0 if solid else rng.integers(5)
    lean, half = u(0, 0.25) * height, width / 2
    if kind < 2:
        s, t = np.meshgrid(np.linspace(-half, half, 7), np.linspace(0 if solid else u(0, 0.25), 1, 5))
        bow, narrow = u(-0.15, 0.3), u(0.7, 1.1)
        surface = np.stack((s * (1 + (narrow - 1) * t), t * height, bow * s * s / width - lean * t ** u(1, 2)), axis=2)
        return slab(surface, (0, 0, max(thick * u(0.6, 1), 0.03)))
    radius, x = u(0.015, 0.035), half - 0.03
    if kind == 4:
        frame = [tube(arc(x, np.pi, 0, 14, height), radius, sides=6)]
        bars = [
            rod((s * x, 0, 0), (s * x, height * np.sqrt(1 - s * s), 0), radius / 2, sides=6)
            for s in (-0.6, -0.2, 0.2, 0.6)
        ]
        return turn(np.concatenate(frame + bars), "x", -lean / height)
    parts = [rod((s * x, 0, 0), (s * x, height, -lean), radius, sides=6) for s in (-1, 1)]
    count = int(rng.integers(2, 6))
    if kind == 2:
        spots = np.linspace(-x, x, count + 2)[1:-1]
        parts += [rod((s, 0, 0), (s, height, -lean), radius * 0.8, sides=6) for s in spots]
        parts.append(box(width, 0.08, 2 * radius, (0, height, -lean)))
    else:
        levels = np.linspace(u(0.2, 0.5), 1, count)
        parts += [box(width, height * 0.4 / count, 2 * radius, (0, s * height, -s * lean)) for s in levels]
    return np.concatenate(parts)


def _arms(rng: Generator, width: float, depth: float, solid: bool) -> ndarray:
    """Arm rests above the origin: blocks of an armchair, boards on posts, or bent tubes."""
    u = rng.uniform
    height, thick, x = u(0.12, 0.3), u(0.03, 0.06), width / 2
    if solid:
        thick = u(0.08, 0.2)
        return mirrored(box(thick, height + 0.15, depth, (x + thick / 2, (height - 0.15) / 2, 0)))
    if u() < 0.5:
        rest = box(thick, thick, depth * u(0.7, 1), (x, height, 0))
        return mirrored(np.concatenate((rest, rod((x, 0, depth * 0.3), (x, height, depth * u(0.2, 0.4)), thick / 2.5))))
    bend = turn(arc(depth / 2, 0, np.pi, 12, height), "y", np.pi / 2)
    return mirrored(tube(move(bend, x, 0, 0), thick / 2.5, sides=6))


def table(rng: Generator) -> Pieces:
    u = rng.uniform
    width, height, thick = u(0.5, 1.6), u(0.12, 0.9), u(0.02, 0.12)
    depth = width * u(0.4, 1)
    kind = rng.choice(5, p=(0.45, 0.2, 0.15, 0.1, 0.1))
    pieces: Pieces = [("top", move(plate(rng, width, depth, thick, 4), 0, height + thick / 2, 0))]
    inset = u(0.65, 0.98)
    if kind == 0:
        pieces.append(("leg", four_legs(rng, width * inset, depth * inset, height)))
    elif kind == 1:
        pieces.append(("leg", pedestal(rng, height, min(depth, 1) * u(0.25, 0.42))))
    elif kind == 2:
        pieces.append(("leg", panels(rng, width * inset, depth * inset, height)))
    elif kind == 3:
        pieces.append(("leg", sled(rng, width * inset, depth * inset, height)))
    else:
        pieces.append(("leg", _trestle(rng, width * inset, depth * inset, height)))
    if kind != 1 and u() < 0.6:
        pieces.append(("support", _support(rng, width * inset, depth * inset, height)))
    return pieces


def _trestle(rng: Generator, width: float, depth: float, height: float) -> ndarray:
    """Crossed legs on each side."""
    radius, x, z = rng.uniform(0.015, 0.035), width / 2, depth / 2
    return mirrored(np.concatenate([rod((x, height, s * z), (x, 0, -s * z), radius, sides=4) for s in (-1, 1)]))


def _support(rng: Generator, width: float, depth: float, height: float) -> ndarray:
    """What holds the legs together: a shelf, stretchers, an apron, or a block of drawers on one side."""
    u, kind = rng.uniform, rng.integers(4)
    if kind == 0:
        return box(width * 0.95, u(0.015, 0.05), depth * 0.95, (0, height * u(0.15, 0.5), 0))
    if kind == 1:
        level = height * u(0.1, 0.5)
        sides = mirrored(box(0.03, 0.03, depth, (width / 2 - 0.02, level, 0)))
        return np.concatenate((sides, box(width, 0.03, 0.03, (0, level, 0))))
    if kind == 2:
        tall = u(0.05, 0.15)
        boards = [box(width, tall, 0.02, (0, height - tall / 2, s * (depth / 2 - 0.02))) for s in (-1, 1)]
        return np.concatenate([*boards, mirrored(box(0.02, tall, depth, (width / 2 - 0.02, height - tall / 2, 0)))])
    share, tall = u(0.25, 0.4), height * u(0.3, 0.95)
    return box(width * share, tall, depth * 0.95, (rng.choice((-1, 1)) * width * (1 - share) / 2, height - tall / 2, 0))


def lamp(rng: Generator) -> Pieces:
    kind = rng.choice(5, p=(0.4, 0.24, 0.2, 0.08, 0.08))
    return (_standing_lamp, _hanging_lamp, _desk_lamp, _lantern, _ceiling_lamp)[kind](rng)


def _lantern(rng: Generator) -> Pieces:
    """A glass body on a plate, with a ring or a bow to carry it."""
    u, sides = rng.uniform, (20, 4, 6)[rng.integers(3)]
    radius, tall = u(0.2, 0.35), u(0.35, 0.8)
    glass = cylinder(radius, tall, radius * u(0.7, 1.1), sides)
    bow = move(tube(arc(radius * u(0.3, 0.9), 0, np.pi, 12, u(0.1, 0.35)), 0.015, sides=6), 0, tall)
    plate_radius = radius * u(1, 1.25)
    return [("shade", glass), ("canopy", bow), ("base", move(cylinder(plate_radius, 0.05, sides=sides), 0, -0.05))]


def _ceiling_lamp(rng: Generator) -> Pieces:
    """A shade right below its plate."""
    u = rng.uniform
    radius, plate_radius = u(0.25, 0.45), u(0.1, 0.5)
    return [("shade", _shade(rng, radius, u(0.12, 0.6))), ("canopy", cylinder(plate_radius, 0.04, plate_radius * 0.9))]


def _shade(rng: Generator, radius: float, height: float) -> ndarray:
    """Open shade from y = 0 down to -height: frustum, bell, globe, drum or cone."""
    u, kind = rng.uniform, rng.integers(4)
    if kind == 0:
        return revolve([(radius * u(0.4, 1), 0), (radius, -height)])
    if kind == 1:
        t = np.linspace(0, 1, 8)
        return revolve(np.stack((radius * (0.2 + 0.8 * t ** u(0.4, 2.5)), -height * t), axis=1))
    if kind == 2:
        return move(ellipsoid(radius, height / 2, radius, u(2, 3)), 0, -height / 2, 0)
    outline = circle(4 if u() < 0.5 else 6)
    low, high = np.zeros((2, len(outline), 3))
    low[:, ::2], high[:, ::2], low[:, 1] = outline * radius, outline * radius * u(0.5, 1), -height
    return slab(np.stack((high, low)), (0, 0, 0.005))


def _standing_lamp(rng: Generator) -> Pieces:
    u = rng.uniform
    height, radius = u(0.5, 1.7), u(0.15, 0.35)
    tall, reach = u(0.15, 0.45), u(0.12, 0.3)
    if u() < 0.12:  # a mushroom, as wide as a small table
        height, radius, tall = u(0.4, 0.8), u(0.35, 0.6), u(0.06, 0.25)
    pieces: Pieces = [("shade", move(_shade(rng, radius, tall), 0, height + tall * u(0.2, 0.8), 0))]
    kind = rng.integers(4)
    if kind == 0 and height < 1.1:  # a vase carries the shade
        t = np.linspace(0, 1, 10)
        swell = 0.3 + np.abs(np.sin(np.pi * (t * u(0.7, 1.1) + u(0, 0.3)))) * u(0.5, 1)
        pieces.append(("base", revolve(np.stack((reach * swell, t * height * 0.8), axis=1))))
        pieces.append(("tube", move(cylinder(0.02, height * 0.3, sides=8), 0, height * 0.75, 0)))
        return pieces
    if kind == 1:  # a tripod
        feet = [
            rod((0, height * 0.5, 0), (reach * 1.5 * np.cos(a), 0, reach * 1.5 * np.sin(a)), 0.02)
            for a in (0, 2.1, 4.2)
        ]
        pieces.append(("base", np.concatenate(feet)))
        pieces.append(("tube", move(cylinder(0.025, height * 0.55, sides=8), 0, height * 0.5, 0)))
        return pieces
    pieces.append(("base", cylinder(reach, u(0.02, 0.12), reach * u(0.5, 1))))
    pieces.append(("tube", cylinder(u(0.012, 0.04), height, sides=8)))
    return pieces


def _hanging_lamp(rng: Generator) -> Pieces:
    u = rng.uniform
    length, radius, tall, cap = u(0.2, 1.3), u(0.15, 0.5), u(0.12, 0.6), u(0.05, 0.15)
    pieces: Pieces = [("canopy", move(cylinder(cap, u(0.02, 0.08), cap * u(0.3, 1)), 0, length, 0))]
    if u() < 0.65:
        pieces.append(("tube", cylinder(u(0.006, 0.02), length, sides=6)))
        pieces.append(("shade", _shade(rng, radius, tall)))
        return pieces
    count, arm = int(rng.integers(3, 7)), u(0.2, 0.45)  # a chandelier
    small = _shade(rng, u(0.06, 0.14), u(0.08, 0.2))
    spokes = [cylinder(0.015, length, sides=6)]
    shades = []
    for angle in np.arange(count) * 2 * np.pi / count:
        hook = move(arc(arm / 2, -np.pi, 0, 8, arm * 0.4), arm / 2)
        spokes.append(turn(tube(hook, 0.012, sides=6), "y", angle))
        shades.append(turn(move(small, arm, 0.12, 0), "y", angle))
    return [*pieces, ("tube", np.concatenate(spokes)), ("shade", np.concatenate(shades))]


def _desk_lamp(rng: Generator) -> Pieces:
    """A base, two links or a swan neck, and a head that looks down."""
    u = rng.uniform
    side, reach, first, second = rng.choice((-1, 1)), u(0.1, 0.22), u(0.3, 0.6), u(0.2, 0.6)
    thick = u(0.012, 0.03)
    knee = np.array((-side * u(0, 0.3), first, 0))
    tip = move(knee, side * second * np.cos(lift := u(-0.2, 0.9)), second * np.sin(lift), 0)
    if u() < 0.6:
        links = np.concatenate((rod((0, 0, 0), knee, thick), rod(knee, tip, thick)))
    else:
        t = np.linspace(0, 1, 12)[:, None]
        links = tube(2 * t * (1 - t) * knee * (1, 2, 1) + t * t * tip, thick)
    head = turn(_shade(rng, u(0.08, 0.2), u(0.1, 0.25)), "z", side * u(-0.2, 0.8)) + tip
    foot = cylinder(reach, u(0.02, 0.08), reach * u(0.6, 1)) if u() < 0.7 else box(2 * reach, 0.04, 1.5 * reach)
    return [("base", foot), ("tube", links), ("shade", head)]
