"""Line charts as PNG with NumPy alone: figures against a size, one line a method."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray

from tools.draw import PALETTE, write_png
from utils.errors import UserError

FINE = 3  # lines are drawn this much larger and averaged: smooth edges
LEFT, RIGHT, TOP, BOTTOM = 76, 24, 60, 56  # pixels around the chart
INK, GRID = (60, 60, 60), (225, 225, 225)
# Letters of 5 x 7 pixels: a byte a column, the lowest bit on top.
CHARACTERS = " %()+,-./0123456789:=ABCDEFGHIJKLMNOPQRSTUVWXYZ_abcdefghijklmnopqrstuvwxyz"
COLUMNS = bytes.fromhex(
    "0000000000 2313086462 001c224100 0041221c00 08083e0808 0050300000 0808080808 0060600000 2010080402 3e5149453e"
    "00427f4000 4261514946 2141454b31 1814127f10 2745454539 3c4a494930 0171090503 3649494936 064949291e 0036360000"
    "1414141414 7e1111117e 7f49494936 3e41414122 7f4141221c 7f49494941 7f09090901 3e4149497a 7f0808087f 00417f4100"
    "2040413f01 7f08142241 7f40404040 7f020c027f 7f0408107f 3e4141413e 7f09090906 3e4151215e 7f09192946 4649494931"
    "01017f0101 3f4040403f 1f2040201f 3f4038403f 6314081463 0708700807 6151494543 4040404040 2054545478 7f48444438"
    "3844444420 384444487f 3854545418 087e090102 0c5252523e 7f08040478 00447d4000 2040443d00 7f10284400 00417f4000"
    "7c04180478 7c08040478 3844444438 7c14141408 081414187c 7c08040408 4854545420 043f444020 3c4040207c 1c2040201c"
    "3c4030403c 4428102844 0c5050503c 4464544c44"
)


def plot_lines(
    lines: Mapping[str, Sequence[Sequence[float]]],
    path: str | Path,
    *,
    title: str = "",
    x: str = "",
    y: str = "",
    log_x: bool = False,
    width: int = 720,
    height: int = 440,
) -> None:
    """Lines by name, each a sequence of (x, y) or (x, y, deviation); where there are up to 8 values of x they are the
    ticks. log_x: a doubling is always equally wide."""
    values = [(place, *point) for place, name in enumerate(lines) for point in lines[name]]
    if not values or not all(math.isfinite(number) for point in values for number in point):
        raise UserError(f"{path}: nothing to draw, or numbers that are not finite")
    spread = [point[3] if len(point) > 3 else 0.0 for point in values]
    lows, highs = zip(*((point[2] - s, point[2] + s) for point, s in zip(values, spread)))
    x_ticks = sorted({point[1] for point in values})
    x_ticks = x_ticks if len(x_ticks) <= 8 else _ticks(min(x_ticks), max(x_ticks))
    y_ticks = _ticks(min(lows), max(highs))
    chart = _Chart(width, height, (min(x_ticks), max(x_ticks)), (y_ticks[0], y_ticks[-1]), log_x)
    for tick in y_ticks:
        chart.line((chart.x_range[0], tick), (chart.x_range[1], tick), GRID, 1)
    for name, points in lines.items():
        color = tuple(PALETTE[list(lines).index(name) % len(PALETTE)].tolist())
        for before, after in itertools.pairwise(points):
            chart.line(before[:2], after[:2], color, 2)
        for point in points:
            chart.dot(point[0], point[1], color)
            if len(point) > 2 and point[2] > 0:
                chart.line((point[0], point[1] - point[2]), (point[0], point[1] + point[2]), color, 1)
    image = chart.finished()
    for tick in x_ticks:
        column, _ = chart.place(tick, y_ticks[0])
        _write(image, _number(tick), int(column), height - BOTTOM + 8, "middle")
    for tick in y_ticks:
        _write(image, _number(tick), LEFT - 8, int(chart.place(x_ticks[0], tick)[1]) - 7, "end")
    _write(image, title, width // 2, 8, "middle")
    _write(image, x, (LEFT + width - RIGHT) // 2, height - 24, "middle")
    _write(image, y, 8, TOP - 32, "start")
    _legend(image, list(lines), chart)
    write_png(path, image)


class _Chart:
    """The area between the axes, in units of the data."""

    def __init__(
        self, width: int, height: int, x_range: tuple[float, float], y_range: tuple[float, float], log_x: bool
    ):
        self.width, self.height, self.x_range, self.y_range, self.log_x = width, height, x_range, y_range, log_x
        self.image = np.full((height * FINE, width * FINE, 3), 255, dtype=np.uint8)
        self.used = np.zeros((height, width), dtype=bool)
        if log_x and x_range[0] <= 0:
            raise UserError(f"plot: x starts at {x_range[0]}; a logarithmic axis needs numbers above 0")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Pixels from the left and from the top."""
        low, high, value = (math.log(v) if self.log_x else v for v in (*self.x_range, x))
        across = (value - low) / max(high - low, 1e-12)
        up = (y - self.y_range[0]) / max(self.y_range[1] - self.y_range[0], 1e-12)
        return LEFT + across * (self.width - LEFT - RIGHT), self.height - BOTTOM - up * (self.height - TOP - BOTTOM)

    def line(self, start: Sequence[float], end: Sequence[float], color: tuple[int, ...], thick: float) -> None:
        (x0, y0), (x1, y1) = self.place(*start), self.place(*end)
        share = np.linspace(0, 1, 2 + int(FINE * max(abs(x1 - x0), abs(y1 - y0))))
        self._discs(x0 + share * (x1 - x0), y0 + share * (y1 - y0), thick / 2, color)

    def dot(self, x: float, y: float, color: tuple[int, ...]) -> None:
        across, down = self.place(x, y)
        self._discs(np.array([across]), np.array([down]), 4, color)

    def _discs(self, x: ndarray, y: ndarray, radius: float, color: tuple[int, ...]) -> None:
        """Around every pixel (x, y)."""
        reach = radius * FINE
        steps = np.arange(-math.ceil(reach), math.ceil(reach) + 1)
        dy, dx = (offset.ravel() for offset in np.meshgrid(steps, steps, indexing="ij"))
        inside = dx**2 + dy**2 <= reach**2
        rows = (y * FINE).astype(int)[:, None] + dy[inside]
        columns = (x * FINE).astype(int)[:, None] + dx[inside]
        self.image[rows, columns] = color
        if color != GRID:
            for across, down in zip(x.astype(int)[::8], y.astype(int)[::8]):
                self.used[down - 8 : down + 9, across - 8 : across + 9] = True

    def finished(self) -> ndarray:
        return self.image.reshape(self.height, FINE, self.width, FINE, 3).mean((1, 3)).astype(np.uint8)


