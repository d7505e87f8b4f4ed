"""The packed form of a data set: a folder of plain arrays, memory-mapped when read, written once and resumably.

    points.f4 (T, 3), normals.f4 (T, 3), seg.u1 (T,), colors.u1 (T, 3), features.f4 (T, F)
                     all clouds one after the other
    sizes.i8 (n,)    points of each cloud
    meta.json        ids, labels, splits, names, and a checksum of every array; written last

While it is written the folder is called `<name>.part`; a second attempt continues after the last whole cloud.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from utils.errors import UserError

if TYPE_CHECKING:
    from datasets.listing import Columns, Listing

FORMAT = 1
KINDS = {"points": "<f4", "normals": "<f4", "seg": "|u1", "colors": "|u1", "features": "<f4", "sizes": "<i8"}
FLUSH_EVERY = 200  # clouds
COMPARED = 16  # clouds read again from the raw files when all is written
CHUNK = 1 << 24
SAVED = ("name", "ids", "parts", "class_names", "part_names", "part_category", "up_axis", "normalized", "shuffled")


def open_store(path: Path) -> tuple[Listing, Columns, np.ndarray] | None:
    """Listing, arrays (T, ...) and where each cloud begins (n + 1,); None where nothing is packed."""
    from datasets.listing import Listing

    if not (path / "meta.json").is_file():
        return None
    meta = _read_meta(path)
    sizes = _mapped(path, "sizes", meta)
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    arrays = {key: _mapped(path, key, meta) for key in meta["arrays"] if key != "sizes"}
    for key, array in arrays.items():
        if len(array) != offsets[-1]:
            raise UserError(f"{path}: '{key}' holds {len(array)} points, not {offsets[-1]}; {_again(path)}")

    def refuse(index: int) -> Columns:
        raise UserError(f"{path}: is packed; its raw files were not listed")

    saved = {key: meta[key] for key in SAVED}
    return Listing(labels=np.array(meta["labels"], np.int64), read=refuse, **saved), arrays, offsets


def write_store(path: Path, listing: Listing) -> None:
    """Write, or continue, the packed form; ends with checksums of what lies on disk and a second look at raw files."""
    part = path.with_name(path.name + ".part")
    part.mkdir(parents=True, exist_ok=True)
    done = _resume(part, listing)
    bar = tqdm(range(done, len(listing.ids)), initial=done, total=len(listing.ids), desc=path.name, unit="cloud")
    files: dict[str, Any] = {}
    with contextlib.ExitStack() as opened:
        for index in bar:
            columns = dict(listing.cloud(index))
            columns["sizes"] = np.array([len(columns["points"])])
            for key, values in columns.items():  # 'sizes' comes last: a cloud counts once all of it is written
                if key not in files:
                    files[key] = opened.enter_context(open(part / _file(key), "ab"))
                files[key].write(np.ascontiguousarray(values, KINDS[key]).tobytes())
            if index % FLUSH_EVERY == 0:
                _flush(files)
        _flush(files)
    meta = {"format": FORMAT, "plan": _plan(listing), "labels": listing.labels.tolist()}
    meta |= {key: _plain(getattr(listing, key)) for key in SAVED}
    meta["arrays"] = {key: _facts(part, key, listing) for key in KINDS if (part / _file(key)).is_file()}
    _write_json(part / "meta.json", meta)
    _compare(part, listing)
    if path.exists():
        shutil.rmtree(path)
    os.replace(part, path)


def verify(path: Path) -> list[str]:
    """What is wrong with the packed form: nothing, or a line for each array that is not what was written."""
    meta = _read_meta(path)
    return [
        f"{path / _file(key)}: its checksum is not the one noted when it was written; {_again(path)}"
        for key, facts in meta["arrays"].items()
        if not (path / _file(key)).is_file() or _checksum(path / _file(key)) != facts["crc32"]
    ]


def is_current(path: Path, listing: Listing) -> bool:
    """Whether the clouds listed now are those that were packed."""
    return _read_meta(path)["plan"] == _plan(listing)


def _resume(part: Path, listing: Listing) -> int:
    """Number of clouds already written; what belongs to an unfinished cloud, or to another plan, is cut off."""
    plan = part / "plan.json"
    if not plan.is_file() or json.loads(plan.read_text()) != _plan(listing):
        for key in KINDS:
            (part / _file(key)).unlink(missing_ok=True)
        _write_json(plan, _plan(listing))
    (part / "meta.json").unlink(missing_ok=True)
    sizes_file = part / _file("sizes")
    sizes = np.fromfile(sizes_file, KINDS["sizes"]) if sizes_file.is_file() else np.zeros(0, np.int64)
    widths = _widths(listing)
    lengths = {key: (part / _file(key)).stat().st_size if (part / _file(key)).is_file() else 0 for key in widths}
    ends = np.cumsum(sizes)
    done = int(min((ends * width <= lengths[key]).sum() for key, width in widths.items()))
    for key, width in {**widths, "sizes": 0}.items():
        if (part / _file(key)).is_file():
            end = 8 * done if key == "sizes" else width * int(ends[done - 1]) if done else 0
            os.truncate(part / _file(key), end)
    return done


def _widths(listing: Listing) -> dict[str, int]:
    """Bytes of one point in every array."""
    first = listing.cloud(0)
    return {key: np.dtype(KINDS[key]).itemsize * (v.shape[1] if v.ndim > 1 else 1) for key, v in first.items()}


def _facts(part: Path, key: str, listing: Listing) -> dict[str, Any]:
    first = listing.cloud(0).get(key)
    columns = 0 if first is None or first.ndim == 1 else first.shape[1]
    path = part / _file(key)
    return {"dtype": KINDS[key], "columns": columns, "bytes": path.stat().st_size, "crc32": _checksum(path)}


def _compare(part: Path, listing: Listing) -> None:
    """Clouds spread over the set, read again from the raw files, against what is on disk."""
    opened = open_store(part)
    assert opened is not None
    _, arrays, offsets = opened
    for index in np.unique(np.linspace(0, len(listing.ids) - 1, COMPARED).astype(int)).tolist():
        for key, values in listing.cloud(index).items():
            written = arrays[key][offsets[index] : offsets[index + 1]]
            if not np.array_equal(written, values.astype(KINDS[key])):
                raise UserError(f"{part}: {listing.ids[index]} reads otherwise than it was written; pack again")


def _plan(listing: Listing) -> str:
    """Tells whether a half-written folder holds the same clouds in the same order."""
    told = (FORMAT, listing.name, listing.ids, listing.parts, list(listing.class_names), listing.labels.tolist())
    return hashlib.sha256(repr((*told, listing.normalized, listing.shuffled)).encode()).hexdigest()


def _read_meta(path: Path) -> dict[str, Any]:
    try:
        meta = json.loads((path / "meta.json").read_text(encoding="utf-8"))
        known = meta["format"] == FORMAT and all(key in meta for key in ("labels", "plan", "arrays", *SAVED))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path / 'meta.json'}: not readable ({error}); {_again(path)}") from error
    if not known:
        raise UserError(f"{path / 'meta.json'}: of another version; {_again(path)}")
    return meta


def _mapped(path: Path, key: str, meta: dict[str, Any]) -> np.ndarray:
    facts = meta["arrays"].get(key, {"bytes": -1})
    file = path / _file(key)
    found = file.stat().st_size if file.is_file() else 0
    if found != facts["bytes"]:
        raise UserError(f"{file}: {found} bytes, {facts['bytes']} were written; {_again(path)}")
    array = np.memmap(file, KINDS[key], "r")
    return array.reshape(-1, facts["columns"]) if facts["columns"] else array


def _flush(files: dict[str, Any]) -> None:
    for file in files.values():
        file.flush()
        os.fsync(file.fileno())


def _checksum(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _file(key: str) -> str:
    return f"{key}.{KINDS[key][1:]}"


def _again(path: Path) -> str:
    return f"delete {path} and pack again"
