"""Pictures of point clouds with NumPy alone: shaded splats on white, y up, written as PNG."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray

from utils.errors import UserError

PALETTE = np.array(
    [
        (38, 99, 160), (232, 119, 34), (58, 145, 88), (196, 54, 62), (125, 92, 172), (0, 152, 166),
        (214, 160, 28), (205, 92, 148), (110, 120, 130), (139, 94, 60), (96, 168, 210), (130, 170, 50),
    ],
    dtype=np.uint8,
)  # fmt: skip
_GREY = (190, 190, 190)


def render(
    points: ndarray,
    colors: ndarray | None = None,
    size: int = 256,
    azimuth: float = 35.0,
    elevation: float = 20.0,
    splat: float | None = None,
    frame: ndarray | None = None,
) -> ndarray:
    """Image (size, size, 3) uint8 of one cloud (N, 3), seen from the given angles in degrees.

    `colors`: N whole numbers (places in the palette, negative ones are grey), (N, 3) of 0..1 or uint8, or None.
    `splat` is the radius of a point as a share of the image; by default it follows from the number of points. `frame`
    is the cloud that sets centre and scale: pass the whole cloud to draw its visible and its reconstructed part alike.
    """
    points, rgb = _checked(points, colors)
    fine = 2 * size  # drawn twice as large and averaged: smooth edges
    image = np.full((fine, fine, 3), 255, dtype=np.uint8)
    if len(points):
        frame = points if frame is None or not len(frame) else _checked(frame, None)[0]
        axes, middle = _camera(azimuth, elevation), (frame.max(0) + frame.min(0)) / 2
        view, bounds = (points - middle) @ axes, (frame - middle) @ axes
        pixel = 0.46 * fine / max(float(np.linalg.norm(bounds[:, :2], axis=1).max()), 1e-9)
        radius = fine * (min(0.02, 0.5 / np.sqrt(len(points))) if splat is None else splat)
        _splat(image, view * pixel, rgb, max(radius, 1.0))
    smooth = image.reshape(size, 2, size, 2, 3).mean((1, 3)).astype(np.uint8)
    return smooth | 7  # 32 levels a channel look the same and halve the file


def _splat(image: ndarray, view: ndarray, rgb: ndarray, radius: float) -> None:
    """Little spheres, far ones first: where several fall on a pixel, the last one written is the nearest."""
    size = len(image)
    order = np.argsort(view[:, 2])
    view, rgb = view[order], rgb[order]
    near = (view[:, 2] - view[0, 2]) / max(view[-1, 2] - view[0, 2], 1e-9)  # 0 far, 1 near
    fade = 0.55 * (1 - near)[:, None]
    rgb = rgb * (1 - fade) + 255 * fade
    reach = np.arange(-int(radius), int(radius) + 1)
    dy, dx = (offset.ravel() for offset in np.meshgrid(reach, reach, indexing="ij"))
    away = np.hypot(dx, dy) / radius
    dx, dy, away = dx[away <= 1], dy[away <= 1], away[away <= 1]
    x = (size / 2 + view[:, :1]).astype(np.int64) + dx  # (N, D)
    y = (size / 2 - view[:, 1:2]).astype(np.int64) + dy
    shade = rgb[:, None] * (1 - 0.35 * away**2)[:, None]  # (N, D, 3), darker towards the rim
    inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    image[y[inside], x[inside]] = shade[inside].astype(np.uint8)


def _camera(azimuth: float, elevation: float) -> ndarray:
    """Columns: the camera's right, up and backward (towards the viewer) in the world."""
    a, e = np.radians(azimuth), np.radians(elevation)
    right = np.array((np.cos(a), 0, -np.sin(a)))
    backward = np.array((np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)))
    return np.stack((right, np.cross(backward, right), backward), axis=1)


