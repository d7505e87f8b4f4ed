"""Every shipped configuration builds, and trains on a small tree of its own data set."""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from datasets.packed import write_packed
from models import MODELS
from models.peft.apply import count
from tests.datasets import trees
from tests.models.test_point_mae import SMALL
from tools.adapt import adapt
from tools.build import check_config, check_data
from tools.cli import main, parse_arguments
from tools.sweep import prefix
from utils.config import load_config, to_plain
from utils.schema import parameters

ROOT = Path(__file__).parents[1]
FOLDERS = ("pretrain", "finetune", "any2point", "samplenet")
RUNS = [path for folder in FOLDERS for path in sorted((ROOT / "cfgs" / folder).glob("*.yaml"))]
SEGMENT = sorted((ROOT / "cfgs" / "segment").glob("*.yaml"))
ADAPTED = sorted((ROOT / "cfgs" / "peft").glob("*.yaml"))
DATA = sorted((ROOT / "cfgs" / "_base_" / "data").glob("*.yaml"))
PARAMETERS = {"point_mae": 29_006_432, "modelnet40": 22_099_752, "modelnet40_8k": 22_099_752}  # as published
PARAMETERS |= dict.fromkeys(("scan_hardest", "scan_objbg", "scan_objonly"), 22_093_327)
PARAMETERS |= {"point_transformer_modelnet40": 9_584_136, "pct_modelnet40_normals": 2_876_328}
PARAMETERS |= {"sortnet_modelnet40": 21_031_120}
SIZED = ("shapenet55", "shapenetpart", "s3dis")
PARAMETERS |= {"point_bert_modelnet40": 22_065_960, "clip_modelnet40": 86_473_344, "clip_scan_hardest": 86_466_407}
PARAMETERS |= {"dinov2_modelnet40": 86_344_224, "dinov2_scan_hardest": 86_337_287}
PARAMETERS |= {"imagebind_modelnet40": 86_325_792, "imagebind_scan_hardest": 86_392_631}
PARAMETERS |= {"point_m2ae": 15_255_856, "m2ae_modelnet40": 12_830_056}
PARAMETERS |= dict.fromkeys(("m2ae_scan_hardest", "m2ae_scan_objbg", "m2ae_scan_objonly"), 12_921_935)
PROBES = sorted((ROOT / "cfgs" / "probe").glob("*.yaml"))
SEGMENTER = [f"data.{split}.num_points=48" for split in ("train", "val", "test")]
RUN = ["data.batch_size=8", "runner.epochs=1", "device=cpu"]


@pytest.fixture
def data_root(tmp_path, monkeypatch) -> Path:
    """The tree of all data sets, as Point-BERT lays it out."""
    root = tmp_path / "data"
    trees.write_shapenet55(root / "ShapeNet55-34", train=16, test=6)
    trees.write_modelnet_text(root / "ModelNet" / "modelnet40_normal_resampled", train=12, test=3)
    trees.write_modelnet_hdf5(root / "modelnet40_ply_hdf5_2048")
    trees.write_fewshot(root / "ModelNetFewshot", points=64)
    trees.write_scanobjectnn(root / "ScanObjectNN", train=60, test=15)
    trees.write_shapenetpart(root / "shapenetcore_partanno_segmentation_benchmark_v0_normal")
    trees.write_s3dis_rooms(root / "S3DIS")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        points = rng.normal(size=(32, 64, 3)).astype(np.float32)
        labels = np.arange(32) % 4
        for name in ("infomr69", "shrec16"):
            write_packed(root / f"{name}_{part}.npz", points, labels, list("abcd"))
        seg, names = np.tile(labels[:, None], (1, 64)), list("wxyz")
        path = root / f"lpsb19_seg_{part}.npz"
        write_packed(path, points, labels, list("abcd"), seg=seg, part_names=names, part_category=range(4))
    np.savez(root / "demo_shapes.npz", points=rng.normal(size=(24, 64, 3)).astype(np.float32))
    monkeypatch.setenv("POINT_DATA_ROOT", str(root))
    return root


