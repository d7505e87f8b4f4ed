"""Bag, cap, earphone, guitar, knife, laptop, mug, pistol: labelled pieces. Long things stand along y."""

from __future__ import annotations

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
    hull,
    mirrored,
    move,
    prism,
    revolve,
    ring,
    rod,
    slab,
    tube,
    turn,
)


def bag(rng: Generator) -> Pieces:
    """A body lofted upwards (tote, handbag, briefcase, pouch, backpack) and one or two handles or straps."""
    u, kind = rng.uniform, rng.choice(6, p=(0.22, 0.2, 0.2, 0.2, 0.1, 0.08))
    width, height, depth = u(0.35, 0.65), u(0.35, 0.8), u(0.1, 0.3)
    if kind == 1:
        width, height, depth = u(0.6, 0.95), u(0.3, 0.6), u(0.1, 0.25)
    elif kind >= 4:  # a bucket, a duffel
        depth = width if kind == 4 else u(0.3, 0.5)
        width, height = (width, height) if kind == 4 else (u(0.8, 1.2), depth)
    t = np.linspace(0, 1, 9)
    belly = 1 + u(-0.1, 0.35) * np.sin(np.pi * t) - u(0, 0.35) * t
    flat = 1 - (u(0.2, 0.9) if kind == 0 else u(0, 0.4)) * t**2
    body = hull(t * height, width / 2 * belly, depth / 2 * flat * belly, 0, 2 if kind == 4 else u(2.5, 8))
    if kind == 5:
        body = hull((t - 0.5) * width, depth / 2, depth / 2, 0, u(2, 4))
        body = move(turn(turn(body, "y", np.pi / 2), "x", np.pi / 2), z=height / 2)
    pieces: Pieces = [("body", turn(body, "x", -np.pi / 2))]
    if kind == 3:  # a backpack: pocket in front, straps behind
        pocket = ellipsoid(width * 0.35, height * 0.25, depth * 0.3, 4)
        pieces.append(("body", move(pocket, 0, height * 0.3, depth * 0.55)))
        strap = turn(arc(height * 0.42, -np.pi / 2, np.pi / 2, 12, height * 0.42), "y", np.pi / 2) * (1, 1, u(0.3, 0.7))
        strap = move(strap, width * 0.25, height * 0.5, -depth * 0.45)
        pieces.append(("handle", mirrored(tube(strap, 0.015, 0.035, sides=6))))
        return pieces
    reach, tall, thick = width * u(0.12, 0.42) * belly[-1], u(0.04, 0.5), u(0.012, 0.03)
    bow = move(tube(arc(reach, 0, np.pi, 14, tall), thick, thick * u(1, 2), sides=6), 0, height * 0.98, 0)
    gap = depth * 0.4 * u(0.3, 1)
    double = kind == 2 or u() < 0.3
    pieces.append(("handle", np.concatenate((move(bow, 0, 0, gap), bow - (0, 0, gap))) if double else bow))
    return pieces


