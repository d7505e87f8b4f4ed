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
    u, kind = rng.uniform, rng.integers(4)
    width, height, depth = u(0.35, 0.65), u(0.35, 0.8), u(0.1, 0.3)
    if kind == 1:
        width, height, depth = u(0.6, 0.95), u(0.3, 0.6), u(0.1, 0.25)
    t = np.linspace(0, 1, 9)
    belly = 1 + u(-0.1, 0.35) * np.sin(np.pi * t) - u(0, 0.35) * t
    flat = 1 - (u(0.2, 0.9) if kind == 0 else u(0, 0.4)) * t**2
    body = hull(t * height, width / 2 * belly, depth / 2 * flat * belly, 0, u(2.5, 8))
    pieces: Pieces = [("body", turn(body, "x", -np.pi / 2))]
    if kind == 3:  # a backpack: pocket in front, straps behind
        pieces.append(
            ("body", move(ellipsoid(width * 0.35, height * 0.25, depth * 0.3, 4), 0, height * 0.3, depth * 0.55))
        )
        strap = turn(arc(height * 0.42, -np.pi / 2, np.pi / 2, 12, height * 0.42), "y", np.pi / 2) * (1, 1, u(0.3, 0.7))
        strap = move(strap, width * 0.25, height * 0.5, -depth * 0.45)
        pieces.append(("handle", mirrored(tube(strap, 0.015, 0.035, sides=6))))
        return pieces
    reach, tall, thick = width * u(0.15, 0.42) * belly[-1], u(0.08, 0.5), u(0.012, 0.03)
    bow = move(tube(arc(reach, 0, np.pi, 14, tall), thick, thick * u(1, 2), sides=6), 0, height * 0.98, 0)
    gap = depth * 0.4 * u(0.3, 1)
    double = kind == 2 or u() < 0.3
    pieces.append(("handle", np.concatenate((move(bow, 0, 0, gap), bow - (0, 0, gap))) if double else bow))
    return pieces


def cap(rng: Generator) -> Pieces:
    """A crown and a peak: baseball cap, flat-topped cap, top hat or bowler with a brim all around, beret."""
    u, kind = rng.uniform, rng.choice(4, p=(0.5, 0.15, 0.25, 0.1))
    radius, long, tall = u(0.35, 0.45), u(1, 1.35), u(0.25, 0.5)
    angle = np.linspace(0, np.pi / 2, 9)
    power = u(2, 3) if kind != 1 else u(4, 8)
    crown = np.stack((radius * np.cos(angle) ** (2 / power), tall * np.sin(angle) ** (2 / power)), axis=1)
    if kind == 1:
        crown[:, 0] *= 1 + u(0, 0.3) * crown[:, 1] / tall
    shell = revolve(crown) * (1, 1, long)
    pieces: Pieces = [("crown", np.concatenate((shell, shell * 0.96)))]
    if kind == 0 and u() < 0.5:
        pieces.append(("crown", move(ellipsoid(0.03, 0.02, 0.03, sides=8), 0, tall, 0)))
    reach, droop, half = u(0.2, 0.42), u(-0.05, 0.5), u(0.9, 1.4)
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
    kind = rng.choice(3, p=(0.6, 0.25, 0.15))
    return _earbuds(rng) if kind == 1 else _headphones(rng, microphone=kind == 2)


