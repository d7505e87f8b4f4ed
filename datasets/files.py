"""Single clouds and meshes: reading `.ply .off .obj .stl .xyz .txt .pts .csv .npy`, sampling a mesh, writing `.ply`.

N points, M triangles. Larger polygons are fanned into triangles. Colours and other properties are skipped. In tables
(`.xyz .txt .pts .csv .npy`) the columns are x y z, or those that a header line names; columns 4 to 6 are normals when
every one has unit length (else they are taken for colours and skipped).
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from utils.errors import UserError

Cloud = tuple[np.ndarray, np.ndarray | None, np.ndarray | None]  # points (N, 3), triangles (M, 3), normals (N, 3)
Property = tuple[str, str, str]  # of a .ply element: name, type, and type of the list length ('' for no list)
Element = tuple[str, int, list[Property]]  # name, count, properties

PLY_TYPES = {"char": "i1", "uchar": "u1", "short": "i2", "ushort": "u2", "int": "i4", "uint": "u4"}
PLY_TYPES |= {"int8": "i1", "uint8": "u1", "int16": "i2", "uint16": "u2", "int32": "i4", "uint32": "u4"}
PLY_TYPES |= {"float": "f4", "double": "f8", "float32": "f4", "float64": "f8"}
PLY_ORDERS = {"binary_little_endian": "<", "binary_big_endian": ">", "ascii": ""}


def read_cloud(path: str | Path) -> Cloud:
    """Points (N, 3) float32, triangles (M, 3) int64 or None, normals of the points (N, 3) float32 or None."""
    path = Path(path).expanduser()
    extension = path.suffix.lower()
    if extension not in READERS:
        raise UserError(f"{path}: unknown extension '{extension}'; readable: {', '.join(READERS)}")
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        return _checked(*READERS[extension](path.read_bytes()))
    except Exception as error:  # damaged bytes surface in many forms; a person needs the file and the reason
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: not a readable {extension} file ({reason})") from error


def sample_mesh(
    vertices: np.ndarray, faces: np.ndarray, num_points: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points spread evenly over the surface of a triangle mesh and the normals of their faces, both (num_points, 3)."""
    centre = vertices.mean(axis=0, dtype=np.float64)  # far from the origin, products of coordinates lose their digits
    corners = (vertices.astype(np.float64) - centre)[faces]  # (M, 3, 3)
    edges = corners[:, 1:] - corners[:, :1]  # (M, 2, 3)
    normals = np.cross(edges[:, 0], edges[:, 1])
    areas = np.linalg.norm(normals, axis=1)  # twice the area
    if not areas.sum() > 0:
        raise UserError(f"mesh of {len(faces)} triangles has no surface: all its triangles have zero area")
    chosen = generator.choice(len(faces), size=num_points, p=areas / areas.sum())
    # uniform in the parallelogram of two edges, its far half folded back onto the triangle
    weights = generator.random((num_points, 2))
    weights = np.where(weights.sum(axis=1, keepdims=True) > 1, 1 - weights, weights)
    points = corners[chosen, 0] + (weights[:, :, None] * edges[chosen]).sum(axis=1) + centre
    return points.astype(np.float32), (normals[chosen] / areas[chosen, None]).astype(np.float32)


def write_ply(path: str | Path, points: np.ndarray, colors: np.ndarray | None = None) -> None:
    """Binary `.ply` of points (N, 3) with colours (N, 3), either uint8 or floats between 0 and 1."""
    points = np.asarray(points)
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserError(f"{path}: points must have shape (N, 3), found {points.shape}")
    columns = [(name, "<f4", points[:, axis]) for axis, name in enumerate("xyz")]
    if colors is not None:
        colors = np.asarray(colors)
        if colors.shape != points.shape:
            raise UserError(f"{path}: colors must have shape {points.shape}, found {colors.shape}")
        if colors.dtype.kind == "f":
            colors = (colors.clip(0, 1) * 255).round()
        columns += [(name, "u1", colors[:, axis]) for axis, name in enumerate(("red", "green", "blue"))]
    rows = np.empty(len(points), dtype=[(name, kind) for name, kind, _ in columns])
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    for name, kind, values in columns:
        rows[name] = values
        header.append(f"property {'float' if kind == '<f4' else 'uchar'} {name}")
    Path(path).write_bytes("\n".join([*header, "end_header", ""]).encode() + rows.tobytes())


