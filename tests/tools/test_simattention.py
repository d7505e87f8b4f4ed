"""The configurations of 3DSimAttention train on data of their format; a trained network is exported."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datasets.packed import write_packed
from tests.helpers import rows_of
from tools.build import check_config
from tools.cli import main
from tools.export import main as export
from tools.graph import difference, example_for, trace
from utils.config import load_config, to_plain
from utils.errors import UserError

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "cfgs" / "simattention").glob("*.yaml"))
SMALL = ["model.depth=1", "model.embed_dim=16", "model.num_heads=2", "data.batch_size=8", "runner.epochs=1"]
GROUPS = ["model.num_group=8", "model.group_size=4"]


@pytest.fixture
def data_root(tmp_path, monkeypatch) -> Path:
    rng = np.random.default_rng(0)
    for name in ("infomr69", "shrec16", "lpsb19_seg"):
        for part in ("train", "test"):
            points, labels = rng.normal(size=(24, 64, 3)).astype(np.float32), np.arange(24) % 3
            options: dict[str, Any] = {}
            if name == "lpsb19_seg":
                seg = 2 * labels[:, None] + (points[..., 0] > 0)
                parts = [f"{letter}/{half}" for letter in "abc" for half in ("left", "right")]
                options = {"seg": seg, "part_names": parts, "part_category": np.arange(6) // 2}
            write_packed(tmp_path / f"{name}_{part}.npz", points, labels, list("abc"), **options)
    monkeypatch.setenv("POINT_DATA_ROOT", str(tmp_path))
    return tmp_path


def arguments(path: Path, root: Path, *more: str) -> list[str]:
    config = to_plain(load_config(path)[0])
    check_config(config)
    words = [*SMALL, *(GROUPS if "Neighbourhood" in config["model"]["name"] else [])]
    for split in ("train", "test"):
        words.append(f"data.{split}.num_points=32")
        words += [f"data.{split}.size=32"] if config["data"][split]["name"] == "synthetic_shapes" else []
    return ["--config", str(path), "--root", str(root), "device=cpu", "data.val_fraction=0.3", *words, *more]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_trains(path: Path, data_root: Path) -> None:
    for kind in ("sim", "dense"):
        change = "model.attention.restore=per_head" if kind == "sim" else "model.attention=dense"
        args = arguments(path, data_root / "runs", change, "--scratch_model", "--exp_name", kind)
        assert main("finetune", args) == 0
        rows = rows_of(data_root / "runs" / path.stem / kind)
        assert {row["metric"] for row in rows} & {"acc", "instance_iou"}


@pytest.mark.filterwarnings("ignore")
def test_a_trained_network_is_exported(data_root: Path, capsys: pytest.CaptureFixture) -> None:
    path = ROOT / "cfgs" / "simattention" / "synthetic.yaml"
    args = arguments(path, data_root / "runs", "--scratch_model", "model.attention.window=3")
    assert main("finetune", args) == 0
    words = [word for word in args if "=" in word]
    assert "data.train.size=32" in words
    checkpoint = str(data_root / "runs" / "synthetic" / "default" / "ckpt-last.pth")
    common = ["--config", str(path), "--ckpts", checkpoint, "--points", "24", "--batch", "2", *words]
    for kind in ("pt2", "onnx"):
        if kind == "onnx":
            pytest.importorskip("onnxruntime")
            pytest.importorskip("onnxscript")
        target = data_root / f"out.{kind}"
        assert export([*common, "--format", kind, "--output", str(target)]) == 0
        assert target.stat().st_size > 1000 and "largest deviation" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["SimNeighbourhoodClassifier", "PointMAEClassifier"])
def test_sampling_and_neighbours_are_written_out(name: str, tmp_path: Path) -> None:
    from models import MODELS

    attention = {"name": "sim", "window": 3, "k_heads": 1}
    options = {"embed_dim": 8, "num_heads": 2, "depth": 1, "num_group": 4, "group_size": 4, "attention": attention}
    model = MODELS.build({"name": name, "num_classes": 3, **options}).eval()
    example = example_for(model, 1, 20)
    program = trace(model, example, "pt2")
    assert "pointsmith" not in str(program.graph)
    path = tmp_path / "x.pt2"
    torch.export.save(program, path)
    assert difference(model, "pt2", path, example) < 1e-5


@pytest.mark.parametrize("wrong", [["--batch", "0"], ["--points", "-1"]])
def test_a_graph_of_nothing_is_told(wrong: list[str], capsys: pytest.CaptureFixture) -> None:
    assert export(["--config", "any.yaml", "--ckpts", "any.pth", *wrong]) == 2
    assert "use at least 1" in capsys.readouterr().err


def test_what_is_missing_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    from tools.graph import needed

    real = builtins.__import__
    monkeypatch.setattr(
        "importlib.import_module",
        lambda name: (_ for _ in ()).throw(ImportError(name)) if name == "onnxscript" else real(name),
    )
    with pytest.raises(UserError, match="--format onnx needs the package onnxscript: pip install onnxscript"):
        needed("onnxscript", "--format onnx")
