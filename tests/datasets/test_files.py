"""Single files: every format in the forms found in the wild, quirks, damage; sampling a mesh; writing a .ply."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.files import READERS, read_cloud, sample_mesh, write_ply
from utils.errors import UserError

# a pyramid: a square (one polygon) and four triangles
VERTICES = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0.5, 0.5, 1.25]], dtype=np.float32)
POLYGONS = [[0, 1, 2, 3], [0, 1, 4], [1, 2, 4], [2, 3, 4], [3, 0, 4]]
TRIANGLES = {(0, 1, 2), (0, 2, 3), (0, 1, 4), (1, 2, 4), (2, 3, 4), (3, 0, 4)}


def rows(table, separator=" ") -> str:
    return "".join(separator.join(str(value) for value in row) + "\n" for row in table)


def ply_header(kind: str, extra: str = "") -> str:
    vertex = "element vertex 5\nproperty float x\nproperty float y\nproperty float z\n"
    faces = "element face 5\nproperty list uchar int vertex_indices\n"
    return f"ply\nformat {kind} 1.0\ncomment by Zoë\n{vertex}{extra}{faces}end_header\n"


def ply_ascii() -> bytes:
    return (ply_header("ascii") + rows(VERTICES) + rows([len(p), *p] for p in POLYGONS)).encode()


def ply_binary(order: str) -> bytes:
    kind = "binary_little_endian" if order == "<" else "binary_big_endian"
    faces = b"".join(struct.pack(f"{order}B{len(p)}i", len(p), *p) for p in POLYGONS)
    return ply_header(kind).encode() + VERTICES.astype(order + "f4").tobytes() + faces


def off(header: str = "OFF\n5 5 8\n") -> bytes:
    return (header + rows(VERTICES) + rows([len(p), *p] for p in POLYGONS)).encode()


def obj() -> bytes:
    return ("".join("v " + line + "\n" for line in rows(VERTICES).splitlines()) + obj_faces("{}")).encode()


def obj_faces(corner: str) -> str:
    return "".join("f " + " ".join(corner.format(i + 1) for i in polygon) + "\n" for polygon in POLYGONS)


def stl_binary() -> bytes:
    corners = VERTICES[np.array(sorted(TRIANGLES))].reshape(-1, 9)
    return b"solid?".ljust(80) + struct.pack("<I", 6) + b"".join(struct.pack("<12fH", 0, 0, 0, *c, 0) for c in corners)


def stl_ascii() -> bytes:
    facets = VERTICES[np.array(sorted(TRIANGLES))]
    loops = ["outer loop\n" + "".join("  vertex " + line for line in rows(f).splitlines(True)) for f in facets]
    return ("solid a\n" + "".join(f"facet normal 0 0 0\n{loop}endloop\nendfacet\n" for loop in loops)).encode()


MESHES = {
    "ascii.ply": ply_ascii(),
    "little.ply": ply_binary("<"),
    "big.ply": ply_binary(">"),
    "plain.off": off(),
    "one_line.off": off("OFF5 5 8\n"),
    "spaced.OFF": off("# made by hand\n\nOFF 5 5\n"),
    "plain.obj": obj(),
    "slashes.obj": b"mtllib a.mtl\nvn 0 0 1\n" + obj().split(b"f ")[0] + obj_faces("{0}/{0}/1").encode(),
    "binary.stl": stl_binary(),
    "ascii.stl": stl_ascii(),
}
CLOUDS = {
    "a.xyz": rows(VERTICES).encode(),
    "a.txt": b"# x y z\n\n" + rows(VERTICES, ",").encode(),
    "a.pts": b"5\n" + rows(VERTICES).encode(),
    "a.csv": b"\xef\xbb\xbfid;x;y;z\n" + rows(([i, *v] for i, v in enumerate(VERTICES)), ";").encode(),
    "pandas.csv": b',"x","y","z"\n' + rows(([i, *v] for i, v in enumerate(VERTICES)), ",").encode(),
    "windows.txt": rows(VERTICES).replace("\n", "\r\n").encode(),
}


def write(folder: Path, name: str, data: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return path


def as_triangles(points: np.ndarray, faces: np.ndarray) -> set:
    """Triangles as vertex numbers of VERTICES, whatever order the file gave the vertices."""
    number = {tuple(vertex): i for i, vertex in enumerate(VERTICES.tolist())}
    return {tuple(number[tuple(corner)] for corner in triangle) for triangle in points[faces].tolist()}


@pytest.mark.parametrize("name", MESHES)
def test_meshes(tmp_path, name):
    points, faces, normals = read_cloud(write(tmp_path, name, MESHES[name]))
    assert points.shape == (5, 3) and points.dtype == np.float32
    assert faces is not None and faces.dtype == np.int64 and len(faces) == 6
    assert as_triangles(points, faces) == TRIANGLES
    assert normals is None


@pytest.mark.parametrize("name", CLOUDS)
def test_clouds(tmp_path, name):
    points, faces, normals = read_cloud(write(tmp_path, name, CLOUDS[name]))
    np.testing.assert_array_equal(points, VERTICES)
    assert faces is None and normals is None


def test_columns_of_unit_length_are_normals_others_are_not(tmp_path):
    directions = np.tile([0, 0.6, 0.8], (5, 1))
    for suffix in (".txt", ".npy"):
        for columns, expected in ((directions, directions), (directions * 255, None)):
            path, table = tmp_path / f"a{suffix}", np.hstack([VERTICES, columns])
            np.save(path, table) if suffix == ".npy" else np.savetxt(path, table)
            points, _, normals = read_cloud(path)
            np.testing.assert_array_equal(points, VERTICES)
            if expected is None:
                assert normals is None
            else:
                assert normals is not None
                np.testing.assert_allclose(normals, expected, atol=1e-6)


def test_ply_with_colours_normals_and_unknown_elements(tmp_path):
    header = (
        "ply\nformat binary_little_endian 1.0\nelement camera 1\nproperty list uchar float pose\nproperty double time\n"
        "element vertex 2\nproperty uchar red\nproperty double x\nproperty double y\nproperty double z\n"
        "property float nx\nproperty float ny\nproperty float nz\nend_header\n"
    )
    camera = struct.pack("<B2fd", 2, 1, 2, 3)
    body = b"".join(struct.pack("<B3d3f", 9, i, i + 1, i + 2, 0, 1, float("nan")) for i in range(2))
    points, faces, normals = read_cloud(write(tmp_path, "a.ply", header.encode() + camera + body))
    assert points.tolist() == [[0, 1, 2], [1, 2, 3]] and faces is None
    assert normals is not None and normals.tolist() == [[0, 1, 0]] * 2  # NaN: not known


def test_ply_of_many_polygon_sizes(tmp_path):
    sizes = np.random.default_rng(0).integers(0, 7, 500)
    faces = b"".join(struct.pack(f"<B{n}i", n, *range(n)) for n in sizes)
    header = ply_header("binary_little_endian").replace("vertex 5", "vertex 7").replace("face 5", "face 500")
    path = write(tmp_path, "a.ply", header.encode() + np.zeros((7, 3), "<f4").tobytes() + faces)
    triangles = read_cloud(path)[1]
    assert triangles is not None and len(triangles) == np.maximum(sizes - 2, 0).sum()


def test_obj_quirks(tmp_path):
    text = "v 0 0 0 1 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 \\\n -1\nv 9 9 9\nl 1 2\nf 1//1 2//1 3//1 # and a comment\n"
    points, faces, _ = read_cloud(write(tmp_path, "a.obj", text))
    assert points.shape == (4, 3)
    assert faces is not None and faces.tolist() == [[0, 1, 2], [0, 1, 2]]
    assert read_cloud(write(tmp_path, "b.obj", "v 0 0 0\nv 1 0 0\n"))[1] is None  # a cloud


def test_off_with_colours_and_normals(tmp_path):
    points, faces, normals = read_cloud(
        write(
            tmp_path,
            "a.off",
            "CNOFF\n3 1 0\n0 0 0 0 0 1 9 9 9 9\n1 0 0 0 0 1 9 9 9 9\n0 1 0 0 0 1 9 9 9 9\n3 0 1 2 9 9\n",
        )
    )
    assert points.tolist() == [[0, 0, 0], [1, 0, 0], [0, 1, 0]]
    assert faces is not None and faces.tolist() == [[0, 1, 2]]
    assert normals is not None and normals.tolist() == [[0, 0, 1]] * 3


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.glb", b"", "unknown extension '.glb'; readable: .ply"),
        ("a.ply", b"", "no 'ply' at its start"),
        ("a.ply", ply_header("ascii").encode(), "ends inside vertex 0 of 5"),
        ("a.ply", ply_header("ascii", "property half w\n").encode(), "header line 8: 'property half w'"),
        ("a.ply", ply_ascii().replace(b"3 3 0 4", b"3 3 0 5"), "a face names vertex 5, but vertices run from 0 to 4"),
        ("a.ply", ply_ascii().replace(b"vertex 5", b"vertex 99999999999"), "ends inside|could not"),
        ("a.ply", ply_ascii().replace(b"float x", b"float w"), "lacks x, y or z"),
        ("a.off", b"FOO\n", "does not start with OFF"),
        ("a.off", off("OFF\n6 5 0\n"), "promises 6 vertices and 5 faces but has 10 more lines"),
        ("a.off", off().replace(b"1.0 1.0 0.0", b"1.0 one 0.0"), "line 5: expected 3 numbers, found '1.0 one 0.0'"),
        ("a.off", off().replace(b"4 0 1 2 3", b"4 0 1 2"), "line 8: expected 5 numbers"),
        ("a.obj", b"v 0 0\n", "line 1: expected 3 numbers"),
        ("a.obj", b"v 0 0 0\nf 0 1 2\n", "line 2: vertices count from 1"),
        ("a.obj", b"v 0 0 0\nf 1 1 -2\n", "a face names vertex -1"),
        ("a.obj", b"# nothing\n", "no points in it"),
        ("a.stl", stl_binary()[:-1], "not a readable .stl"),
        ("a.xyz", b"0 0 0\n1 nan 1\n", "point 1 is NaN or infinite"),
        ("a.xyz", b"0 0 1e39\n", "point 0 is NaN or infinite"),
        ("a.xyz", b"1 2\n3 4\n", "no line of at least three numbers"),
        ("a.csv", b"1,2,3\n1,2\n", "number of columns changed from 3 to 2"),
        ("a.txt", b"", "no line of at least three numbers"),
    ],
)
def test_damage_names_the_file_and_the_place(tmp_path, name, data, message):
    path = write(tmp_path, name, data)
    with pytest.raises(UserError, match=message) as caught:
        read_cloud(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        read_cloud(tmp_path / "a.ply")


def test_npy_shapes_and_pickles(tmp_path):
    path = tmp_path / "a.npy"
    for array, message in ((np.zeros((5, 2)), "N, 3 or more"), (np.zeros(3), "N, 3"), (np.array(["a"]), "numbers")):
        np.save(path, array)
        with pytest.raises(UserError, match=message):
            read_cloud(path)
    mark = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):
            return Path.touch, (mark,)

    np.save(path, np.array([Bomb()], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="Object arrays cannot be loaded"):
        read_cloud(path)
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UserError, match="magic string"):
        read_cloud(path)
    assert not mark.exists()


def example(folder: Path, extension: str) -> bytes:
    """A sound file of each kind, the binary form where there are two."""
    if extension == ".npy":
        np.save(folder / "a.npy", VERTICES)
        return (folder / "a.npy").read_bytes()
    whole = {".ply": ply_binary(">"), ".stl": stl_binary(), ".off": off(), ".obj": obj()}
    return whole.get(extension, rows(VERTICES).encode())


@pytest.mark.parametrize("extension", READERS)
def test_truncated_files_are_refused_or_shorter(tmp_path, extension):
    whole = example(tmp_path, extension)
    refused, cuts = 0, range(0, len(whole), 3)
    for cut in cuts:
        try:
            assert len(read_cloud(write(tmp_path, "a" + extension, whole[:cut]))[0]) <= 18
        except UserError:
            refused += 1
    if extension in (".ply", ".stl", ".npy"):  # formats that say how long they are
        assert refused == len(cuts)


@pytest.mark.parametrize("extension", [".ply", ".off", ".obj", ".stl", ".npy", ".txt"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6))
def test_flipped_bytes_give_an_error_or_a_sound_cloud(tmp_path, extension, flips):
    damaged = bytearray(example(tmp_path, extension))
    for place, change in flips:
        damaged[place % len(damaged)] ^= change
    try:
        points, faces, _ = read_cloud(write(tmp_path, "a" + extension, bytes(damaged)))
        assert np.isfinite(points).all() and (faces is None or faces.max() < len(points))
    except UserError as error:
        assert "\n" not in str(error)


def test_sampling_is_even_over_the_surface():
    # two triangles of areas 1 and 3 in different planes, far from the origin
    vertices = np.array([[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32) + 1000
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    points, normals = sample_mesh(vertices, faces, 20000, np.random.default_rng(0))
    assert points.shape == normals.shape == (20000, 3) and points.dtype == normals.dtype == np.float32
    first = np.abs(normals[:, 2]) > 0.5
    assert abs(first.mean() - 0.25) < 0.02
    np.testing.assert_allclose(points[first, 2], 1000, atol=1e-3)
    np.testing.assert_allclose(points[first].mean(0), vertices[:3].mean(0), atol=0.03)  # uniform: mean = centroid
    np.testing.assert_allclose(points[~first].mean(0), vertices[3:].mean(0), atol=0.03)
    inside = (points[first, 0] - 1000) / 2 + points[first, 1] - 1000
    assert inside.max() <= 1.001 and points.min() >= 1000 - 1e-3


def test_sampling_repeats_with_the_generator_and_refuses_no_surface():
    faces = np.array([[0, 1, 2], [0, 0, 4]])  # one of zero area, never chosen
    one, two = (sample_mesh(VERTICES, faces, 50, np.random.default_rng(3))[0] for _ in range(2))
    np.testing.assert_array_equal(one, two)
    assert (one[:, 2] == 0).all()
    with pytest.raises(UserError, match="no surface"):
        sample_mesh(VERTICES, faces[1:], 10, np.random.default_rng(0))


def test_write_ply_round_trip(tmp_path):
    write_ply(tmp_path / "a.ply", VERTICES.astype(np.float64)[::-1])
    points, faces, _ = read_cloud(tmp_path / "a.ply")
    np.testing.assert_array_equal(points, VERTICES[::-1])
    assert faces is None
    write_ply(tmp_path / "b.ply", VERTICES, VERTICES)
    np.testing.assert_array_equal(read_cloud(tmp_path / "b.ply")[0], VERTICES)
    assert (tmp_path / "b.ply").read_bytes()[-3:] == bytes([128, 128, 255])  # 0.5, 0.5, and 1.25 cut to 1
    with pytest.raises(UserError, match=r"points must have shape \(N, 3\)"):
        write_ply(tmp_path / "c.ply", VERTICES[0])
    with pytest.raises(UserError, match="colors must have shape"):
        write_ply(tmp_path / "c.ply", VERTICES, VERTICES[:2])