def cap(rng: Generator) -> Pieces:
    """A crown and a peak: baseball cap, flat-topped cap, hat with a brim all around, beanie with a rolled rim."""
    u, kind = rng.uniform, rng.choice(4, p=(0.45, 0.2, 0.22, 0.13))
    radius, long, tall = u(0.35, 0.45), u(1, 1.35), u(0.2, 0.5)
    if kind == 2 and u() < 0.4:  # a top hat
        tall = u(0.5, 0.9)
    angle = np.linspace(0, np.pi / 2, 9)
    power = u(4, 9) if kind == 1 or tall > 0.5 else u(1.7, 3)
    crown = np.stack((radius * np.cos(angle) ** (2 / power), tall * np.sin(angle) ** (2 / power)), axis=1)
    if kind == 1:
        crown[:, 0] *= 1 + u(0, 0.3) * crown[:, 1] / tall
    shell = revolve(crown) * (1, 1, long)
    pieces: Pieces = [("crown", np.concatenate((shell, shell * 0.96)))]
    if kind == 0 and u() < 0.5:
        pieces.append(("crown", move(ellipsoid(0.03, 0.02, 0.03, sides=8), 0, tall, 0)))
    if kind == 3:
        roll = turn(ring(radius, u(0.03, 0.06), u(0.05, 0.12)), "x", np.pi / 2) * (1, 1, long)
        return [*pieces, ("peak", roll)]
    reach, droop, half = u(0.06, 0.42), u(-0.05, 0.5), u(0.9, 1.4)
    if kind == 2:
        reach, half = u(0.1, 0.35), np.pi
    s, t = np.meshgrid(np.linspace(-half, half, 25 if kind == 2 else 13), np.linspace(0, 1, 5))
    # the peak ends in a tip at both sides, a brim goes around
    out = 1 + t * reach / radius * (1 if kind == 2 else np.cos(s / half * np.pi / 2) ** u(0.4, 0.8))
    x, z = radius * out * np.sin(s), radius * out * np.cos(s) * long
    drop = droop * x * x if kind != 2 else u(-0.3, 0.4) * t * reach + 0 * x
    pieces.append(("peak", slab(np.stack((x, -drop - u(0, 0.3) * t * reach, z), axis=2), (0, 0.02, 0))))
    return pieces


def earphone(rng: Generator) -> Pieces:
    kind = rng.choice(4, p=(0.5, 0.25, 0.15, 0.1))
    if kind == 3:
        return _hook(rng)
    return _earbuds(rng) if kind == 1 else _headphones(rng, microphone=kind == 2)


def _hook(rng: Generator) -> Pieces:
    """For one ear: a body, a hook around the ear, a boom."""
    u, side = rng.uniform, rng.choice((-1, 1))
    size, reach = u(0.08, 0.16), u(0.15, 0.3)
    bow = arc(reach, -u(0.2, 0.8), u(2.6, 3.6), 14, reach * u(0.8, 1.4))
    loop = turn(tube(bow, u(0.012, 0.03), sides=6), "y", np.pi / 2)
    body = ellipsoid(size * u(0.4, 1), size * u(0.8, 2), size, u(2, 4), sides=12)
    boom = rod((0, 0, 0), (side * u(0, 0.1), -u(0.05, 0.3), u(0.2, 0.5)), u(0.012, 0.03))
    return [("headband", loop), ("earphone", move(body, side * size * 0.5)), ("wire", boom)]


def _headphones(rng: Generator, microphone: bool) -> Pieces:
    u = rng.uniform
    half, tall, cup, thick = u(0.3, 0.42), u(0.35, 0.55), u(0.1, 0.22), u(0.05, 0.14)
    band = tube(arc(half, -u(0, 0.3), np.pi + u(0, 0.3), 18, tall), u(0.012, 0.03), u(0.02, 0.07), sides=6)
    pieces: Pieces = [("headband", band)]
    if u() < 0.4:
        inner = arc(half * 0.9, 0.6, np.pi - 0.6, 12, tall * 0.88)
        pieces.append(("headband", tube(inner, 0.015, u(0.03, 0.08), sides=6)))
    pad = cylinder(cup, thick, cup * u(0.7, 1), sides=16) * (1, 1, u(0.8, 1.1))
    if u() < 0.4:
        pad = np.concatenate((pad, turn(ring(cup * 0.8, 0.035, count=14), "x", np.pi / 2)))
    pad = move(turn(turn(pad, "z", -np.pi / 2), "x", u(-0.3, 0.3)), half - thick * u(0, 0.8), -tall * u(0.1, 0.3), 0)
    pieces.append(("earphone", mirrored(pad)))
    if microphone or u() < 0.3:
        pieces.append(("wire", _wire(rng, np.array((half, -tall * 0.3, 0)), forward=microphone)))
    return pieces


