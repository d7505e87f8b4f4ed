"""A folder of files: layouts, determinism, sampling, cache, and the mistakes people make."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from datasets.files import write_ply
from datasets.folder import folder
from utils.errors import UserError

CUBE_OFF = "OFF\n8 6 0\n" + "".join(f"{x} {y} {z}\n" for x in (0, 2) for y in (0, 2) for z in (0, 2)) + (
    "4 0 1 3 2\n4 4 5 7 6\n4 0 1 5 4\n4 2 3 7 6\n4 0 2 6 4\n4 1 3 7 5\n"
)  # fmt: skip


def put(path: Path, points: int = 0) -> None:
    """A cube as .off, or a random cloud of this many points as .ply."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if points:
        write_ply(path, np.random.default_rng(points).normal(size=(points, 3)))
    else:
        path.write_text(CUBE_OFF)


@pytest.fixture
def tree(tmp_path) -> Path:
    root = tmp_path / "shapes"
    for name in ("train/box/b.off", "train/box/a.off", "train/ant/c.off", "test/box/d.off", "test/cat/e.off"):
        put(root / name)
    (root / "train/box/a.mtl").write_text("not a cloud")
    (root / "train/box/.hidden.off").write_text("not a cloud")
    (root / ".git").mkdir()
    (root / "papers/2020").mkdir(parents=True)  # shares no class with the splits, so it is none
    return root


def test_classes_are_numbered_over_all_splits(tree):
    train, test = folder(str(tree), num_points=32), folder(str(tree), "test", num_points=32)
    assert train.class_names == test.class_names == ("ant", "box", "cat")
    assert train.class_labels.tolist() == [0, 1, 1] and test.class_labels.tolist() == [1, 2]
    assert (train.name, train.split, train.num_points) == ("shapes", "train", 32)


def test_the_same_clouds_each_time(tree):
    one, two = (folder(str(tree), num_points=64).fetch([0, 1, 2]) for _ in range(2))
    assert torch.equal(one["points"], two["points"])
    assert not torch.equal(one["points"][1], one["points"][2])  # equal meshes, other files: other samples
    assert not torch.equal(folder(str(tree), num_points=64, seed=1).fetch([0])["points"][0], one["points"][0])
    put(tree / "train/ant/b.off")  # a new file does not change the others
    assert torch.equal(folder(str(tree), num_points=64).fetch([1])["points"][0], one["points"][0])


def test_meshes_are_sampled_over_their_surface(tree):
    raw = folder(str(tree), num_points=500, normalize=False).fetch([0])
    points, normals = raw["points"][0], raw["normals"][0]
    assert ((points.abs() < 1e-5) | ((points - 2).abs() < 1e-5)).any(-1).all()  # on a side of the cube
    assert torch.allclose(normals.abs().max(-1).values, torch.ones(500))
    points = folder(str(tree), num_points=500).fetch([0])["points"][0]
    assert points.mean(0).abs().max() < 1e-5 and abs(points.norm(dim=-1).max() - 1) < 1e-5


def test_clouds_are_thinned_or_repeated(tmp_path, caplog):
    put(tmp_path / "a/large.ply", 100)
    put(tmp_path / "a/small.ply", 10)
    put(tmp_path / "b/one.ply", 1)
    data = folder(str(tmp_path), num_points=32)
    points = data.fetch([0, 1, 2])["points"]
    assert [len(cloud.unique(dim=0)) for cloud in points] == [32, 10, 1]
    assert torch.isfinite(points).all()
    assert caplog.text.count("2 of 3 clouds") == 1 and "small.ply" in caplog.text
    assert data.normals is None


def test_one_split_and_class_first_layouts(tmp_path):
    for name in (
        "flat/ant/a.off",
        "flat/box/b.off",
        "net/ant/train/a.off",
        "net/ant/test/b.off",
        "net/box/train/c.off",
    ):
        put(tmp_path / name)
    assert folder(str(tmp_path / "flat")).class_labels.tolist() == [0, 1]
    with pytest.raises(UserError, match="no split 'test'; sub-folders: ant, box; they hold files, which are split"):
        folder(str(tmp_path / "flat"), "test")
    assert folder(str(tmp_path / "net")).class_labels.tolist() == [0, 1]
    test = folder(str(tmp_path / "net"), "test")
    assert test.class_labels.tolist() == [0] and test.class_names == ("ant", "box")


def test_cache_is_used_until_something_changes(tree, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    first = folder(str(tree), num_points=16, cache=str(cache))
    plain = folder(str(tree), num_points=16)
    assert first.fingerprint() == plain.fingerprint()
    assert torch.equal(first.fetch([0])["normals"], plain.fetch([0])["normals"])
    with monkeypatch.context() as patch:
        patch.setattr("datasets.folder.read_cloud", None)  # reading a file again would fail
        again = folder(str(tree), num_points=16, cache=str(cache))
    assert torch.equal(again.fetch([0, 1, 2])["points"], plain.fetch([0, 1, 2])["points"])
    os.utime(tree / "train/ant/c.off", ns=(1, 1))
    for arguments in ({"num_points": 16}, {"num_points": 8}, {"num_points": 8, "seed": 2}):
        folder(str(tree), cache=str(cache), **arguments)  # type: ignore[arg-type]
    assert len(os.listdir(cache)) == 4


def test_mistakes_are_readable_lines(tree):
    def line(*arguments, **keywords) -> str:
        with pytest.raises(UserError) as caught:
            folder(*arguments, **keywords)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such folder" in line(str(tree / "none"))
    assert "there is no split 'val'; sub-folders: papers, test, train; below them: 2020, ant, box, cat" in line(
        str(tree), "val"
    )
    assert "no class sub-folders in it" in line(str(tree / "train/box"))
    assert "at least 1" in line(str(tree), num_points=0)
    assert "seed at least 0" in line(str(tree), seed=-1)
    (tree / "train/ant/c.off").write_text("OFF\n3 1 0\n0 0 0\n")
    assert f"{tree}/train/ant/c.off: not a readable .off file" in line(str(tree))
    (tree / "train/ant/c.off").write_text("OFF\n3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n")
    assert f"{tree}/train/ant/c.off: mesh of 1 triangles has no surface" in line(str(tree))
    os.rename(tree / "train/ant/c.off", tree / "train/ant/c.glb")
    assert f"{tree}/train/ant: no readable files (found .glb); readable: .ply" in line(str(tree))
    shutil.rmtree(tree / "train")
    (tree / "train").mkdir()
    assert f"{tree}/train: no class sub-folders in it" in line(str(tree))
