"""Airplane, car, motorbike, rocket, skateboard: labelled pieces; the front is +z (a rocket stands, its nose up)."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy import ndarray
from numpy.random import Generator

from datasets.shapes.primitives import (
    Pieces,
    box,
    cylinder,
    ellipsoid,
    hull,
    mirrored,
    move,
    revolve,
    ring,
    rod,
    slab,
    turn,
    wing,
)


def airplane(rng: Generator) -> Pieces:
    u, fighter = rng.uniform, rng.random() < 0.35
    length, radius = u(1.3, 2.2), u(0.06, 0.14)
    t = np.linspace(0, 1, 14)
    thick = radius * (1 - np.abs(2 * t - u(0.9, 1.2)) ** u(2, 6)).clip(0.04) ** u(0.4, 0.7)
    z, rise = (t - 0.5) * length, radius * 0.5 * (1 - t) ** 3
    pieces: Pieces = [("body", hull(z, thick * u(0.9, 1.2), thick, rise, u(2, 2.6)))]
    if fighter or u() < 0.2:
        canopy = ellipsoid(radius * 0.6, radius * 0.7, length * 0.12)
        pieces.append(("body", move(canopy, 0, radius * 0.8, length * 0.2)))
    span, chord, taper = u(0.3, 1.3), length * u(0.1, 0.28), u(0.25, 1)
    sweep, lift, at = u(-0.05, 0.7) * span, u(-0.1, 0.2) * span, length * u(-0.08, 0.12)
    if fighter and u() < 0.6:  # a delta
        span, chord, taper = u(0.35, 0.6), length * u(0.4, 0.6), u(0.05, 0.25)
        sweep, at = chord * (1 - taper) / 2, -length * u(0.05, 0.15)
    level = radius * u(-0.7, 0.8)
    tip = (span, level + lift, at - sweep)
    blade = mirrored(wing((0, level, at), tip, chord, chord * taper, (0, u(0.015, 0.04), 0)))
    pieces.append(("wing", blade))
    if not fighter and u() < 0.15:  # a biplane
        gap = u(0.2, 0.35)
        struts = mirrored(rod((span * 0.7, level, at), (span * 0.7, level + gap, at), 0.01))
        pieces += [("wing", move(blade, 0, gap, 0)), ("wing", struts)]
    if u() > 0.05:
        pieces.append(("tail", _tail(rng, length, radius, span)))
    pieces += _engines(rng, length, radius, span, (level, at, sweep), fighter)
    return pieces


def _tail(rng: Generator, length: float, radius: float, span: float) -> ndarray:
    """A fin and a stabiliser: low, as a T, as a V, or two fins."""
    u, kind = rng.uniform, rng.integers(4)
    chord, tall, back = length * u(0.08, 0.16), length * u(0.1, 0.2), -length * u(0.4, 0.47)
    sweep = tall * u(0.2, 0.9)
    fin = wing((0, 0, back), (0, tall, back - sweep), chord * 1.3, chord * u(0.4, 0.9), (0.02, 0, 0))
    reach = span * u(0.25, 0.5)
    level = (radius * 0.5, tall, 0, radius * 0.3)[kind]
    shift = -sweep if kind == 1 else 0
    flat = mirrored(
        wing((0, level, back + shift), (reach, level, back + shift - reach * 0.4), chord, chord * 0.6, (0, 0.02, 0))
    )
    if kind == 2:
        return mirrored(turn(fin, "z", -u(0.6, 0.9)))
    if kind == 3:
        return np.concatenate((mirrored(move(fin, reach * u(0.2, 0.9), level, 0)), flat))
    return np.concatenate((fin, flat))


def _engines(rng: Generator, length: float, radius: float, span: float, place: tuple, fighter: bool) -> Pieces:
    """Pods under the wings, pods on the tail, a propeller, or jet pipes."""
    u, (level, at, sweep) = rng.uniform, place
    size, long = radius * u(0.35, 0.65), length * u(0.08, 0.16)
    pod = turn(cylinder(size, long, size * u(0.6, 1), sides=12), "x", np.pi / 2)
    if fighter:
        return [("engine", mirrored(move(pod, size * u(0.5, 1.2), 0, -length * 0.52)))]
    kind = rng.integers(3)
    if kind == 0:
        shares = (0.35,) if u() < 0.6 else (0.28, 0.58)
        pods = [move(pod, s * span, level - size * 1.2, at - s * sweep) for s in shares]
        return [("engine", mirrored(np.concatenate(pods)))]
    if kind == 1:
        return [("engine", mirrored(move(pod, radius + size, radius * 0.6, -length * u(0.3, 0.4))))]
    blades = rod((-length * 0.12, 0, length * 0.5), (length * 0.12, 0, length * 0.5), 0.015, sides=4)
    spinner = move(ellipsoid(size * 0.5, size * 0.5, size, sides=8), 0, 0, length * 0.5)
    return [("engine", np.concatenate((turn(blades, "z", u(0, 3)), spinner)))]


def car(rng: Generator) -> Pieces:
    """A lofted lower body, a hood, a roof over pillars, four wheels; sedan, hatchback, van, pickup, racer."""
    u, kind = rng.uniform, rng.choice(5, p=(0.3, 0.2, 0.2, 0.15, 0.15))
    length, width, wheel = u(1.5, 2.1), u(0.6, 0.85), u(0.13, 0.2)
    low, belt, tall = wheel * u(0.5, 1), u(0.25, 0.38), u(0.2, 0.34)
    if kind == 2:
        tall *= u(1.3, 2)
    if kind == 4:
        belt, tall, low = belt * 0.7, tall * 0.6, wheel * 0.4
    t = np.linspace(-1, 1, 12)
    plan = width / 2 * (1 - 0.15 * np.abs(t) ** 4)
    body = hull(t * length / 2, plan, belt / 2 * (1 - u(0, 0.4) * t**4), low + belt / 2, u(4, 8))
    pieces: Pieces = [("body", body)]
    top = low + belt
    front = (
        length * (u(0.05, 0.25), u(0.1, 0.28), u(0.32, 0.46), u(0.15, 0.3), u(-0.02, 0.15))[kind]
    )  # base of the windscreen
    rear = -length * (u(0.25, 0.4), u(0.44, 0.49), u(0.46, 0.5), u(-0.05, 0.1), u(0.2, 0.45))[kind]
    rake, back = tall * u(0.5, 1.6) * (kind != 2), tall * u(0.0, 1.2) * (kind in (0, 4))
    hood = np.array(
        [
            [[s * width * 0.43, top + 0.01, front] for s in (-1, 1)],
            [[s * width * 0.4, top - u(0, 0.08), length * 0.48] for s in (-1, 1)],
        ]
    )
    pieces.append(("hood", slab(hood, (0, 0.02, 0))))
    pieces.append(
        ("roof", _cabin(width * 0.45, width * u(0.3, 0.43), top, tall, (rear, rear + back, front - rake, front)))
    )
    disc = move(turn(cylinder(wheel, u(0.08, 0.16), sides=14), "z", -np.pi / 2), width / 2 - 0.1, wheel, 0)
    axles = (length * u(0.28, 0.34), -length * u(0.26, 0.34))
    pieces.append(("wheel", mirrored(np.concatenate([move(disc, 0, 0, z) for z in axles]))))
    if kind == 3:
        rails = mirrored(box(0.04, u(0.05, 0.15), length / 2 + rear, (width / 2 - 0.03, top, (rear - length / 2) / 2)))
        pieces.append(("body", rails))
    if kind == 4 and u() < 0.7:
        pieces.append(("body", box(width * 0.9, 0.03, 0.12, (0, top + tall * u(0.3, 0.9), -length * 0.46))))
    return pieces


def _cabin(bottom: float, top: float, level: float, tall: float, z: tuple) -> ndarray:
    """Roof and windows: a skin from the rear (two z) over the top to the front (two z), half widths narrowing."""
    half = np.array((bottom, top, top, bottom))[:, None]
    skin = np.empty((4, 5, 3))
    skin[:, :, 0] = half * np.array((-1, -0.9, 0, 0.9, 1))
    skin[:, :, 1] = level + np.array((0, tall, tall, 0))[:, None] * (0.97, 1, 1.02, 1, 0.97)
    skin[:, :, 2] = np.array(z)[:, None]
    return np.concatenate((slab(skin, (0, 0.01, 0)), mirrored(skin[None, :, 0])))


def motorbike(rng: Generator) -> Pieces:
    u, kind = rng.uniform, int(rng.integers(4))  # road, sport, chopper, scooter
    wheel, tyre = u(0.24, 0.34) * (0.65 if kind == 3 else 1), u(0.04, 0.08)
    front, rear = u(0.55, 0.7) + 0.2 * (kind == 2), -u(0.5, 0.65)
    disc = turn(ring(wheel - tyre, tyre, tyre * u(0.8, 1.4), count=16), "y", np.pi / 2)
    hub = move(turn(cylinder(wheel * u(0.2, 0.7), tyre, sides=10), "z", np.pi / 2), tyre / 2, 0, 0)
    both = np.concatenate((disc, hub))
    pieces: Pieces = [("wheel", np.concatenate((move(both, 0, wheel, front), move(both, 0, wheel, rear))))]
    level = 2 * wheel * u(1.0, 1.15) if kind != 3 else 0.6
    head = np.array((0, level + u(0.15, 0.3), front - u(0.2, 0.3) - 0.2 * (kind == 2)))  # the steering head
    fork = mirrored(rod((0.07, wheel, front), move(head, 0.07, 0, 0), 0.025, sides=6))
    pieces.append(("frame", fork))
    if kind != 3:
        tank = ellipsoid(u(0.09, 0.16), u(0.08, 0.15), u(0.18, 0.28), u(2, 3))
        pieces.append(("tank", move(tank, 0, level + 0.08, head[2] - u(0.25, 0.35))))
    pieces.append(("seat", _saddle(rng, level, head[2] - 0.45, rear - u(-0.1, 0.15))))
    grip, rise = u(0.2, 0.4), u(-0.05, 0.15) + 0.2 * (kind == 2)
    bars = [head, move(head, grip * 0.5, rise, -0.02), move(head, grip, rise, -u(0.05, 0.2))]
    pieces.append(("handle", mirrored(np.concatenate([rod(a, b, 0.02, sides=6) for a, b in pairwise(bars)]))))
    lamp = ellipsoid(u(0.05, 0.1), u(0.05, 0.1), u(0.05, 0.1), sides=10) + head
    pieces.append(("light", move(lamp, 0, -u(0, 0.1), 0.1)))
    pieces += _engine_block(rng, kind, level, wheel, front, rear)
    if kind == 1:
        t = np.linspace(0, 1, 7)
        fairing = hull(front - 0.5 + 0.5 * t, 0.15 * (1 - 0.7 * t**2), 0.2 * (1 - 0.6 * t**2), level - 0.05, 2.5, 12)
        pieces.append(("frame", fairing))
    return pieces


def _saddle(rng: Generator, level: float, start: float, end: float) -> ndarray:
    t = np.linspace(0, 1, 8)
    rise = level + rng.uniform(-0.05, 0.05) + rng.uniform(0, 0.2) * t**3 - rng.uniform(0, 0.12) * np.sin(np.pi * t)
    return hull(
        start + (end - start) * t,
        rng.uniform(0.07, 0.15) * (0.6 + 0.4 * np.sin(np.pi * t)),
        rng.uniform(0.03, 0.07),
        rise,
        3,
        10,
    )


def _engine_block(rng: Generator, kind: int, level: float, wheel: float, front: float, rear: float) -> Pieces:
    """Engine, frame tubes, exhaust; a scooter has a foot board and a shell over the rear wheel instead."""
    u = rng.uniform
    if kind == 3:
        floor = box(0.28, 0.06, 0.45, (0, wheel, 0.1))
        shield = wing((0, wheel, front - 0.25), (0, level + 0.1, front - 0.35), 0.06, 0.06, (u(0.25, 0.35), 0, 0))
        shell = move(ellipsoid(0.14, 0.2, 0.32, 2.5), 0, level - 0.2, rear + 0.1)
        return [("frame", np.concatenate((floor, shield, shell)))]
    low = wheel * u(0.6, 1.1)
    block = box(u(0.16, 0.28), level - low, u(0.25, 0.4), (0, (level + low) / 2 - 0.05, u(-0.1, 0.1)), taper=u(0.6, 1))
    swing = mirrored(rod((0.08, wheel, rear), (0.08, level * 0.8, -0.1), 0.025, sides=6))
    pipe = rod((0.12, low, 0.1), (0.14, low + u(-0.02, 0.15), rear - u(-0.2, 0.1)), 0.03, 0.05)
    if u() < 0.5:
        pipe = mirrored(pipe)
    return [("frame", np.concatenate((block, swing, pipe)))]


def rocket(rng: Generator) -> Pieces:
    u, kind = rng.uniform, rng.integers(4)  # toy, missile, launcher with boosters, stages
    radius, height, tip = u(0.08, 0.2), u(0.8, 1.5), u(0.2, 0.5)
    if kind == 1:
        radius *= 0.5
    t = np.linspace(0, 1, 9)
    width = radius * (1 - u(0, 0.5) * np.abs(2 * t - 1) ** 2 if kind == 0 else np.ones(9))
    if kind == 3:
        width = radius * np.where(t > u(0.3, 0.7), u(0.55, 0.85), 1)
    skin = np.stack((width, t * height), axis=1)
    pieces: Pieces = [("body", revolve([(0, 0), *skin.tolist()]))]
    nose = np.stack((width[-1] * (1 - t ** u(1, 2.5)) ** u(0.6, 1), height + tip * t), axis=1)
    pieces.append(("nose", revolve(nose)))
    if kind == 2:
        small, tall = radius * u(0.4, 0.8), height * u(0.4, 0.8)
        booster = revolve([(0, 0), (small, 0), (small, tall), (0, tall + small * 2)], sides=12)
        booster = move(booster, radius + small)
        count = int(rng.choice((2, 2, 4)))
        pieces.append(("body", np.concatenate([turn(booster, "y", k * 2 * np.pi / count) for k in range(count)])))
    if u() < 0.1:  # without fins
        return pieces
    count, reach, chord = int(rng.integers(2, 6)), radius * u(0.4, 2.4), height * u(0.08, 0.4)
    if count == 2:  # a shuttle
        reach, chord = radius * u(2, 4), height * u(0.25, 0.5)
    fin = wing((0, 0, 0), (0, reach, -u(-0.2, 1) * chord), chord, chord * u(0.1, 0.9), (0.02, 0, 0))
    fin = turn(turn(fin, "x", -np.pi / 2), "y", np.pi / 2)
    fin = move(fin, -width[0] * 0.9, chord * u(0.5, 0.6))
    pieces.append(("fin", np.concatenate([turn(fin, "y", k * 2 * np.pi / count) for k in range(count)])))
    pieces.append(("body", revolve([(radius * 0.5, 0), (radius * u(0.6, 0.9), -u(0.05, 0.15))], sides=12)))
    return pieces


def skateboard(rng: Generator) -> Pieces:
    u = rng.uniform
    length, width, wheel = u(0.9, 1.4), u(0.2, 0.36), u(0.03, 0.07)
    s, t = np.meshgrid(np.linspace(-1, 1, 7), np.linspace(-1, 1, 17))
    narrow, flat = (1 - np.abs(t) ** u(3, 12)).clip(0.03) ** 0.5, u(0.55, 0.8)
    waist = 1 - u(0, 0.3) * (1 - np.abs(t)) * (u() < 0.3)
    kick = u(0, 0.9) * np.where(t > 0, 1, u(0, 1))
    z = t * length / 2
    rise = kick * (np.abs(t) - flat).clip(0) * length / 2 + u(-0.05, 0.1) * s**2 * width + u(-0.06, 0.04) * (1 - t * t)
    deck = np.stack((s * width / 2 * narrow * waist, rise, z), axis=2)
    pieces: Pieces = [("deck", slab(deck, (0, u(0.015, 0.04), 0)))]
    drop, x = u(0.04, 0.1), width * u(0.3, 0.5)
    roll = move(turn(cylinder(wheel, u(0.03, 0.07), sides=12), "z", -np.pi / 2), x, -drop - 0.02, 0)
    spot = length / 2 * flat * u(0.75, 1)
    pieces.append(("wheel", mirrored(np.concatenate((move(roll, 0, 0, spot), roll - (0, 0, spot))))))
    truck = np.concatenate(
        (box(0.06, drop, 0.09, (0, -drop / 2, 0), 1.4), rod((-x, -drop - 0.02, 0), (x, -drop - 0.02, 0), 0.015))
    )
    pieces.append(("truck", np.concatenate((move(truck, 0, 0, spot), truck - (0, 0, spot)))))
    return pieces
