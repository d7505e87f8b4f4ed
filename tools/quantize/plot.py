"""A scatter plot as PNG: policies tried are pale dots, rows of the table have names, the best of a size are joined."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.draw import PALETTE
from utils.errors import UserError

Spot = tuple[float, float]
WIDTH, HEIGHT = 900, 560
LETTER = 6.0  # pixels across
LEFT, RIGHT, TOP, BOTTOM = 70, 30, 50, 60


@dataclass
class Series:
    """Dots of one colour."""

    name: str
    points: list[tuple[float, float]]


def pareto(points: Sequence[tuple[float, float, str]]) -> list[tuple[float, float, str]]:
    """Those that nothing smaller equals, from small to large."""
    front: list[tuple[float, float, str]] = []
    for point in sorted(points, key=lambda each: (each[0], -each[1])):
        if not front or point[1] > front[-1][1]:
            front.append(point)
    return front


def draw_plot(
    path: Path, named: Sequence[tuple[float, float, str]], tried: Sequence[Series], title: str, label: str
) -> None:
    """named: x, y, name. x is logarithmic, as sizes go from a fourteenth to the whole."""
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise UserError("the plot needs Pillow: pip install pillow") from error
    if not named:
        return
    image = Image.new("RGB", (WIDTH, HEIGHT), "white")
    pen = ImageDraw.Draw(image)
    every = [(x, y) for x, y, _ in named] + [point for series in tried for point in series.points]
    place = Scale(every)
    _axes(pen, place, title, label)
    for number, series in enumerate(tried):
        color = tuple(int(c) for c in PALETTE[number % len(PALETTE)])
        for point in series.points:
            _dot(pen, place(*point), 2, tuple((c + 2 * 255) // 3 for c in color))
        if series.points:
            across = LEFT + 10 + 150 * number
            _dot(pen, (across, HEIGHT - 18), 4, color)
            pen.text((across + 10, HEIGHT - 24), f"{series.name}, as judged", fill="black")
    pen.line([place(x, y) for x, y, _ in pareto(named)], fill=(120, 120, 120), width=1)
    for x, y, _ in named:
        _dot(pen, place(x, y), 5, (30, 30, 30))
    for spot, label_spot, name in labels([(place(x, y), f"{name}: {y:.1f}") for x, y, name in named]):
        near = label_spot[0] - 3 if label_spot[0] > spot[0] else label_spot[0] + LETTER * len(name)
        pen.line([spot, (near, label_spot[1] + 6)], fill=(120, 120, 120))
        pen.text(label_spot, name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def labels(dots: Sequence[tuple[Spot, str]]) -> list[tuple[Spot, Spot, str]]:
    """Dot, upper left corner of its text, text: from above down, no text over another one."""
    placed: list[tuple[Spot, Spot, str]] = []
    for dot, name in sorted(dots, key=lambda each: each[0][1]):
        width = LETTER * len(name)
        x, y = (dot[0] + 14 if dot[0] + 14 + width < WIDTH else dot[0] - 14 - width), dot[1] - 6
        for _, (left, top), other in placed:
            if left < x + width and x < left + LETTER * len(other):
                y = max(y, top + 13)
        placed.append((dot, (x, y), name))
    return placed


class Scale:
    """Data to pixels, with a margin."""

    def __init__(self, points: Sequence[tuple[float, float]]):
        xs, ys = [math.log10(x) for x, _ in points], [y for _, y in points]
        self.x0, self.x1, self.y0, self.y1 = min(xs), max(xs), min(ys), max(ys)
        self.x_range, self.y_range = (self.x1 - self.x0) or 1.0, (self.y1 - self.y0) or 1.0

    def __call__(self, x: float, y: float) -> tuple[float, float]:
        across = 0.05 + 0.85 * (math.log10(x) - self.x0) / self.x_range
        up = 0.05 + 0.9 * (y - self.y0) / self.y_range
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM)


def _axes(pen: Any, place: Scale, title: str, label: str) -> None:
    pen.text((LEFT, 16), title, fill="black")
    pen.text((WIDTH - RIGHT - 110, HEIGHT - BOTTOM + 24), label, fill="black")
    pen.line([(LEFT, TOP), (LEFT, HEIGHT - BOTTOM), (WIDTH - RIGHT, HEIGHT - BOTTOM)], fill="black")
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = place.y0 + share * place.y_range
        x = 10 ** (place.x0 + share * place.x_range)
        across, up = place(x, y)
        pen.line([(LEFT - 4, up), (LEFT, up)], fill="black")
        pen.text((LEFT - 45, up - 6), f"{y:.1f}", fill="black")
        pen.line([(across, HEIGHT - BOTTOM), (across, HEIGHT - BOTTOM + 4)], fill="black")
        pen.text((across - 14, HEIGHT - BOTTOM + 8), f"{x:.0f}", fill="black")


def _dot(pen: Any, spot: Sequence[float], radius: int, color: tuple[int, ...]) -> None:
    x, y = spot
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)
