"""The data tool on small trees: what it says, that damage is named and nothing ends in a traceback."""

import importlib
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datasets import DATASETS
from datasets.modelnet_fewshot import modelnet_fewshot
from tests.datasets import trees
from tools.data import NAMES, main

WRITERS: dict[str, Callable[[Path], Path]] = {
    "shapenet55": trees.write_shapenet55,
    "modelnet40": trees.write_modelnet_text,
    "modelnet_fewshot": trees.write_fewshot,
    "scanobjectnn": trees.write_scanobjectnn,
    "shapenetpart": trees.write_shapenetpart,
    "s3dis": trees.write_s3dis_rooms,
}


@pytest.mark.parametrize("name", NAMES)
def test_check_pack_check_show(tmp_path, capsys, name):
    root = WRITERS[name](tmp_path / "tree")
    assert main(["check", name, "--root", str(root)]) == 0
    told = capsys.readouterr().out
    assert "not packed; python -m tools.data pack" in told and f"{name} can be used; see NOTE above" in told
    assert re.search(r"read \d+ of \d+ clouds: [\d,]+ to [\d,]+ points", told) and "is up" in told
    assert main(["pack", name, "--root", str(root)]) == 0
    assert "checksums and a second look" in capsys.readouterr().out
    assert main(["pack", name, "--root", str(root)]) == 0
    assert "packed already" in capsys.readouterr().out
    assert main(["check", name, "--root", str(root), "--all"]) == 0
    told = capsys.readouterr().out
    assert "packed, checksums agree" in told and "read all" in told
    assert main(["show", name, "--root", str(root), "--out", str(tmp_path / "out")]) == 0
    picture, page = (Path(line) for line in capsys.readouterr().out.splitlines())
    assert picture.read_bytes().startswith(b"\x89PNG") and len(zlib.compress(picture.read_bytes())) > 3000
    text = page.read_text()
    assert "data:image/png;base64," in text and "http" not in text and "fingerprint" in text


@pytest.mark.parametrize("name", NAMES)
def test_check_without_anything(tmp_path, capsys, name):
    assert main(["check", name, "--root", str(tmp_path / "none")]) == 1
    told = capsys.readouterr().out
    assert "no such folder; expected there:" in told
    for entry in importlib.import_module(f"datasets.{name}").TREE:
        assert entry.pattern in told
    (tmp_path / "empty").mkdir()
    assert main(["check", name, "--root", str(tmp_path / "empty")]) == 1
    assert "FAIL" in capsys.readouterr().out


@pytest.mark.parametrize("name", NAMES)
def test_options_of_the_tool_are_those_of_the_data_set(name):
    assert name in DATASETS.names()
    assert DATASETS.get(name).__name__ == name


def test_missing_damaged_and_doubled_clouds_are_named(tmp_path, capsys):
    root = trees.write_shapenet55(tmp_path / "tree")
    (root / "shapenet_pc" / "02747177-0001-uuid.npy").unlink()
    (root / "shapenet_pc" / "03001627-0002-uuid.npy").write_bytes(b"\x93NUMPY")
    with open(root / "ShapeNet-55" / "test.txt", "a") as file:
        file.write("02691156-0012-uuid.npy\n")
    assert main(["check", "shapenet55", "--root", str(root)]) == 1
    told = capsys.readouterr().out
    assert re.search(r"FAIL +listed, but not there or empty: .*02747177-0001-uuid\.npy", told)
    assert re.search(r"FAIL +damaged: .*03001627-0002-uuid\.npy: damaged", told)
    assert "the lists name 1 clouds more than once" in told and "problem(s), see FAIL above" in told


def test_a_pack_of_other_clouds_or_with_damage_is_told(tmp_path, capsys):
    root = trees.write_shapenet55(tmp_path / "tree")
    assert main(["pack", "shapenet55", "--root", str(root)]) == 0
    lists = root / "ShapeNet-55" / "train.txt"
    lines = lists.read_text().splitlines()
    lists.write_text("\n".join(lines[:-1]))
    assert main(["check", "shapenet55", "--root", str(root)]) == 1
    assert "packed from other files or lists" in capsys.readouterr().out
    assert main(["pack", "shapenet55", "--root", str(root)]) == 0
    assert main(["check", "shapenet55", "--root", str(root)]) == 0
    (root / "packed" / "shapenet55" / "points.f4").write_bytes(b"")
    capsys.readouterr()
    assert main(["check", "shapenet55", "--root", str(root)]) == 1
    assert "checksum is not the one noted" in capsys.readouterr().out


def test_the_default_place_is_below_the_data_root(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("POINT_DATA_ROOT", str(tmp_path))
    trees.write_scanobjectnn(tmp_path / "ScanObjectNN")
    assert main(["check", "scanobjectnn", "variant=objonly"]) == 0
    assert "scanobjectnn_objonly: not packed" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["check", "shapenet"], "'shapenet' is no data set with files of its own. Did you mean 'shapenet55'?"),
        (["check", "scanobjectnn", "variants=objbg"], "no such option. Did you mean 'variant'?"),
        (["check", "scanobjectnn", "objbg"], "write options as name=value"),
        (["pack", "s3dis", "area=five"], "area: expected an integer"),
        (["pack", "modelnet40", "--root", "/nowhere"], "/nowhere: no such folder"),
        (["show", "modelnet40", "--root", "/nowhere"], "/nowhere: no such folder"),
        (["fewshot", "--root", "/nowhere"], "/nowhere: no such folder"),
    ],
)
def test_mistakes_are_one_line(capsys, words, told):
    assert main(words) == 2
    printed = capsys.readouterr().err
    assert told in printed and printed.count("\n") == 1


def test_fewshot_folds_are_a_function_of_the_seed(tmp_path, capsys):
    root = trees.write_modelnet_text(tmp_path / "tree", train=6, test=22)
    args = ["fewshot", "--root", str(root), "--way", "2", "3", "--shot", "5", "--folds", "2"]
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        assert main([*args, "--out", str(tmp_path / name), "--seed", seed]) == 0
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a").rglob("*.pkl"))
    assert [str(path) for path in files] == [f"{w}way_5shot/{fold}.pkl" for w in (2, 3) for fold in (0, 1)]
    same = [(tmp_path / "a" / path).read_bytes() == (tmp_path / "b" / path).read_bytes() for path in files]
    other = [(tmp_path / "a" / path).read_bytes() == (tmp_path / "c" / path).read_bytes() for path in files]
    assert all(same) and not any(other)
    assert (tmp_path / "a" / files[0]).read_bytes() != (tmp_path / "a" / files[1]).read_bytes()
    capsys.readouterr()
    assert main([*args, "--out", str(tmp_path / "a")]) == 0
    assert "0 folds written" in capsys.readouterr().out
    data = {
        part: modelnet_fewshot(str(tmp_path / "a"), way=3, shot=5, fold=1, split=part) for part in ("train", "test")
    }
    assert (len(data["train"]), len(data["test"])) == (15, 60)
    assert np.bincount(data["train"].class_labels).tolist() == [5, 5, 5]
    assert main([*args[:3], "--way", "4", "--out", str(tmp_path / "d")]) == 2
    assert "4 classes asked for, there are 3" in capsys.readouterr().err
