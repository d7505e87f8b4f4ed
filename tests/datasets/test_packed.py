"""Packed files: round trips, mapping in place, people's mistakes, damage, pickles, and the real sets where present."""

import os
import pickle
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from datasets.packed import packed, write_packed
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
REAL = Path(os.environ.get("SHARED_DIR", ROOT / "../shared")) / "data"
POINTS = np.random.default_rng(0).normal(size=(5, 8, 3)).astype(np.float32)
LABELS = np.array([0, 1, 2, 1, 0])
NAMES = ["bed", "chair", "desk"]


def everything() -> dict:
    seg = np.arange(40).reshape(5, 8) % 4
    parts = {"part_names": ["bed/leg", "chair/leg", "chair/back", "desk/top"], "part_category": [0, 1, 1, 2]}
    normals = np.tile(np.array([0, 0, 127], np.int8), (5, 8, 1))
    return {"seg": seg, "normals": normals, "group": np.array([0, 0, 1, 2, 3]), "ids": list("abcde"), **parts}


def save(path: Path, **arrays) -> str:
    """The arrays as a file of the kind that the extension names."""
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as file:
            for key, value in arrays.items():
                file[key] = value
    return str(path)


def test_round_trip(tmp_path):
    path = tmp_path / "new" / "toys_train.npz"
    write_packed(path, POINTS, LABELS, NAMES, **everything())
    data = packed(str(tmp_path / "new" / "toys_{split}.npz"))
    batch = data.fetch([4, 1])
    assert (data.name, data.split, data.class_names, data.num_points) == ("toys", "train", tuple(NAMES), 8)
    assert data.part_names[3] == "desk/top" and data.part_category == (0, 1, 1, 2)
    assert data.groups is not None and data.groups.tolist() == [0, 0, 1, 2, 3]
    assert torch.equal(batch["points"], torch.from_numpy(POINTS[[4, 1]]))
    assert batch["label"].tolist() == [0, 1]
    assert torch.equal(batch["seg"][0], torch.arange(32, 40) % 4)
    assert torch.equal(batch["normals"], torch.tensor([0.0, 0, 1]).expand(2, 8, 3))  # int8 x 127 has become unit
    assert os.listdir(path.parent) == ["toys_train.npz"]  # no temporary file left


@pytest.mark.parametrize("storage", ["npz", "npz compressed", "npz fortran", "h5", "h5 gzip", "h5 user block"])
@pytest.mark.parametrize("kind", ["<f2", "<f4", "<f8", ">f4"])
def test_every_storage_gives_the_same_clouds(tmp_path, storage, kind):
    points = POINTS.astype(kind)
    path = tmp_path / ("a.npz" if "npz" in storage else "a.h5")
    if "npz" in storage:
        points = np.asfortranarray(points) if "fortran" in storage else points
        (np.savez_compressed if "compressed" in storage else np.savez)(path, points=points, label=LABELS)
    else:
        with h5py.File(path, "w", userblock_size=512 if "block" in storage else 0) as file:
            file.create_dataset("points", data=points, compression="gzip" if "gzip" in storage else None)
            file["label"] = LABELS.astype(np.uint8)[:, None]
    data = packed(str(path))
    in_place = "compressed" not in storage and "gzip" not in storage
    assert isinstance(data.points, np.memmap) == in_place
    assert torch.equal(data.fetch([3, 0, 3])["points"], torch.from_numpy(points[[3, 0, 3]].astype(np.float32)))
    assert data.class_labels.tolist() == LABELS.tolist()
    assert data.class_names == ("0", "1", "2")


@pytest.mark.parametrize("extension", [".npz", ".hdf5"])
def test_names_may_be_bytes_or_text(tmp_path, extension):
    names = np.array([b"bed", b"chair", b"d\xc3\xa9sk"])
    assert packed(save(tmp_path / f"a{extension}", points=POINTS, labels=LABELS, names=names)).class_names[2] == "désk"
    text = np.array(NAMES) if extension == ".npz" else NAMES  # HDF5 keeps text as strings of any length
    assert packed(save(tmp_path / f"b{extension}", points=POINTS, labels=LABELS, names=text)).class_names[2] == "desk"


def test_num_points_keeps_the_first_ones(tmp_path):
    path = tmp_path / "a.npz"
    write_packed(path, POINTS, LABELS, NAMES, **everything())
    batch = packed(str(path), num_points=3).fetch([2])
    assert torch.equal(batch["points"][0], torch.from_numpy(POINTS[2, :3]))
    assert batch["seg"].shape == (1, 3) and batch["normals"].shape == (1, 3, 3)
    for wrong in (0, 9):
        with pytest.raises(UserError, match="between 1 and the 8"):
            packed(str(path), num_points=wrong)


