"""Every shipped configuration builds, and trains on a small tree of its own data set."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from datasets.packed import write_packed
from models import MODELS
from tests.datasets import trees
from tests.models.test_point_mae import SMALL
from tools.build import check_config, check_data
from tools.cli import main
from utils.config import load_config, to_plain

ROOT = Path(__file__).parents[1]
RUNS = [path for folder in ("pretrain", "finetune") for path in sorted((ROOT / "cfgs" / folder).glob("*.yaml"))]
DATA = sorted((ROOT / "cfgs" / "_base_" / "data").glob("*.yaml"))
PARAMETERS = {"point_mae": 29_006_432, "modelnet40": 22_099_752, "modelnet40_8k": 22_099_752}  # as published
PARAMETERS |= dict.fromkeys(("scan_hardest", "scan_objbg", "scan_objonly"), 22_093_327)
CLASSES = {"modelnet40": 40, "modelnet40_8k": 40, "scan_hardest": 15, "scan_objbg": 15, "scan_objonly": 15}
RUN = ["data.batch_size=8", "runner.epochs=1", "device=cpu"]


@pytest.fixture
def data_root(tmp_path, monkeypatch) -> Path:
    """The tree of all data sets, as Point-BERT lays it out."""
    root = tmp_path / "data"
    trees.write_shapenet55(root / "ShapeNet55-34", train=16, test=6)
    trees.write_modelnet_text(root / "ModelNet" / "modelnet40_normal_resampled", train=12, test=3)
    trees.write_fewshot(root / "ModelNetFewshot", points=64)
    trees.write_scanobjectnn(root / "ScanObjectNN", train=60, test=15)
    trees.write_shapenetpart(root / "shapenetcore_partanno_segmentation_benchmark_v0_normal")
    trees.write_s3dis_rooms(root / "S3DIS")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        points = rng.normal(size=(32, 64, 3)).astype(np.float32)
        write_packed(root / f"infomr69_{part}.npz", points, np.arange(32) % 4, list("abcd"))
    monkeypatch.setenv("POINT_DATA_ROOT", str(root))
    return root


def load(path: Path) -> dict:
    return to_plain(load_config(path)[0])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_it_is_a_configuration(path):
    config = load(path)
    check_config(config)
    if path.stem in PARAMETERS:
        extra = {"num_classes": CLASSES[path.stem]} if path.stem in CLASSES else {}
        model = MODELS.build(config["model"], "model", **extra)
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[path.stem]


def small_model(model: dict, where: str) -> list[str]:
    """Sizes of a model and of the backbone in it."""
    sizes = {key: value for key, value in SMALL[model["name"]].items() if key not in ("mask", "backbone")}
    words = [f"{where}.{key}={value}" for key, value in sizes.items()]
    if "backbone" in model:
        words += [*small_model(model["backbone"], f"{where}.backbone"), f"{where}.mask.ratio=0.5"]
        words += [f"{where}.teacher=auto"] if "distillation_weights" in model else []
    return words


def smaller(config: dict) -> list[str]:
    """Overrides that fit data of 64 points a cloud."""
    words = [*RUN, *small_model(config["model"], "model")]
    for split in ("train", "val", "test"):
        options = config["data"].get(split) or {}
        words += [f"data.{split}.num_points=32"] if "num_points" in options else []
        words += (
            [f"data.{split}.size=32", f"data.{split}.num_points=64"]
            if options.get("name") == "synthetic_shapes"
            else []
        )
    words += ["data.val_fraction=0.5"] if config["data"].get("val_fraction") != 0 else []
    for key in ("augment", "eval_transform"):
        for place, step in enumerate(config["data"].get(key, [])):
            words += [f"data.{key}.{place}.num_points=48"] if "num_points" in step else []
    return words + (["data.label_fraction=1"] if "label_fraction" in config["data"] else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_it_trains_on_data_of_its_own_format(path, data_root, tmp_path):
    mode = path.parent.name
    args = ["--config", str(path), "--root", str(tmp_path / "runs"), *smaller(load(path))]
    assert main(mode, [*args, *(["--scratch_model"] if mode == "finetune" else [])]) == 0
    folder = tmp_path / "runs" / path.stem / "default"
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] >= 2 and np.isfinite(record["train/loss"])
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert rows if "test" in load(path)["data"] else not rows


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_every_data_set_has_a_file_that_reads(path, data_root):
    from datasets import DATASETS

    config = to_plain(load_config(path)[0])
    check_data(config)
    for split in ("train", "val", "test"):
        if split in config:
            options = config[split] | (
                {"num_points": 32} if path.stem in ("shapenet55", "shapenetpart", "s3dis") else {}
            )
            assert len(DATASETS.build(options, split).fetch([0, 1])["points"]) == 2


def test_every_data_file_is_yaml_of_a_data_section():
    assert {path.stem for path in DATA} >= {
        "shapenet55",
        "modelnet40",
        "modelnet_fewshot",
        "scanobjectnn",
        "shapenetpart",
        "s3dis",
    }
    assert all("train" in yaml.safe_load(path.read_text()) for path in DATA)
