"""The named data sets on small trees in their real formats: raw and packed alike, missing and damaged files by name."""

from __future__ import annotations

import importlib
import json
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets import DATASETS, store
from datasets.base import PointClouds
from datasets.listing import normalized
from datasets.modelnet40 import SIZES, spread
from datasets.s3dis import crop, items_of, s3dis
from tests.datasets import trees
from tests.golden.fixtures import ABSENT, GOLDEN, Fixture
from utils.errors import UserError

CASES: dict[str, tuple[str, Callable, dict]] = {
    "shapenet55": ("shapenet55", trees.write_shapenet55, {}),
    "modelnet40 txt": ("modelnet40", trees.write_modelnet_text, {"normals": True}),
    "modelnet40 dat": ("modelnet40", trees.write_modelnet_pickles, {"normals": True}),
    "modelnet40 hdf5": ("modelnet40", trees.write_modelnet_hdf5, {"source": "hdf5"}),
    "modelnet_fewshot": ("modelnet_fewshot", trees.write_fewshot, {"normals": True}),
    "scanobjectnn": ("scanobjectnn", trees.write_scanobjectnn, {"variant": "objonly"}),
    "shapenetpart": ("shapenetpart", trees.write_shapenetpart, {"num_points": 50, "normals": True}),
    "s3dis rooms": ("s3dis", trees.write_s3dis_rooms, {"form": "rooms", "num_points": 128}),
    "s3dis blocks": ("s3dis", trees.write_s3dis_blocks, {"form": "blocks", "num_points": 32}),
}


def build(name: str, root: Path, **options) -> PointClouds:
    return DATASETS.build({"name": name, "root": str(root), **options})


def pack(name: str, root: Path, **options) -> Path:
    module = importlib.import_module(f"datasets.{name}")
    taken = {key: value for key, value in options.items() if key in ("variant", "form", "source", "way", "shot")}
    path = root / "packed" / module.pack_key(**taken)
    store.write_store(path, module.listing(str(root), **taken))
    return path


@pytest.mark.parametrize("case", CASES)
def test_packed_reads_as_raw(tmp_path, case):
    name, write, options = CASES[case]
    root = write(tmp_path / "tree")
    splits = importlib.import_module(f"datasets.{name}").SPLITS
    raw = {split: build(name, root, split=split, **options) for split in splits}
    draws = np.linspace(0, 0.99, 4)
    batches = {split: data.fetch(range(4), draws) for split, data in raw.items()}
    path = pack(name, root, **options)
    for entry in root.iterdir():  # what is packed needs the raw files no more
        if entry.name != "packed":
            entry.rename(tmp_path / entry.name)
    for split in splits:
        data = build(name, root, split=split, **options)
        assert (len(data), data.fingerprint()) == (len(raw[split]), raw[split].fingerprint())
        assert (data.class_names, data.part_names) == (raw[split].class_names, raw[split].part_names)
        assert (data.up_axis, data.normalized) == (raw[split].up_axis, raw[split].normalized)
        batch = data.fetch(range(4), draws)
        assert batch.keys() == batches[split].keys()
        for key in batch.keys() - {"index"}:
            assert torch.equal(batch[key], batches[split][key]), key
        assert batch["points"].dtype == torch.float32 and batch["label"].dtype == torch.int64
    assert store.verify(path) == []


def test_shapenet55(tmp_path):
    root = trees.write_shapenet55(tmp_path / "tree")
    train, whole = build("shapenet55", root), build("shapenet55", root, split="whole")
    assert (len(train), len(whole), train.num_points, train.num_classes) == (12, 18, 64, 55)
    assert [train.class_names[label] for label in train.class_labels[:3]] == ["airplane", "trash bin", "chair"]
    stored = trees.cloud(1, 64)
    read = train.fetch([1])["points"][0].numpy()
    assert not np.array_equal(read, stored)  # in random order, always the same one
    assert np.array_equal(read[np.lexsort(read.T)], stored[np.lexsort(stored.T)])
    window = build("shapenet55", root, num_points=16)
    assert torch.equal(window.fetch([1])["points"][0], torch.from_numpy(read[:16]))
    assert torch.equal(window.fetch([1], np.array([0.5]))["points"][0], torch.from_numpy(read[32:48]))
    assert torch.equal(window.fetch([1], np.array([63 / 64]))["points"][0, 1], torch.from_numpy(read[0]))  # goes round