def test_six_columns_are_points_and_normals(tmp_path):
    normals = np.tile(np.array([0, 3, 4], np.float32), (5, 8, 1))
    data = packed(save(tmp_path / "a.h5", data=np.concatenate([POINTS, normals], -1), label=LABELS))
    batch = data.fetch([1])
    assert torch.equal(batch["points"][0], torch.from_numpy(POINTS[1]))
    torch.testing.assert_close(batch["normals"][0, 0], torch.tensor([0.0, 0.6, 0.8]))


def test_without_labels_one_class(tmp_path, caplog):
    data = packed(save(tmp_path / "a.npz", points=POINTS, names=np.array(list("vwxyz"))))
    assert data.class_names == ("unlabelled",) and data.class_labels.tolist() == [0] * 5
    assert "no labels" in caplog.text


def test_arrays_survive_replacing_the_file(tmp_path):
    path = tmp_path / "a.npz"
    write_packed(path, POINTS, LABELS, NAMES)
    data = packed(str(path))
    write_packed(path, POINTS + 1, LABELS, NAMES)
    assert torch.equal(data.fetch([0])["points"][0], torch.from_numpy(POINTS[0]))
    assert torch.equal(packed(str(path)).fetch([0])["points"][0], torch.from_numpy(POINTS[0] + 1))


@pytest.mark.parametrize("extension", [".npz", ".h5"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": None}, "no 'points' in it; keys found: labels, names"),
        ({"points": None, "point": POINTS}, "rename 'point'"),
        ({"labels": None, "lables": LABELS}, "no 'labels' in it, but 'lables'"),
        ({"points": POINTS[0]}, r"'points' must be floats of shape .* found float32 of shape \(8, 3\)"),
        ({"points": POINTS[..., :2]}, r"found float32 of shape \(5, 8, 2\)"),
        ({"points": POINTS[:0], "labels": LABELS[:0]}, r"found float32 of shape \(0, 8, 3\)"),
        ({"points": POINTS.astype(np.int32)}, "found int32"),
        ({"labels": LABELS[:4]}, r"'labels' must be integers of shape \(5,\), found int64 of shape \(4,\)"),
        ({"labels": LABELS / 2}, "'labels' must be integers"),
        ({"labels": np.eye(5, 3, dtype=int)}, "'labels' must be integers"),
        ({"labels": LABELS - 1}, "'labels' runs from -1 to 1 but there are 3 class names"),
        ({"labels": LABELS + 1}, "'labels' runs from 1 to 3 but there are 3 class names"),
        ({"labels": LABELS + 10**12, "names": None}, "'labels' runs from"),
        ({"normals": POINTS[:, :4]}, "'normals' must be numbers of shape"),
        ({"seg": np.zeros((5, 7), int)}, r"'seg' must be integers of shape \(5, 8\)"),
        ({"seg": np.full((5, 8), 2), "part_names": [b"a", b"b"]}, "'seg' runs from 2 to 2 but there are 2 part names"),
        ({"seg": np.zeros((5, 8), int), "part_category": [3]}, "'part_category' runs from 3 to 3"),
        ({"group": np.zeros(4, int)}, "'group' must be integers"),
    ],
)
def test_mistakes_name_file_and_key(tmp_path, extension, change, message):
    arrays = {"points": POINTS, "labels": LABELS, "names": np.array(NAMES, "S")} | change
    path = save(tmp_path / f"a{extension}", **{key: value for key, value in arrays.items() if value is not None})
    with pytest.raises(UserError, match=message) as caught:
        packed(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_nan_is_named_when_it_is_fetched(tmp_path):
    points = POINTS.copy()
    points[3, 2, 1] = np.nan
    data = packed(save(tmp_path / "a.npz", points=points, labels=LABELS))
    with pytest.raises(UserError, match="cloud 3 holds NaN"):
        data.fetch([0, 3])


def test_missing_files_name_what_is_there(tmp_path):
    for split in ("train", "test"):
        write_packed(tmp_path / f"toys_{split}.npz", POINTS, LABELS, NAMES)
    for path, message in [
        ("toys_{split}.npz", "no split 'val'; splits there: test, train"),
        ("toy_train.npz", "did you mean 'toys_train.npz'"),
        ("none/a.npz", "there is no folder"),
        ("", "is a folder"),
    ]:
        with pytest.raises(UserError, match=message):
            packed(str(tmp_path / path), "val")
    (tmp_path / "a.pkl").write_bytes(b"1")
    with pytest.raises(UserError, match=r"one of \.npz, \.h5, \.hdf5, not '.pkl'"):
        packed(str(tmp_path / "a.pkl"))


def test_write_refuses_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match="'labels' runs from 0 to 2"):
        write_packed(tmp_path / "a.npz", POINTS, LABELS, NAMES[:2])
    with pytest.raises(UserError, match=r"written as \.npz"):
        write_packed(tmp_path / "a.h5", POINTS, LABELS, NAMES)
    with pytest.raises(UserError, match="'ids' is not an array of numbers or strings"):
        write_packed(tmp_path / "a.npz", POINTS, LABELS, NAMES, ids=[None] * 5)  # type: ignore[list-item]
    assert os.listdir(tmp_path) == []


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("key", ["points", "labels", "names"])
def test_pickles_are_refused_and_not_run(tmp_path, key):
    mark = tmp_path / "ran"
    bomb = np.array([Bomb(mark)] * 5, dtype=object)
    path = save(tmp_path / "a.npz", **({"points": POINTS, "labels": LABELS} | {key: bomb}))
    with pytest.raises(UserError, match=f"'{key}' holds pickled objects, which can run code; refused"):
        packed(path)
    with zipfile.ZipFile(tmp_path / "b.npz", "w") as archive:  # a bare pickle under the name of an array
        archive.writestr("points.npy", pickle.dumps(Bomb(mark)))
    with pytest.raises(UserError, match="'points' cannot be read"):
        packed(str(tmp_path / "b.npz"))
    assert not mark.exists()
    np.load(path, allow_pickle=True)[key]  # the bomb is live: reading it the careless way does run it
    assert mark.exists()


