"""The shipped configurations of ShapeNetPart, S3DIS and ModelNet few-shot on small trees in the released formats."""

from __future__ import annotations

import json

import pytest

from tests.datasets import trees
from tools.cli import main

pytestmark = pytest.mark.filterwarnings("ignore")

ENCODER = ["model.embed_dim=24", "model.num_heads=2", "model.depth=1", "model.num_group=8", "model.group_size=8"]
SMALL = [*ENCODER, "model.patch_width=16", "runner.epochs=1", "data.batch_size=4"]
SHORT = ["runner.epochs=1", "data.batch_size=16"]
HEAD = ["model.local_dim=16", "model.head_dim=16"]


def rows_of(folder):
    return {row["metric"]: row for row in json.loads((folder / "results.json").read_text())["rows"]}


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setenv("POINT_DATA_ROOT", str(tmp_path))
    return tmp_path


def test_shapenetpart(root):
    trees.write_shapenetpart(root / "shapenetcore_partanno_segmentation_benchmark_v0_normal")
    points = [f"data.{split}.num_points=48" for split in ("train", "val", "test")]
    command = ["--config", "cfgs/segment/shapenetpart.yaml", *SMALL, *HEAD, *points, "--root", str(root / "runs")]
    assert main("finetune", [*command, "--scratch_model", "--vote"]) == 0
    rows = rows_of(root / "runs/shapenetpart/default")
    assert len(rows["instance_iou"]["per_class"]) == 16 and "instance_iou_vote" in rows


@pytest.mark.parametrize("form, rule", [("rooms", "overlapping blocks vote"), ("blocks", "points of the blocks")])
def test_s3dis(root, form, rule):
    (trees.write_s3dis_rooms if form == "rooms" else trees.write_s3dis_blocks)(root / "S3DIS")
    points = [f"data.{split}.num_points=64" for split in ("train", "test")]
    command = ["--config", "cfgs/segment/s3dis.yaml", *SMALL, *HEAD, *points, "--root", str(root / "runs")]
    assert main("finetune", [*command, "--scratch_model", "data.val_fraction=0.2", "data.train.block=2"]) == 0
    row = rows_of(root / "runs/s3dis/default")["miou"]
    assert rule in row["protocol"] and len(row["per_class"]) == 13


LEVELS = ["model.embed_dim=8", "model.num_levels=2", "model.attention_dim=8", "model.num_neighbors=4"]


def test_normals_reach_the_network(root):
    trees.write_shapenetpart(root / "shapenetcore_partanno_segmentation_benchmark_v0_normal")
    points = [f"data.{split}.num_points=48" for split in ("train", "val", "test")]
    command = ["--config", "cfgs/segment/point_transformer_shapenetpart.yaml", *LEVELS, *points, *SHORT]
    assert main("finetune", [*command, "--root", str(root / "runs"), "--scratch_model", "--vote"]) == 0
    rows = rows_of(root / "runs/point_transformer_shapenetpart/default")
    assert len(rows["instance_iou"]["per_class"]) == 16 and "instance_iou_vote" in rows


def test_without_normals_the_network_says_what_to_do(root, capsys):
    trees.write_shapenetpart(root / "shapenetcore_partanno_segmentation_benchmark_v0_normal")
    points = [f"data.{split}.num_points=48" for split in ("train", "val", "test")]
    command = ["--config", "cfgs/segment/point_transformer_shapenetpart.yaml", *LEVELS, *points, *SHORT]
    assert (
        main("finetune", [*command, "--root", str(root / "runs"), "--scratch_model", "data.train.normals=false"]) == 2
    )
    assert "extra_channels: 3, but the points come with 0 channels" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["rooms", "blocks"])
def test_colours_reach_the_network_in_whole_rooms_too(root, form):
    if form == "rooms":
        trees.write_s3dis_rooms(root / "S3DIS", points=800)
    else:
        trees.write_s3dis_blocks(root / "S3DIS")
    points = [f"data.{split}.num_points=64" for split in ("train", "test")]
    command = ["--config", "cfgs/segment/point_transformer_s3dis.yaml", *LEVELS, *points, *SHORT]
    options = ["data.val_fraction=0.2", "data.train.block=2"]
    assert main("finetune", [*command, *options, "--root", str(root / "runs"), "--scratch_model"]) == 0
    assert len(rows_of(root / "runs/point_transformer_s3dis/default")["miou"]["per_class"]) == 13


def test_modelnet_few_shot(root):
    for fold in range(2):
        trees.write_fewshot(root / "ModelNetFewshot", fold=fold)
    few = ["data.augment.1.num_points=32", "data.eval_transform.1.num_points=32"]
    command = ["--config", "cfgs/fewshot/modelnet40.yaml", *SMALL, *few, "--root", str(root / "runs")]
    assert main("finetune", [*command, "--scratch_model", "--way", "5", "--shot", "10", "--folds", "2"]) == 0
    row = rows_of(root / "runs/modelnet40/default")["acc"]
    assert row["n"] == 2 and len(row["fingerprint"]) == 2  # two folds, two sets of clouds