def _wire(rng: Generator, start: ndarray, forward: bool) -> ndarray:
    """A cable that hangs in a wave, or the boom of a microphone in front of the mouth."""
    u, t = rng.uniform, np.linspace(0, 1, 12)
    if forward:
        x, y, z = start[0] * (1 - 0.6 * t**2), start[1] - u(0.1, 0.2) * t, u(0.25, 0.4) * np.sin(t * 1.5)
        boom = np.stack((x, y, z), axis=1)
        return np.concatenate((tube(boom, 0.012, sides=6), ellipsoid(0.03, 0.03, 0.03, sides=8) + boom[-1]))
    x, y, z = u(-0.3, 0.1) * t + u(0, 0.1) * np.sin(6 * t), -u(0.3, 0.8) * t, u(-0.1, 0.1) * np.sin(4 * t)
    return tube(start + np.stack((x, y, z), axis=1), 0.012, sides=6)


def _earbuds(rng: Generator) -> Pieces:
    u = rng.uniform
    half, size, drop = u(0.2, 0.45), u(0.07, 0.14), u(0.4, 1)
    bud = np.concatenate((ellipsoid(size * u(0.5, 1), size, size), rod((0, 0, 0), (0, -size * u(1, 3), 0), size * 0.3)))
    t = np.linspace(0, 1, 14)
    meet = u(0.3, 0.8)
    cable = np.stack((half * (1 - t / meet).clip(0.02), -drop * t, u(-0.1, 0.1) * np.sin(5 * t)), axis=1)
    pieces: Pieces = [
        ("earphone", mirrored(move(turn(bud, "z", u(-0.4, 0.4)), half, 0, 0))),
        ("wire", mirrored(tube(cable, 0.014, sides=6))),
    ]
    if u() < 0.4:  # hooks behind the ears
        hook = move(tube(turn(arc(size * 1.6, -0.5, 3.0, 12), "y", np.pi / 2), 0.015, sides=6), half, 0, 0)
        pieces.append(("headband", mirrored(hook)))
    return pieces


def guitar(rng: Generator) -> Pieces:
    u, kind = rng.uniform, rng.choice(4, p=(0.4, 0.35, 0.1, 0.15))  # acoustic, electric, V-shaped, banjo
    width, tall = u(0.3, 0.42), u(0.4, 0.55)
    depth = u(0.08, 0.16) if kind in (0, 3) else u(0.03, 0.07)
    if kind == 3:
        tall = width * u(0.85, 1.1)
    outline = _guitar_outline(rng, int(kind)) * (width / 2, tall / 2)
    neck, thick, top = u(0.4, 0.75), u(0.04, 0.07), tall * 0.45
    board = box(thick, neck + tall * 0.25, 0.035, (0, top + neck / 2 - tall * 0.12, depth / 2), taper=u(0.7, 1))
    wide, long = thick * u(1.1, 2.2) / 2, u(0.1, 0.2)
    left, middle, right = (-wide, long * u(0.3, 0.9)), (u(-0.6, 0.6) * wide, long), (wide, long * u(0.2, 0.9))
    head = [prism(np.array(((-thick / 2, 0), (thick / 2, 0), right, middle, left)), 0.03)]
    for share in (0.3, 0.6, 0.85):
        head.append(mirrored(rod((wide * 0.6, share * long, 0), (wide * 1.6, share * long, 0), 0.01, sides=5)))
    leaning = turn(np.concatenate(head), "x", -u(0, 0.35))
    return [
        ("body", prism(outline, depth, u(0.88, 1.0))),
        ("neck", board),
        ("head", move(leaning, 0, top + neck, depth / 2)),
    ]


def _guitar_outline(rng: Generator, kind: int) -> ndarray:
    """Outline (40, 2) of about -1..1, from the bottom: a circle with a waist, with horns, or drawn out to a V."""
    u, angle = rng.uniform, np.linspace(0, 2 * np.pi, 40, endpoint=False)
    x, y = np.sin(angle), -np.cos(angle)
    if kind < 2:
        waist = u(0.15, 0.35) * np.exp(-(((y - u(0.1, 0.3)) / 0.25) ** 2))
        x = x * (1 - waist) * (1 - u(0.05, 0.3) * y.clip(0))
    if kind == 1:
        horns = np.where(x > 0, u(0, 0.4), u(0, 0.4)) * (np.abs(x) > 0.3) * (y > 0.2) * y
        y = y - 0.35 * np.exp(-((x / 0.22) ** 2)) * (y > 0) + horns
    if kind == 2:
        x, y = x * (0.75 - 0.25 * y), y + u(0.3, 0.7) * (1 - np.abs(x)) * (y < 0)
    return np.stack((x, y), axis=1)