def _headphones(rng: Generator, microphone: bool) -> Pieces:
    u = rng.uniform
    half, tall, cup, thick = u(0.3, 0.42), u(0.35, 0.55), u(0.1, 0.22), u(0.05, 0.14)
    band = tube(arc(half, -u(0, 0.3), np.pi + u(0, 0.3), 18, tall), u(0.012, 0.03), u(0.02, 0.07), sides=6)
    pieces: Pieces = [("headband", band)]
    if u() < 0.4:
        pieces.append(
            ("headband", tube(arc(half * 0.9, 0.6, np.pi - 0.6, 12, tall * 0.88), 0.015, u(0.03, 0.08), sides=6))
        )
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
        boom = np.stack(
            (start[0] * (1 - 0.6 * t**2), start[1] - u(0.1, 0.2) * t, u(0.25, 0.4) * np.sin(t * 1.5)), axis=1
        )
        return np.concatenate((tube(boom, 0.012, sides=6), ellipsoid(0.03, 0.03, 0.03, sides=8) + boom[-1]))
    fall = np.stack(
        (u(-0.3, 0.1) * t + u(0, 0.1) * np.sin(6 * t), -u(0.3, 0.8) * t, u(-0.1, 0.1) * np.sin(4 * t)), axis=1
    )
    return tube(start + fall, 0.012, sides=6)


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
    """Body from an outline in polar form: waisted (acoustic), horned (electric), V-shaped or round (banjo)."""
    u, kind = rng.uniform, rng.choice(4, p=(0.4, 0.35, 0.1, 0.15))
    width, tall, depth = u(0.3, 0.42), u(0.4, 0.55), u(0.08, 0.16) if kind in (0, 3) else u(0.03, 0.07)
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)  # from the bottom, counter-clockwise
    x, y = np.sin(angle), -np.cos(angle)
    if kind < 2:
        waist = u(0.15, 0.35) * np.exp(-(((y - u(0.1, 0.3)) / 0.25) ** 2))
        x = x * (1 - waist) * (1 - u(0.05, 0.3) * (y > 0) * y)
    if kind == 1:
        horns = np.array((u(0, 0.4), u(0, 0.4)))
        y = (
            y
            - 0.35 * np.exp(-((x / 0.22) ** 2)) * (y > 0)
            + np.where(x > 0, horns[0], horns[1]) * (np.abs(x) > 0.3) * (y > 0.2) * y
        )
    if kind == 2:
        y = y + u(0.3, 0.7) * (1 - np.abs(x)) * (y < 0)
        x = x * (1 - 0.5 * (y + 1) / 2)
    if kind == 3:
        tall = width * u(0.85, 1.1)
    outline = np.stack((x * width / 2, y * tall / 2), axis=1)
    pieces: Pieces = [("body", prism(outline, depth, u(0.88, 1.0)))]
    neck, thick, top = u(0.4, 0.75), u(0.04, 0.07), tall * 0.45
    pieces.append(
        ("neck", box(thick, neck + tall * 0.25, 0.035, (0, top + neck / 2 - tall * 0.12, depth / 2), taper=u(0.7, 1)))
    )
    lean, wide, long = u(0, 0.35), thick * u(1.1, 2.2), u(0.1, 0.2)
    shape = np.array(
        (
            (-thick / 2, 0),
            (thick / 2, 0),
            (wide / 2, long * u(0.2, 0.9)),
            (u(-0.3, 0.3) * wide, long),
            (-wide / 2, long * u(0.3, 0.9)),
        )
    )
    head = turn(prism(shape, 0.03), "x", -lean)
    pegs = mirrored(
        np.concatenate(
            [rod((wide * 0.3, s * long, 0), (wide * 0.8, s * long, 0), 0.01, sides=5) for s in (0.3, 0.6, 0.85)]
        )
    )
    pieces.append(("head", move(np.concatenate((head, turn(pegs, "x", -lean))), 0, top + neck, depth / 2)))
    return pieces


def knife(rng: Generator) -> Pieces:
    u, kind = rng.uniform, rng.integers(4)  # chef's, dagger, curved, cleaver
    length, width, side = u(0.5, 1), u(0.06, 0.18), rng.choice((-1, 1))
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
    grip, wide, thick = u(0.3, 0.55), u(0.035, 0.06), u(0.02, 0.05)
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
    opening = u(0.9, 2.4) if u() < 0.85 else u(2.4, 3.14)  # angle between the two halves
    plan = circle(24, u(6, 30))[:-1] * (width / 2, depth / 2)
    base = turn(prism(plan, thick, u(0.93, 1)), "x", np.pi / 2)
    if u() < 0.4:
        base = np.concatenate((base, box(width * 0.8, thick * u(0.2, 0.8), depth * 0.45, (0, thick / 2, -depth * 0.1))))
    screen = plan * (u(0.94, 1), u(0.9, 1.05)) + (0, depth / 2)
    lid = turn(prism(screen, u(0.015, 0.04), u(0.93, 1)), "x", np.pi / 2 - opening)
    return [("keyboard", base), ("screen", move(lid, 0, thick / 2, -depth / 2))]


def mug(rng: Generator) -> Pieces:
    """A cup with an inner wall (straight, conical, barrel, goblet) and an ear: round, angular, or two of them."""
    u, kind = rng.uniform, rng.integers(4)
    radius, height, wall = u(0.25, 0.45), u(0.4, 1.0), u(0.02, 0.05)
    t = np.linspace(0, 1, 9)
    swell = (
        1 + 0 * t,
        1 - u(0.1, 0.5) * (1 - t),
        1 + u(-0.25, 0.35) * np.sin(np.pi * t),
        1 - u(0.2, 0.6) * (1 - t) ** u(2, 5),
    )[kind]
    outer = np.stack((radius * swell, height * t), axis=1)
    inner = outer[::-1] * (1 - wall / radius, 1) + (0, wall * 0.5)
    pieces: Pieces = [("cup", revolve([(0, 0), *outer.tolist(), *inner[:-1].tolist(), (0, wall)], sides=24))]
    if u() < 0.2:  # a foot or a saucer
        pieces.append(("cup", cylinder(radius * u(0.6, 1.5), u(0.02, 0.06))))
    reach, tall, at, thick = u(0.12, 0.3), height * u(0.25, 0.42), height * u(0.4, 0.6), u(0.02, 0.05)
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
    length, tall, wide = u(0.6, 1), u(0.1, 0.18), u(0.06, 0.11)
    if kind == 0:
        top = box(wide, tall, length, (0, 0, length / 2 - 0.1))
        barrel = np.concatenate(
            (top, box(wide * 0.8, tall * 0.6, length * u(0.5, 0.9), (0, -tall * 0.7, length * 0.3)))
        )
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
    return [("barrel", barrel), ("handle", grip), ("trigger", np.concatenate((guard, lever)))]