def load(path: Path) -> dict:
    return to_plain(load_config(path)[0])


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_it_is_a_configuration(path):
    config = load(path)
    check_config(config)
    if path.stem in PARAMETERS and path.parent.name != "samplenet":
        classes = 40 if "modelnet40" in path.stem else 15
        extra = {"num_classes": classes} if path.parent.name != "pretrain" else {}
        with torch.device("meta"):
            model = MODELS.build(config["model"], "model", **extra)
        assert sum(p.numel() for p in model.parameters()) == PARAMETERS[path.stem]


PARTS = ("mask", "backbone", "tower", "sampler", "network")


def small_model(model: dict, where: str) -> list[str]:
    """Sizes of a model and of the backbone in it."""
    sizes = {key: value for key, value in SMALL[model["name"]].items() if key not in PARTS}
    if "tower" in model:
        sizes["tower"] = {"embed_dim": 24, "depth": 1, "num_heads": 2}
    words = [f"{where}.{key}={value}" for key, value in sizes.items()]
    if "sampler" in model:
        sampler = {"num_out": 12, "bottleneck": 8, "mlp": [8, 8], "head": [8]}
        sampler |= {"sizes": [6, 12], "eval_size": 6} if "sizes" in model["sampler"] else {}
        words += [f"{where}.sampler.{key}={value}" for key, value in sampler.items()]
        words += small_model(model["network"], f"{where}.network")
    if "backbone" in model:
        words += [*small_model(model["backbone"], f"{where}.backbone"), f"{where}.mask.ratio=0.5"]
        words += [f"{where}.teacher=auto"] if "distillation_weights" in model else []
    return words


@pytest.mark.parametrize("path", SEGMENT, ids=lambda path: path.stem)
def test_it_is_a_configuration_of_a_segmenter(path):
    config = load(path)
    check_config(config)
    with torch.device("meta"):
        model = MODELS.build(config["model"], "model", num_parts=5)
    if path.stem == "point_transformer_shapenetpart":
        told = MODELS.build({**config["model"], "num_categories": 16}, "model", num_parts=50)
        assert sum(p.numel() for p in told.parameters()) == 19_397_362
    assert model.num_parts == 5


def smaller(config: dict) -> list[str]:
    """Overrides that fit data of 64 points a cloud."""
    words = [*RUN, *small_model(config["model"], "model")]
    for split in ("train", "val", "test"):
        options = config["data"].get(split) or {}
        words += [f"data.{split}.num_points=32"] if "num_points" in options else []
        words += (
            [f"data.{split}.size={256 if 'classes' in config['data'] else 32}", f"data.{split}.num_points=64"]
            if options.get("name") == "synthetic_shapes"
            else []
        )
    if "classes" in config["data"]:  # few clouds are left
        words += ["data.batch_size=4"]
        words += ["data.classes=[airplane,xbox]"] if config["data"]["train"]["name"] == "modelnet40" else []
    words += ["data.val_fraction=0.5"] if config["data"].get("val_fraction") != 0 else []
    kept = 32 if "num_points" in config["data"]["train"] else 48
    for key in ("augment", "eval_transform"):
        for place, step in enumerate(config["data"].get(key, [])):
            words += [f"data.{key}.{place}.num_points={kept}"] if "num_points" in step else []
    return words + (["data.label_fraction=1"] if "label_fraction" in config["data"] else [])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_it_trains_on_data_of_its_own_format(path, data_root, tmp_path):
    mode = "pretrain" if path.parent.name == "pretrain" else "finetune"
    args = ["--config", str(path), "--root", str(tmp_path / "runs"), *smaller(load(path))]
    assert main(mode, [*args, *(["--scratch_model"] if mode == "finetune" else [])]) == 0
    folder = tmp_path / "runs" / path.stem / "default"
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] >= 2 and np.isfinite(record["train/loss"])
    rows = json.loads((folder / "results.json").read_text())["rows"]
    assert rows if "test" in load(path)["data"] else not rows