def knife(rng: Generator) -> Pieces:
    u, kind = rng.uniform, rng.integers(4)  # chef's, dagger, curved, cleaver
    length, width, side = u(0.25, 1.1), u(0.05, 0.2), rng.choice((-1, 1))
    t = np.linspace(0, 1, 13)
    spine, edge = np.zeros(13), width * (1 - t ** u(2, 5)) ** u(0.5, 1)
    if kind == 1:
        spine, edge = edge / 2 * -1, edge / 2
    elif kind == 2:
        bend = u(0.1, 0.5) * t**2 * length * 0.5
        spine, edge = -bend, edge - bend
    elif kind == 3:
        edge = u(0.15, 0.28) * (1 - u(0, 0.3) * t)
    blade = np.zeros((13, 2, 3))
    blade[:, 0, 0], blade[:, 1, 0], blade[:, :, 1] = side * spine, side * edge, (t * length)[:, None]
    middle = 0.5 * side * (spine[0] + np.atleast_1d(edge)[0])
    pieces: Pieces = [("blade", slab(blade, (0, 0, u(0.008, 0.03))))]
    grip, wide, thick = u(0.25, 0.6), u(0.035, 0.08), u(0.02, 0.06)
    wave = u(0, 0.3) * np.sin(t * u(3, 12))
    handle = turn(hull(-t * grip, wide * (1 + wave), thick * (1 + wave), 0.0, u(2, 6), 12), "x", -np.pi / 2)
    handle = handle + (u(-0.3, 0.3) * side * handle[..., 1:2] ** 2) * (1, 0, 0)
    pieces.append(("handle", move(handle, middle, 0, 0)))
    if u() < 0.35:  # a guard, and a knob at the end
        pieces.append(("handle", box(u(0.12, 0.3), 0.03, 2.2 * thick, (middle, 0, 0))))
        pieces.append(("handle", move(ellipsoid(wide * 1.3, wide, thick * 1.5, sides=8), middle, -grip, 0)))
    return pieces


def laptop(rng: Generator) -> Pieces:
    u = rng.uniform
    width, depth, thick = u(0.9, 1.2), u(0.55, 0.85), u(0.02, 0.08)
    opening = u(0.9, 2.4) if u() < 0.75 else u(0.1, 4.5)  # angle between the two halves
    plan = circle(24, u(6, 30))[:-1] * (width / 2, depth / 2)
    base = turn(prism(plan, thick, u(0.93, 1)), "x", np.pi / 2)
    if u() < 0.4:
        base = np.concatenate((base, box(width * 0.8, thick * u(0.2, 0.8), depth * 0.45, (0, thick / 2, -depth * 0.1))))
    screen = plan * (u(0.94, 1), u(0.9, 1.05)) + (0, depth / 2)
    lid = turn(prism(screen, u(0.015, 0.04), u(0.93, 1)), "x", np.pi / 2 - opening)
    return [("keyboard", base), ("screen", move(lid, 0, thick / 2, -depth / 2))]