def write_whole(path: Path) -> bytes:
    names = np.array(NAMES, "S")
    if path.name.startswith("compressed"):
        np.savez_compressed(path, points=POINTS, labels=LABELS, names=names)
    else:
        save(path, points=POINTS, labels=LABELS, names=names)
    return path.read_bytes()


def read_or_refuse(path: Path) -> None:
    try:
        data = packed(str(path))
        assert data.fetch(range(len(data)))["points"].shape[2] == 3
    except UserError as error:
        assert str(path) in str(error) or "NaN" in str(error)
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", ["plain.npz", "compressed.npz", "a.h5"])
def test_truncated_files_are_refused(tmp_path, name):
    path = tmp_path / name
    whole = write_whole(path)
    for cut in range(0, len(whole) - 1, 61):
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="cannot be read, the file is damaged"):
            packed(str(path))


def test_a_heap_without_end_is_refused(tmp_path, monkeypatch):
    """HDF5's library alone would look for the next string for ever."""
    path = save(tmp_path / "a.h5", points=POINTS, labels=LABELS, names=NAMES)
    damaged = bytearray(Path(path).read_bytes())
    place = damaged.index(b"GCOL") + 16
    while index := int.from_bytes(damaged[place : place + 2], "little"):  # 0: what is free
        assert index <= len(NAMES)
        place += 16 + -(-int.from_bytes(damaged[place + 8 : place + 16], "little") // 8) * 8
    damaged[place + 8 : place + 16] = bytes(8)
    Path(path).write_bytes(damaged)
    monkeypatch.setattr("datasets.packed.PATIENCE", 3)
    with pytest.raises(UserError, match=r"'names' cannot be read, the file is damaged.*do not end within 3 s") as error:
        packed(str(path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["plain.npz", "compressed.npz", "fixed.h5"])
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=6))
def test_flipped_bytes_give_an_error_or_data(tmp_path, name, flips):
    path = tmp_path / name
    damaged = bytearray(write_whole(path))
    for place, change in flips:
        damaged[place % len(damaged)] ^= change
    path.write_bytes(damaged)
    read_or_refuse(path)


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("infomr69", 1866, 466, 69), ("capod15", 120, 60, 15), ("shrec16", 480, 120, 30), ("lpsb19_seg", 228, 152, 19)],
)
def test_real_sets(name, train, test, classes):
    if not (REAL / f"{name}_train.npz").exists():
        pytest.skip(f"{REAL} does not hold {name} (set SHARED_DIR)")
    for split, count in (("train", train), ("test", test)):
        data = packed(str(REAL / f"{name}_{{split}}.npz"), split, num_points=1024)
        assert (data.name, len(data), data.num_classes, data.num_points) == (name, count, classes, 1024)
        assert len(np.unique(data.class_labels)) == classes
        batch = data.fetch([0, count - 1])
        assert batch["points"].shape == (2, 1024, 3) and batch["points"].dtype == torch.float32
        assert batch["points"].norm(dim=-1).max() < 1.001
        torch.testing.assert_close(batch["normals"].norm(dim=-1), torch.ones(2, 1024))
    if name == "infomr69":
        assert data.groups is not None and len(data.groups) == test
    if name == "lpsb19_seg":
        assert len(data.part_names) == 94
        assert [data.part_category[part] for part in batch["seg"][:, 0]] == batch["label"].tolist()


def test_real_set_without_labels():
    if not (REAL / "demo_shapes.npz").exists():
        pytest.skip(f"{REAL} does not hold demo_shapes (set SHARED_DIR)")
    data = packed(str(REAL / "demo_shapes.npz"))
    assert len(data) == 21 and data.class_names == ("unlabelled",) and data.num_points == 8192