@pytest.mark.parametrize("path", ADAPTED, ids=lambda path: path.stem)
def test_it_lists_adaptations_that_fit_its_model(path):
    config = load(path)
    check_config(config)
    sizes = dict.fromkeys(("num_classes", "num_parts", "num_categories"), 4)
    taken = {key: size for key, size in sizes.items() if key in parameters(MODELS.get(config["model"]["name"]))}
    with torch.device("meta"):
        model = MODELS.build(config["model"], "model", **taken)
        adapt(model, config)
    assert 0 < count(model).percent < 15


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("stem, more", [("infomr69", []), ("fewshot_capod15", ["data.few_shot.way=3"])])
def test_adaptations_train(stem, more, data_root, tmp_path):
    for part in ("train", "test"):
        rng = np.random.default_rng(0)
        points, labels = rng.normal(size=(45, 64, 3)).astype(np.float32), np.arange(45) % 3
        write_packed(data_root / f"capod15_{part}.npz", points, labels, list("abc"))
    path = ROOT / "cfgs" / "peft" / f"{stem}.yaml"
    args = ["--config", str(path), "--root", str(tmp_path / "runs"), "--scratch_model", *smaller(load(path)), *more]
    assert main("finetune", args) == 0
    folder = tmp_path / "runs" / path.stem / "default"
    assert (folder / "adapter.safetensors").is_file() and (folder / "results.json").is_file()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", PROBES, ids=lambda path: path.stem)
def test_it_probes_data_of_its_own_format(path, data_root, tmp_path):
    args = ["--config", str(path), "--root", str(tmp_path / "runs"), *smaller(load(path)), "--svm"]
    assert main("pretrain", args) == 0
    rows = json.loads((tmp_path / "runs" / path.stem / "svm_default" / "results.json").read_text())["rows"]
    assert {"svm_acc", "svm_cv_acc", "knn_acc"} <= {row["metric"] for row in rows}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name, sizes", [("segment/m2ae_shapenetpart", SEGMENTER), ("fewshot/m2ae_modelnet40", [])])
def test_the_other_tasks_of_point_m2ae(name, sizes, data_root, tmp_path):
    """As published: 25.5 M parameters; the folder of the few-shot folds reads."""
    path = ROOT / "cfgs" / f"{name}.yaml"
    config = load(path)
    if sizes:
        model = MODELS.build(config["model"], "model", num_parts=50, num_categories=16)
        assert sum(p.numel() for p in model.parameters()) == 25_474_354
    args = ["--config", str(path), "--root", str(tmp_path / "runs"), *smaller(config), *sizes, "--scratch_model"]
    assert main("finetune", args) == 0
    assert json.loads((tmp_path / "runs" / path.stem / "default" / "results.json").read_text())["rows"]


@pytest.mark.parametrize("path", DATA, ids=lambda path: path.stem)
def test_every_data_set_has_a_file_that_reads(path, data_root):
    from datasets import DATASETS

    config = to_plain(load_config(path)[0])
    check_data(config)
    for split in ("train", "val", "test"):
        if split in config:
            options = config[split] | (
                {"num_points": 32} if "num_points" in config[split] or path.stem in SIZED else {}
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


@pytest.mark.parametrize("page", ["README.md", *(f"docs/{path.name}" for path in sorted(ROOT.glob("docs/*.md")))])
def test_the_commands_of_a_page_do_not_meet_in_one_folder(page):
    """They are there to be run one after the other."""
    text = (ROOT / page).read_text(encoding="utf-8").replace("\\\n", " ")
    folders = []
    for mode, command in re.findall(r"main_(pretrain|finetune)\.py (--config cfgs/.*)", text):
        args = parse_arguments(mode, shlex.split(command, comments=True))
        if not (args.resume or args.print_config or args.config.startswith("cfgs/mine/")):
            folders.append(f"{Path(args.config).stem}/{prefix(args)}{args.exp_name}")
    assert [folder for folder, number in Counter(folders).items() if number > 1] == []