def mug(rng: Generator) -> Pieces:
    """A cup with an inner wall (straight, conical, barrel, goblet) and an ear: round, angular, or two of them."""
    u, kind, sides = rng.uniform, rng.integers(4), (24, 24, 24, 24, 4, 6)[rng.integers(6)]
    radius, height, wall = u(0.25, 0.5), u(0.25, 1.0), u(0.02, 0.05)
    t = np.linspace(0, 1, 9)
    swell = (
        1 + 0 * t,
        1 - u(0.1, 0.5) * (1 - t),
        1 + u(-0.25, 0.35) * np.sin(np.pi * t),
        1 - u(0.2, 0.6) * (1 - t) ** u(2, 5),
    )[kind]
    outer = np.stack((radius * swell, height * t), axis=1)
    inner = outer[::-1] * (1 - wall / radius, 1) + (0, wall * 0.5)
    pieces: Pieces = [("cup", revolve([(0, 0), *outer.tolist(), *inner[:-1].tolist(), (0, wall)], sides))]
    if u() < 0.2:  # a foot or a saucer
        pieces.append(("cup", cylinder(radius * u(0.6, 1.5), u(0.02, 0.06))))
    reach, tall, at, thick = u(0.06, 0.3), height * u(0.15, 0.42), height * u(0.4, 0.6), u(0.015, 0.05)
    x = radius * float(np.interp(at / height, t, swell)) * 0.97
    bow = arc(reach, -np.pi / 2, np.pi / 2, 12, tall)
    power = u(0.3, 1.1)
    bow[:, 0] = reach * (bow[:, 0].clip(0) / reach) ** power
    ear = tube(move(bow, x, at, 0), thick, thick * u(0.8, 2), sides=8)
    ears = mirrored(ear) if u() < 0.06 else ear
    pieces.append(("handle", turn(ears, "y", u(-0.4, 0.4) + np.pi * (u() < 0.5))))
    return pieces


def pistol(rng: Generator) -> Pieces:
    """Barrel along z, grip below: automatic, revolver, long-barrelled, ray gun."""
    u, kind = rng.uniform, rng.integers(4)
    length, tall, wide = u(0.45, 1.3), u(0.1, 0.18), u(0.06, 0.13)
    if kind == 0:
        top = box(wide, tall, length, (0, 0, length / 2 - 0.1))
        rail = box(wide * 0.8, tall * 0.6, length * u(0.5, 0.9), (0, -tall * 0.7, length * 0.3))
        barrel = np.concatenate((top, rail))
    else:
        bore, back = u(0.03, 0.06), length * u(0.25, 0.4)
        pipe = rod((0, tall * 0.2, back - 0.1), (0, tall * 0.2, length), bore, bore * u(0.8, 1.3))
        frame = box(wide * 0.8, tall, back, (0, 0, back / 2 - 0.1))
        barrel = np.concatenate((pipe, frame))
        if kind == 1:
            drum = turn(cylinder(wide * u(0.8, 1.1), back * 0.7, sides=12), "x", np.pi / 2)
            barrel = np.concatenate((barrel, move(drum, 0, 0, 0.02)))
        if kind == 3:
            barrel = np.concatenate((barrel, move(ellipsoid(tall * 0.6, tall * 0.7, length * 0.3), 0, 0, length * 0.3)))
    lean, long, deep = u(-0.1, 0.5), u(0.3, 0.55), u(0.07, 0.12)
    t = np.linspace(0, 1, 8)
    grip = hull(-t * long, wide * u(0.4, 0.6), deep * (1 + u(-0.3, 0.4) * t + 0.1 * np.sin(6 * t)), 0.0, u(2.5, 5), 12)
    grip = move(turn(turn(grip, "x", -np.pi / 2), "x", lean), 0, -tall * 0.3, 0)
    guard = move(turn(ring(u(0.06, 0.1), 0.012, count=14, sides=5), "y", np.pi / 2), 0, -tall * 0.5 - 0.07, deep + 0.1)
    lever = rod((0, -tall * 0.5, deep + 0.08), (0, -tall * 0.5 - 0.1, deep + 0.1), 0.015, sides=6)
    if u() < 0.12:  # a stock: a rifle
        stock = hull(-0.1 - t * u(0.3, 0.6), wide * 0.4, tall * (0.4 + 0.4 * t), -0.1 * t, 4, 10)
        grip = np.concatenate((grip, stock))
    return [("barrel", barrel), ("handle", grip), ("trigger", np.concatenate((guard, lever)))]