def test_a_missing_shapenet_list_is_asked_for_by_name(tmp_path):
    root = trees.write_shapenet55(tmp_path / "tree")
    (root / "ShapeNet-55" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"test\.txt: not there.*18 of 52,470.*Point-BERT repository"):
        build("shapenet55", root)
    (root / "ShapeNet-55" / "train.txt").unlink()
    with pytest.raises(UserError, match=r"neither train\.txt nor test\.txt"):
        build("shapenet55", root)


def test_a_missing_shapenet_list_is_what_the_other_leaves(tmp_path, monkeypatch, caplog):
    root = trees.write_shapenet55(tmp_path / "tree")
    expected = build("shapenet55", root, split="test").fetch(range(6))["points"]
    (root / "ShapeNet-55" / "test.txt").unlink()
    monkeypatch.setattr("datasets.shapenet55.COUNTS", {"train": 12, "test": 6})
    found = build("shapenet55", root, split="test").fetch(range(6))["points"]
    assert sorted(found.sum((1, 2)).tolist()) == sorted(expected.sum((1, 2)).tolist())
    assert "test.txt is not there; taken instead" in caplog.text


def test_modelnet_lists_and_names_are_worked_out_from_a_complete_folder(tmp_path, monkeypatch, caplog):
    root = trees.write_modelnet_text(tmp_path / "tree", train=3, test=2)
    expected = build("modelnet40", root, split="test").fetch(range(6))
    for path in root.glob("*.txt"):
        path.unlink()
    with pytest.raises(UserError, match=r"modelnet40_train\.txt: not there.*airplane/ holds 5 of 726"):
        build("modelnet40", root)
    sizes = dict.fromkeys(("airplane", "night_stand", "xbox"), (3, 2))
    monkeypatch.setattr("datasets.modelnet40.SIZES", sizes)
    found = build("modelnet40", root, split="test").fetch(range(6))
    assert torch.equal(found["points"], expected["points"]) and torch.equal(found["label"], expected["label"])
    assert "modelnet40_test.txt is not there; taken instead" in caplog.text


def test_modelnet_counts_are_those_of_the_release():
    assert len(SIZES) == 40 and list(SIZES) == sorted(SIZES)
    assert [sum(pair[place] for pair in SIZES.values()) for place in (0, 1)] == [9843, 2468]


@pytest.mark.parametrize("protocol", [0, 2, 3, 4, 5])
def test_modelnet_pickles_of_every_protocol(tmp_path, protocol):
    root = trees.write_modelnet_pickles(tmp_path / "tree", protocol=protocol)
    data = build("modelnet40", root, normals=True)
    batch = data.fetch([2])
    assert np.array_equal(batch["points"][0].numpy(), trees.cloud(602, 64, 6)[:, :3])
    assert batch["normals"][0].norm(dim=-1).sub(1).abs().max() < 1e-5 and batch["label"].item() == 2


class Attack:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (pickle.dumps([[Attack()], [0]]), r"builtins\.print|__builtin__\.print"),
        (b"cos\nsystem\n(S'true'\ntR.", r"os\.system"),
        (b"damaged", "not a pickle that can be read"),
        (b"", "not a pickle that can be read"),
        (pickle.dumps({"points": 1}), r"expected \[points, labels\]"),
        (pickle.dumps([[np.zeros((4, 3))], [0]]), r"cloud 0: expected floats of shape \(P, 6\)"),
        (pickle.dumps([[np.zeros((4, 6))], [7]]), "expected a label from 0 to 2"),
        (pickle.dumps([[np.zeros((4, 6))], ["a"]]), "expected a label"),
    ],
)
def test_pickles_that_are_refused(tmp_path, capsys, content, told):
    root = trees.write_modelnet_pickles(tmp_path / "tree")
    (root / "modelnet40_train_8192pts_fps.dat").write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        build("modelnet40", root)
    assert "modelnet40_train_8192pts_fps.dat" in str(caught.value) and "ran" not in capsys.readouterr().out


def test_fewshot_spellings_and_names(tmp_path):
    root = trees.write_fewshot(tmp_path / "tree", spelling="_")
    trees.write_fewshot(root, shot=20, spelling="")
    assert len(build("modelnet_fewshot", root)) == 50 and len(build("modelnet_fewshot", root, shot=20)) == 100
    data = build("modelnet_fewshot", root, split="test")
    assert len(data) == 100 and data.class_names == ("car", "bench", "laptop", "curtain", "sofa")
    with pytest.raises(UserError, match=r"5way_10shot/3\.pkl: not there, nor .*5way10shot/3\.pkl"):
        build("modelnet_fewshot", root, fold=3)