def _legend(image: ndarray, names: list[str], chart: _Chart) -> None:
    """In the corner that the lines leave freest."""
    wide, high = 30 + 12 * max(map(len, names)), 20 * len(names)
    lefts = (LEFT + 10, image.shape[1] - RIGHT - 10 - wide)
    tops = (TOP + 6, image.shape[0] - BOTTOM - 6 - high)
    corners = [(top, left) for top in tops for left in lefts]
    top, left = min(corners, key=lambda c: chart.used[c[0] : c[0] + high, c[1] : c[1] + wide].sum())
    for place, name in enumerate(names):
        row = top + 20 * place
        image[row + 5 : row + 9, left : left + 22] = PALETTE[place % len(PALETTE)]
        _write(image, name, left + 30, row, "start")


def _write(image: ndarray, text: str, x: int, y: int, anchor: str) -> None:
    """Letters of 10 x 14 pixels, 12 apart, top at y."""
    x -= {"start": 0, "middle": 6 * len(text), "end": 12 * len(text)}[anchor]
    for place, character in enumerate(text):
        found = CHARACTERS.find(character)
        columns = np.frombuffer(COLUMNS, np.uint8)[5 * max(found, 0) : 5 * max(found, 0) + 5]
        dots = (columns >> np.arange(8)[:, None] & 1).astype(bool).repeat(2, 0).repeat(2, 1)  # (16, 10)
        left = x + 12 * place
        if left >= 0 and left + 10 <= image.shape[1] and y >= 0 and y + 16 <= image.shape[0]:
            image[y : y + 16, left : left + 10][dots] = INK


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from below to above."""
    if high <= low:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / 5
    power = 10 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [step * i for i in range(first, last + 1)]


def _number(value: float) -> str:
    return f"{value:.10g}" if abs(value) >= 1e4 or value == 0 else f"{value:.4g}"
