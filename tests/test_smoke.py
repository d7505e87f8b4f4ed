"""The whole way once, in seconds: pre-train, probe, fine-tune, vote, resume. Also what `scripts/smoke.sh` runs on other
versions of Python and torch."""

from __future__ import annotations

import json

import pytest

from tools.cli import main

DATA = [
    "data.train.size=64",
    "data.test.size=32",
    "data.train.num_points=128",
    "data.test.num_points=128",
    "data.batch_size=16",
    "data.val_fraction=0.25",
    "runner.epochs=2",
    "runner.val_every=1",
]
SMALL = [
    *DATA,
    "model.embed_dim=24",
    "model.num_heads=2",
    "model.depth=1",
    "model.num_group=8",
    "model.group_size=8",
    "model.patch_width=16",
]
SMALL_SCALES = [
    *DATA,
    "model.num_groups=[24,12,6]",
    "model.group_sizes=[6,4,3]",
    "model.embed_dims=[8,16,24]",
    "model.num_heads=2",
    "model.patch_width=16",
]
PRETRAIN = ["--config", "cfgs/pretrain/quickstart.yaml", "--exp_name", "a"]
FINETUNE = ["--config", "cfgs/finetune/quickstart.yaml"]


def metrics_of(folder):
    return {row["metric"] for row in json.loads((folder / "results.json").read_text())["rows"]}


@pytest.mark.filterwarnings("ignore")
def test_the_whole_way(tmp_path):
    root = ["--root", str(tmp_path)]
    backbone = [word.replace("model.", "model.backbone.") for word in (*SMALL, "model.decoder_num_heads=2")]
    pretrain = [*PRETRAIN, *root, *backbone]
    finetune = [*FINETUNE, *root, *SMALL, "data.label_fraction=1"]
    assert main("pretrain", pretrain) == 0
    folder = tmp_path / "quickstart" / "a"
    assert {"svm_acc", "svm_cv_acc", "knn_acc", "linear_acc", "teacher_svm_acc"} <= metrics_of(folder)
    pictures = ("reconstruction.png", "difficulty.png")
    for name in ("config.yaml", "train.log", "metrics.jsonl", "ckpt-last.pth", "report.html", *pictures):
        assert (folder / name).stat().st_size > 0, name
    checkpoint = str(folder / "ckpt-last.pth")
    assert main("pretrain", [*pretrain, "--svm", "--ckpts", checkpoint]) == 0
    assert main("finetune", [*finetune, "--finetune_model", "--ckpts", checkpoint, "--exp_name", "tuned"]) == 0
    tuned = tmp_path / "quickstart" / "tuned"
    assert main("finetune", [*finetune, "--test", "--vote", "--ckpts", str(tuned / "ckpt-best.pth")]) == 0
    assert "acc_vote_mean" in metrics_of(tmp_path / "quickstart" / "test_default")
    assert main("finetune", [*finetune, "--resume", "--exp_name", "tuned", "runner.epochs=3"]) == 0
    assert len((tuned / "metrics.jsonl").read_text().splitlines()) == 3


@pytest.mark.filterwarnings("ignore")
def test_point_m2ae_goes_the_same_way(tmp_path):
    root = ["--root", str(tmp_path), *SMALL_SCALES]
    pretrain = ["--config", "cfgs/pretrain/m2ae_quickstart.yaml", "--exp_name", "a", *root]
    assert main("pretrain", [*pretrain, "model.decoder_dims=[24,16]"]) == 0
    folder = tmp_path / "m2ae_quickstart" / "a"
    assert {"svm_acc", "knn_acc"} <= metrics_of(folder) and (folder / "reconstruction.png").stat().st_size > 0
    finetune = ["--config", "cfgs/finetune/m2ae_quickstart.yaml", *root, "data.label_fraction=1"]
    checkpoint = str(folder / "ckpt-last.pth")
    assert main("finetune", [*finetune, "--finetune_model", "--ckpts", checkpoint, "--exp_name", "tuned"]) == 0
    assert "acc" in metrics_of(tmp_path / "m2ae_quickstart" / "tuned")