@pytest.mark.parametrize("variant", ["hardest", "objbg", "objonly", "hardest_nobg"])
def test_scanobjectnn_variants(tmp_path, variant):
    root = trees.write_scanobjectnn(tmp_path / "tree")
    data = build("scanobjectnn", root, variant=variant, num_points=32)
    suffix, part = ("_augmentedrot_scale75" if "hardest" in variant else ""), "main_split"
    part += "_nobg" if "nobg" in variant or variant == "objonly" else ""
    expected = trees.cloud(7 * len(part) + len(suffix) + 30 + 100 * 4, 64)[:32]
    assert np.array_equal(data.fetch([4])["points"][0].numpy(), expected)
    assert data.num_classes == 15 and data.class_names[4] == "chair" and data.class_labels[4] == 4
    assert len({build("scanobjectnn", root, variant=v).fingerprint() for v in ("hardest", "objbg", "objonly")}) == 3


def test_shapenetpart(tmp_path):
    root = trees.write_shapenetpart(tmp_path / "tree")
    sizes = {split: len(build("shapenetpart", root, split=split)) for split in ("trainval", "train", "val", "test")}
    assert sizes == {"trainval": 48, "train": 32, "val": 16, "test": 16}
    data = build("shapenetpart", root, split="test", num_points=400)  # more than there are
    batch = data.fetch([3])
    assert data.class_names[int(batch["label"])] == "Car" and set(batch["seg"][0].tolist()) == {8, 9, 10, 11}
    assert torch.equal(batch["points"], data.fetch([3])["points"])
    size = 60 + 7 * 3 + 3
    assert torch.equal(batch["points"][0, size:], batch["points"][0, : 400 - size].roll(0, 0)) or size * 2 < 400
    assert len(batch["points"][0].unique(dim=0)) == size
    whole = np.loadtxt(root / "02958343" / "t3.txt", np.float32)
    assert np.allclose(np.unique(batch["points"][0], axis=0), np.unique(normalized(whole[:, :3]), axis=0), atol=1e-6)


def test_shapenetpart_without_its_small_files(tmp_path, monkeypatch):
    root = trees.write_shapenetpart(tmp_path / "tree")
    expected = build("shapenetpart", root, split="val").fingerprint()
    (root / "synsetoffset2category.txt").unlink()
    assert build("shapenetpart", root, split="val").fingerprint() == expected
    (root / "train_test_split" / "shuffled_val_file_list.json").unlink()
    with pytest.raises(UserError, match=r"shuffled_val_file_list\.json: not there"):
        build("shapenetpart", root)
    monkeypatch.setattr("datasets.shapenetpart.COUNTS", {"train": 32, "val": 16, "test": 16})
    assert build("shapenetpart", root, split="val").fingerprint() == expected


@pytest.mark.parametrize("form", ["rooms", "blocks"])
def test_s3dis_areas(tmp_path, form):
    write = trees.write_s3dis_rooms if form == "rooms" else trees.write_s3dis_blocks
    root = write(tmp_path / "tree")
    train, test = (s3dis(str(root), split, area=2, num_points=32) for split in ("train", "test"))
    assert train.name == f"s3dis_{form}" and len(train) > len(test) > 0
    assert train.num_classes == 11 and train.part_names[12] == "clutter" and train.up_axis == "z"
    batch = test.fetch([0])
    assert batch["features"].shape == (1, 32, 6) and 0 <= batch["features"].min() <= batch["features"].max() <= 1
    assert batch["seg"].max() < 13
    with pytest.raises(UserError, match="area must be 1 to 6"):
        s3dis(str(root), area=7)


def test_rooms_are_cropped_by_the_draw_alone(tmp_path):
    root = trees.write_s3dis_rooms(tmp_path / "tree")
    data = s3dis(str(root), num_points=256)
    draws = np.array([0.25, 0.75])
    one, again, other = data.fetch([0, 1], draws), data.fetch([0, 1], draws), data.fetch([0, 1], draws + 0.1)
    assert torch.equal(one["points"], again["points"]) and not torch.equal(one["points"], other["points"])
    assert one["points"][..., :2].abs().max() <= 0.5 and one["points"][..., 2].max() > 1
    assert not torch.equal(data.fetch([0])["points"], data.fetch([1])["points"])  # of the same room
    part = data.subset(np.array([3, 5]), "val")
    assert torch.equal(part.fetch([1], draws[:1])["points"], data.fetch([5], draws[:1])["points"])