def _checked(points: ndarray, colors: ndarray | None) -> tuple[ndarray, ndarray]:
    """Finite points as float64 and a colour of 0..255 for each."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserError(f"a cloud to draw must have shape (N, 3), found {points.shape}")
    rgb = np.zeros(len(points), dtype=np.int64) if colors is None else np.asarray(colors)
    if rgb.shape not in ((len(points),), (len(points), 3)):
        raise UserError(f"colors for {len(points)} points must have shape (N,) or (N, 3), found {rgb.shape}")
    if rgb.ndim == 1:
        rgb = np.where((rgb < 0)[:, None], _GREY, PALETTE[rgb.astype(np.int64) % len(PALETTE)])
    elif rgb.dtype != np.uint8:
        rgb = rgb.clip(0, 1) * 255
    finite = np.isfinite(points).all(1)
    return points[finite], rgb[finite].astype(np.float64)


def draw_clouds(
    clouds: Sequence[ndarray],
    colors: Sequence[ndarray | None] | None,
    path: str | Path,
    columns: int = 8,
    size: int = 200,
    frames: Sequence[ndarray] | None = None,
    **view: float,
) -> None:
    """One PNG with the clouds side by side; as `sheet_of`."""
    write_png(path, sheet_of(clouds, colors, columns, size, frames, **view))


def sheet_of(
    clouds: Sequence[ndarray],
    colors: Sequence[ndarray | None] | None,
    columns: int = 8,
    size: int = 200,
    frames: Sequence[ndarray] | None = None,
    **view: float,
) -> ndarray:
    """Image (H, W, 3) with the clouds side by side, `columns` in a row; `frames` and `view` as in `render`."""
    if not len(clouds) or columns < 1:
        raise UserError(f"draw_clouds: needs at least one cloud and one column, got {len(clouds)} and {columns}")
    for name, given in (("colors", colors), ("frames", frames)):
        if given is not None and len(given) != len(clouds):
            raise UserError(f"draw_clouds: {len(clouds)} clouds but {len(given)} {name}")
    columns = min(columns, len(clouds))
    rows = -(-len(clouds) // columns)
    sheet = np.full((rows * size, columns * size, 3), 255, dtype=np.uint8)
    for i, cloud in enumerate(clouds):
        top, left = i // columns * size, i % columns * size
        frame = None if frames is None else frames[i]
        image = render(cloud, None if colors is None else colors[i], size, frame=frame, **view)
        sheet[top : top + size, left : left + size] = image
    return sheet


def heat(values: ndarray) -> ndarray:
    """Numbers (...) as colours (..., 3): the smallest blue, over yellow, the largest red; equal steps from rank to
    rank, so that one outlier does not hide the rest. NaN is grey."""
    flat = np.asarray(values, dtype=np.float64).ravel()
    known = np.isfinite(flat)
    place = np.zeros(len(flat))
    place[known] = np.searchsorted(np.sort(flat[known]), flat[known]) / max(known.sum() - 1, 1)
    stops = np.array([(38, 99, 160), (240, 205, 80), (196, 54, 62)]) / 255
    colors = np.stack([np.interp(place, (0, 0.5, 1), channel) for channel in stops.T], axis=-1)
    colors[~known] = np.array(_GREY) / 255
    return colors.reshape(*np.shape(values), 3)


def write_png(path: str | Path, image: ndarray) -> None:
    """Write (H, W, 3) uint8 as PNG."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_bytes(png_bytes(image))


def png_bytes(image: ndarray) -> bytes:
    """(H, W, 3) uint8 as the content of a PNG file."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UserError(f"write_png: an image must be (H, W, 3) uint8, found {image.shape} {image.dtype}")
    height, width = image.shape[:2]
    lines = np.zeros((height, 1 + 3 * width), dtype=np.uint8)  # each row starts with its filter: 0, none
    lines[:, 1:] = image.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    body = (struct.pack(">I", len(b)) + kind + b + struct.pack(">I", zlib.crc32(kind + b)) for kind, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)