def _checked(points: np.ndarray, faces: np.ndarray | None, normals: np.ndarray | None) -> Cloud:
    if points.ndim != 2 or points.shape[1] != 3:
        raise ValueError(f"points must have shape (N, 3), found {points.shape}")
    if len(points) == 0:
        raise ValueError("no points in it")
    with np.errstate(over="ignore"):
        points = np.ascontiguousarray(points, dtype=np.float32)
    finite = np.isfinite(points).all(axis=1)
    if not finite.all():
        raise ValueError(f"point {int(finite.argmin())} is NaN or infinite")
    if normals is not None:  # writers leave NaN at points without a face: no direction known
        normals = np.nan_to_num(normals.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    if faces is None or len(faces) == 0:
        return points, None, normals
    wrong = faces[(faces < 0) | (faces >= len(points))]
    if wrong.size:
        raise ValueError(f"a face names vertex {wrong[0]}, but vertices run from 0 to {len(points) - 1}")
    return points, faces, normals


def _fan(polygons: Sequence[np.ndarray]) -> np.ndarray:
    """Triangles (M, 3) from polygons, given as index matrices (rows, corners)."""
    triangles = [np.zeros((0, 3), np.int64)]
    for polygon in polygons:
        first = np.broadcast_to(polygon[:, :1], polygon[:, 2:].shape)
        with np.errstate(invalid="ignore"):  # NaN as an index becomes a number that the range check refuses
            corners = np.stack([first, polygon[:, 1:-1], polygon[:, 2:]], axis=-1).astype(np.int64)
        triangles.append(corners.reshape(-1, 3))
    return np.concatenate(triangles)


def _fan_lists(polygons: list[list[int]]) -> np.ndarray:
    lengths = sorted({len(polygon) for polygon in polygons})
    return _fan([np.array([p for p in polygons if len(p) == length]) for length in lengths if length >= 3])


def _read_ply(data: bytes) -> Cloud:
    head, found, _ = data.partition(b"end_header")
    if not data.startswith(b"ply") or not found:
        raise ValueError("no 'ply' at its start or no 'end_header'")
    order, elements = _ply_header(head.decode("latin-1").splitlines())
    body = data[data.index(b"\n", len(head)) + 1 :]
    if order == "":  # an ASCII body is a binary one whose properties are all doubles
        body = np.array(body.split(), dtype=np.float64).tobytes()
        order = "="
        elements = [(e, n, [(p, "f8", "f8" if length else "") for p, _, length in props]) for e, n, props in elements]
    offset, columns, polygons = 0, {}, []
    for element, count, properties in elements:
        runs, offset = _ply_rows(body, offset, count, properties, order, element)
        names = [name for name, _, _ in properties]
        if element == "vertex":
            scalars = [name for name, _, length in properties if not length]
            columns = {name: np.concatenate([run[name] for run in runs]) for name in scalars if runs}
        for key in ("vertex_indices", "vertex_index"):
            if element == "face" and key in names:
                polygons = [run[key] for run in runs]
    if not {"x", "y", "z"} <= columns.keys():
        raise ValueError("its 'vertex' element is empty or lacks x, y or z")
    normals = np.stack([columns[c] for c in ("nx", "ny", "nz")], 1) if {"nx", "ny", "nz"} <= columns.keys() else None
    return np.stack([columns[c] for c in "xyz"], axis=1), _fan(polygons), normals


def _ply_header(lines: list[str]) -> tuple[str, list[Element]]:
    order: str | None = None
    elements: list[Element] = []
    for number, line in enumerate(lines, start=1):
        match line.split():
            case ["format", kind, _]:
                order = PLY_ORDERS[kind]
            case ["element", name, count] if count.isdecimal():
                elements.append((name, int(count), []))
            case ["property", "list", length, kind, name] if elements and length in PLY_TYPES and kind in PLY_TYPES:
                elements[-1][2].append((name, PLY_TYPES[kind], PLY_TYPES[length]))
            case ["property", kind, name] if elements and kind in PLY_TYPES:
                elements[-1][2].append((name, PLY_TYPES[kind], ""))
            case ["ply"] | ["comment", *_] | ["obj_info", *_] | []:
                pass
            case _:
                raise ValueError(f"header line {number}: '{line[:60]}'")
    if order is None:
        raise ValueError("its header has no 'format' line")
    return order, elements


def _ply_rows(
    body: bytes, offset: int, count: int, properties: list[Property], order: str, element: str
) -> tuple[list[np.ndarray], int]:
    """All rows of an element as structured arrays, one for each run of rows whose lists are equally long."""
    runs: list[np.ndarray] = []
    left = block = count if properties else 0
    while left:
        row_type = _ply_row_type(body, offset, properties, order)
        take = min(block, left, (len(body) - offset) // row_type.itemsize)
        if take == 0:
            raise ValueError(f"ends inside {element} {count - left} of {count}")
        rows = np.frombuffer(body, row_type, take, offset)
        alike = np.ones(take, dtype=bool)
        for name, _, length in properties:
            if length:
                alike &= rows[name + " length"] == rows[name + " length"][0]
        good = take if alike.all() else int(alike.argmin())
        runs.append(rows[:good])
        offset, left = offset + good * row_type.itemsize, left - good
        block = 2 * block if good == take else 1  # lengths that alternate must not make us look at all rows each time
    return runs, offset


def _ply_row_type(body: bytes, offset: int, properties: list[Property], order: str) -> np.dtype:
    fields: list[tuple] = []
    for name, kind, length_kind in properties:
        if length_kind:
            length = int(np.frombuffer(body, order + length_kind, 1, offset)[0])
            fields += [(name + " length", order + length_kind), (name, order + kind, (length,))]
            offset += np.dtype(length_kind).itemsize + length * np.dtype(kind).itemsize
        else:
            fields.append((name, order + kind))
            offset += np.dtype(kind).itemsize
    return np.dtype(fields)


def _lines(data: bytes) -> list[tuple[int, str]]:
    """Lines with their numbers, without comments and blank ones."""
    lines = enumerate(data.decode("utf-8-sig", errors="replace").splitlines(), start=1)
    stripped = ((number, line.split("#")[0].strip()) for number, line in lines)
    return [(number, line) for number, line in stripped if line]


def _numbers(line: str, number: int, count: int, kind: type = float) -> list:
    """The first numbers of a line, which must have that many."""
    words = line.split()[:count]
    try:
        if len(words) == count:
            return [kind(word) for word in words]
    except ValueError:
        pass
    raise ValueError(f"line {number}: expected {count} numbers, found '{line[:60]}'")


def _read_off(data: bytes) -> Cloud:
    lines = _lines(data)
    header = re.match(r"(?:ST)?C?(N?)OFF(?![A-Za-z])", lines[0][1]) if lines else None
    if header is None:
        raise ValueError("does not start with OFF")
    rest = lines[0][1][header.end() :].strip()  # some ModelNet files have the counts on the first line: OFF123 45 0
    lines = ([(lines[0][0], rest)] if rest else []) + lines[1:]
    if not lines:
        raise ValueError("no counts after OFF")
    num_vertices, num_faces = _numbers(lines[0][1], lines[0][0], 2, int)
    if num_vertices < 0 or num_faces < 0 or len(lines) < 1 + num_vertices + num_faces:
        raise ValueError(f"promises {num_vertices} vertices and {num_faces} faces but has {len(lines) - 1} more lines")
    columns = 6 if header[1] else 3
    vertices = [_numbers(line, number, columns) for number, line in lines[1 : 1 + num_vertices]]
    polygons = []
    for number, line in lines[1 + num_vertices : 1 + num_vertices + num_faces]:
        corners = _numbers(line, number, 1, int)[0]
        polygons.append(_numbers(line, number, 1 + corners, int)[1:])
    table = np.array(vertices, dtype=np.float64).reshape(num_vertices, columns)
    return table[:, :3], _fan_lists(polygons), table[:, 3:] if header[1] else None


def _read_obj(data: bytes) -> Cloud:
    """Vertices and faces; normals of an .obj belong to face corners and are skipped."""
    vertices, polygons = [], []
    for number, line in _lines(data.replace(b"\\\r\n", b" ").replace(b"\\\n", b" ")):
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append(_numbers(rest, number, 3))
        elif kind == "f":
            corners = " ".join(corner.split("/")[0] for corner in rest.split())
            indices = _numbers(corners, number, len(corners.split()), int)
            if 0 in indices:
                raise ValueError(f"line {number}: vertices count from 1, found 0")
            polygons.append([i - 1 if i > 0 else len(vertices) + i for i in indices])
    return np.array(vertices, dtype=np.float64).reshape(-1, 3), _fan_lists(polygons), None


def _read_stl(data: bytes) -> Cloud:
    if len(data) >= 84 and len(data) == 84 + 50 * int.from_bytes(data[80:84], "little"):
        facets = np.frombuffer(data, [("normal", "<f4", 3), ("corners", "<f4", 9), ("unused", "<u2")], offset=84)
        corners = facets["corners"].reshape(-1, 3).astype(np.float64)
    elif data.lstrip().startswith(b"solid"):
        lines = [(number, line) for number, line in _lines(data) if line.startswith("vertex")]
        corners = np.array([_numbers(line[6:], number, 3) for number, line in lines]).reshape(-1, 3)
    else:
        raise ValueError("its size does not fit the count of triangles at byte 80")
    if len(corners) % 3:
        raise ValueError(f"{len(corners)} corners do not make whole triangles")
    vertices, index = np.unique(corners, axis=0, return_inverse=True)  # every triangle repeats its corners
    return vertices, index.reshape(-1, 3).astype(np.int64), None


def _read_npy(data: bytes) -> Cloud:
    array = np.lib.format.read_array(io.BytesIO(data), allow_pickle=False)
    if array.dtype.kind not in "fiu":
        raise ValueError(f"must hold numbers, found {array.dtype}")
    return _from_table(array, [])


def _read_table(data: bytes) -> Cloud:
    text = data.decode("utf-8-sig", errors="replace").replace('"', "")
    lines = [line.strip() for line in text.splitlines()]
    start = next((i for i, line in enumerate(lines) if _is_row(line)), None)
    if start is None:
        raise ValueError("no line of at least three numbers")
    header = lines[start - 1].lstrip("#/ ").lower() if start else ""
    rows = [line.translate(_BLANKS) for line in lines[start:] if line and not line.startswith(("#", "//"))]
    return _from_table(np.loadtxt(rows, ndmin=2), re.split(r"\s*[,;]\s*|\s+", header))


_BLANKS = str.maketrans(",;", "  ")


def _is_row(line: str) -> bool:
    try:
        return len([float(word) for word in line.translate(_BLANKS).split()]) >= 3
    except ValueError:
        return False


def _from_table(table: np.ndarray, header: list[str]) -> Cloud:
    if table.ndim != 2 or table.shape[1] < 3:
        raise ValueError(f"must have shape (N, 3 or more), found {table.shape}")
    named = len(header) == table.shape[1]
    if named and {"x", "y", "z"} <= set(header):
        normals = [header.index(c) for c in ("nx", "ny", "nz") if c in header]
        return table[:, [header.index(c) for c in "xyz"]], None, table[:, normals] if len(normals) == 3 else None
    directions = table[:, 3:6].astype(np.float64)
    lengths = np.linalg.norm(directions, axis=1)
    is_unit = directions.shape[1] == 3 and bool((np.abs(lengths - 1) < 1e-2).all())
    return table[:, :3], None, directions if is_unit else None


READERS = {".ply": _read_ply, ".off": _read_off, ".obj": _read_obj, ".stl": _read_stl, ".npy": _read_npy}
READERS |= dict.fromkeys((".xyz", ".txt", ".pts", ".csv"), _read_table)