@pytest.mark.skipif(not GOLDEN.is_dir(), reason=ABSENT)
def test_items_as_recorded():
    blocks = Fixture(GOLDEN / "haq" / "s3dis_block_item.npz", "haq")
    for item in ("item0", "item1"):
        room, chosen = blocks[f"in/{item}/room"].numpy(), blocks[f"in/{item}/selected"].numpy()
        centre = room[int(blocks[f"in/{item}/centre_index"]), :3]
        points = np.concatenate(crop(room[:, :3], room[:, 3:6], chosen, centre), axis=1)
        assert np.allclose(points, blocks[f"out/{item}/points"].numpy(), atol=1e-5)
    part = Fixture(GOLDEN / "haq" / "shapenetpart_item.npz", "haq")
    for item in ("item0", "item3", "item5"):
        raw, choice = part[f"in/{item}/raw"].numpy(), part[f"in/{item}/choice"].numpy()
        assert np.allclose(normalized(raw[:, :3])[choice], part[f"out/{item}/points"].numpy()[:, :3], atol=1e-6)
    modelnet = Fixture(GOLDEN / "mae" / "dataset_items.npz", "mae")
    start = int(modelnet["in/modelnet_fps_start"])
    rows = modelnet["in/modelnet_raw_night_stand_0001"].numpy()
    kept = spread(np.concatenate([rows[start:], rows[:start]]), 12)  # ours starts with row 0
    assert np.array_equal(kept, modelnet["out/modelnet_cached_points"].numpy())


def test_items_of_rooms():
    assert items_of(np.array([4096 * 3, 4096]), 4096).tolist() == [3, 1]
    assert items_of(np.array([10, 5]), 4096).tolist() == [1, 1]


@pytest.mark.parametrize(
    ("case", "damage", "told"),
    [
        ("shapenet55", "shapenet_pc/02691156-0000-uuid.npy", "02691156-0000-uuid.npy: damaged"),
        ("modelnet40 txt", "xbox/xbox_0001.txt", "xbox_0001.txt: damaged"),
        ("scanobjectnn", "main_split_nobg/training_objectdataset.h5", "training_objectdataset.h5: cannot be read"),
        ("shapenetpart", "02691156/t0.txt", "t0.txt: damaged"),
        ("shapenetpart", "train_test_split/shuffled_train_file_list.json", "shuffled_train_file_list.json: cannot"),
        ("s3dis rooms", "Area_1_office_1.npy", "Area_1_office_1.npy: damaged"),
        ("s3dis blocks", "ply_data_all_1.h5", "ply_data_all_1.h5: cannot be read"),
        ("modelnet40 hdf5", "ply_data_train1.h5", "ply_data_train1.h5: cannot be read"),
    ],
)
def test_damaged_and_missing_files_are_named(tmp_path, case, damage, told):
    name, write, options = CASES[case]
    root = write(tmp_path / "tree")
    (root / damage).write_bytes(b"\x00 nothing of the kind")
    with pytest.raises(UserError, match=told):
        build(name, root, **options)
    (root / damage).unlink()
    if case != "s3dis rooms":  # of rooms there is no list: `tools.data check` counts them
        with pytest.raises(UserError, match="room_filelist" if "blocks" in case else Path(damage).name):
            build(name, root, **options)


def test_values_out_of_range_are_told_with_the_file(tmp_path):
    root = trees.write_shapenetpart(tmp_path / "tree")
    path = root / "02691156" / "t0.txt"
    table = np.loadtxt(path)
    for change, told in ((np.nan, "point 5 is NaN"), (None, "part labels run from 0 to 50")):
        broken = table.copy()
        broken[5, 0 if change is not None else 6] = 50 if change is None else change
        np.savetxt(path, broken)
        with pytest.raises(UserError, match=f"t0.txt: {told}"):
            build("shapenetpart", root)
    listing = json.loads((root / "train_test_split" / "shuffled_train_file_list.json").read_text())
    (root / "train_test_split" / "shuffled_train_file_list.json").write_text(json.dumps([*listing, "shape_data/1/x"]))
    with pytest.raises(UserError, match="names '1/x', whose category"):
        build("shapenetpart", root)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"split": "all"}, "split must be one of train, test"),
        ({"num_points": 65}, "65 asked for, but the clouds hold 64"),
        ({"num_points": 0}, "use at least 1"),
        ({"classes": 30}, "classes must be 40 or 10"),
        ({"source": "dat"}, r"fps\.dat: no such file"),
    ],
)
def test_wrong_options(tmp_path, options, told):
    root = trees.write_modelnet_text(tmp_path / "tree")
    with pytest.raises(UserError, match=told):
        build("modelnet40", root, **options)
    with pytest.raises(UserError, match="no such folder"):
        build("modelnet40", tmp_path / "nowhere")
