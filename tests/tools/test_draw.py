"""Pictures: readable PNG files, nearest points on top, y up."""

import struct
import zlib

import numpy as np
import pytest

from tools.draw import draw_clouds, render, write_png
from utils.errors import UserError


def _read_png(path):
    """A reader of what write_png writes: 8-bit RGB, rows without a filter."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, chunks = 8, {}
    while place < len(data):
        length, kind = struct.unpack(">I4s", data[place : place + 8])
        body = data[place + 8 : place + 8 + length]
        assert struct.unpack(">I", data[place + 8 + length : place + 12 + length])[0] == zlib.crc32(kind + body)
        chunks[kind], place = body, place + 12 + length
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:].reshape(height, width, 3)


def test_png_round_trip(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (7, 11, 3)).astype(np.uint8)
    write_png(tmp_path / "new" / "a.png", image)
    np.testing.assert_array_equal(_read_png(tmp_path / "new" / "a.png"), image)


def test_up_is_up_and_the_front_hides_the_back():
    points = np.array([(0, 1, 0), (0, -1, 0), (0, -1, 0.9)], dtype=np.float32)
    image = render(
        points, np.array([(1, 0, 0), (0, 1, 0), (0, 0, 1)], float), size=64, azimuth=0, elevation=0, splat=0.05
    )
    top = image[:32].min((0, 1))
    assert top[1] < 200 and top[0] > top[1]  # red above
    middle = image[58, 32].astype(int)
    assert middle[2] > middle[0] and middle[2] > middle[1]  # blue in front of green
    assert (image[0, 0] == 255).all()


def test_turning_by_the_azimuth_brings_the_right_side_to_the_front():
    side = np.array([(1.0, 0, 0), (-1.0, 0, 0)])
    image = render(side, np.array([(1, 0, 0), (0, 0, 1)], float), size=64, azimuth=90, elevation=0, splat=0.05)
    near = image[32, 32].astype(int)
    assert near[0] > near[2]


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.zeros((1, 3)), np.full((5, 3), 2.0), np.full((2, 3), np.nan)])
def test_degenerate_clouds_are_drawn(points):
    assert render(points, None, size=32).shape == (32, 32, 3)


def test_any_layout_of_the_input_gives_the_same_picture():
    points = np.random.default_rng(1).normal(size=(3, 50)).T  # not contiguous
    labels = np.arange(50) % 20 - 1
    expected = render(np.ascontiguousarray(points), labels, size=40)
    np.testing.assert_array_equal(render(points, labels.astype(np.int8), size=40), expected)


def test_a_part_is_drawn_in_the_frame_of_the_whole():
    whole = np.random.default_rng(2).uniform(-1, 1, (400, 3))
    part = whole[whole[:, 1] > 0.3]
    image = render(part, None, 64, azimuth=0, elevation=0, frame=whole)
    assert image[:30].min() < 200 and image[36:].min() == 255
    assert render(part, None, 64, azimuth=0, elevation=0)[36:].min() < 200


def test_a_sheet_of_clouds(tmp_path):
    clouds = [np.random.default_rng(i).normal(size=(20 * i + 1, 3)) for i in range(5)]
    draw_clouds(clouds, None, tmp_path / "sheet.png", columns=2, size=30)
    sheet = _read_png(tmp_path / "sheet.png")
    assert sheet.shape == (90, 60, 3)
    np.testing.assert_array_equal(sheet[30:60, 30:], render(clouds[3], None, 30))
    assert (sheet[60:, 30:] == 255).all()


def test_wrong_input_is_told(tmp_path):
    with pytest.raises(UserError, match=r"\(N, 3\)"):
        render(np.zeros((4, 2)))
    with pytest.raises(UserError, match="colors"):
        render(np.zeros((4, 3)), np.zeros(3))
    with pytest.raises(UserError, match="at least one"):
        draw_clouds([], None, tmp_path / "a.png")
    with pytest.raises(UserError, match="uint8"):
        write_png(tmp_path / "a.png", np.zeros((2, 2, 3)))
