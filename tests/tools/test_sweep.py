"""Several runs from one command: their names, what is not run again, means and deviations, and the warnings."""

from __future__ import annotations

import json
import statistics
from typing import Any

import numpy as np
import pytest
from torch import nn

from datasets.packed import write_packed
from models.point_mae import PointMAE, PointMAEClassifier
from tools.cli import main
from tools.mismatch import mismatches, other_depth, points_seen, too_few_steps
from tools.probe import Features, knn, linear, prototype
from tools.sweep import summarise, with_episode
from utils.checkpoint import load_weights

MODEL = ["model.embed_dim=24", "model.num_heads=2", "model.depth=1", "model.num_group=8", "model.group_size=8"]
SMALL = [*MODEL, "model.patch_width=16", "data.train.num_points=64", "data.test.num_points=64"]
EPISODES = ["data.train.size=64", "data.test.size=64", "data.batch_size=4", "data.few_shot.shot=3"]
FEWSHOT = ["--config", "cfgs/fewshot/synthetic.yaml", "runner.epochs=1", *SMALL, *EPISODES]
PARTS = [
    *SMALL,
    "model.local_dim=16",
    "model.head_dim=16",
    "data.batch_size=4",
    "runner.epochs=1",
    "data.val_fraction=0.2",
]

pytestmark = pytest.mark.filterwarnings("ignore")


def results(folder):
    return json.loads((folder / "results.json").read_text())


def row_of(folder, metric="acc", start=None):
    rows = [row for row in results(folder)["rows"] if row["metric"] == metric]
    return next(row for row in rows if start is None or start in row["start"])


def test_folds_with_scratch_and_resume(tmp_path, capsys):
    root = ["--root", str(tmp_path)]
    assert main("finetune", [*FEWSHOT, *root, "--exp_name", "first", "--scratch_model", "--fold", "1"]) == 0
    folder = tmp_path / "synthetic"
    checkpoint = str(folder / "first" / "ckpt-last.pth")
    command = [*FEWSHOT, *root, "--exp_name", "f", "--finetune_model", "--ckpts", checkpoint, "--with_scratch"]
    assert main("finetune", [*command, "--folds", "2"]) == 0
    names = {path.name for path in folder.iterdir()} - {"first"}
    assert names == {"f", "f-fold0", "f-fold1", "f-scratch-fold0", "f-scratch-fold1"}
    for infix, start in (("", "first"), ("scratch-", "scratch")):
        values = [row_of(folder / f"f-{infix}fold{fold}")["value"] for fold in range(2)]
        row = row_of(folder / "f", start=start)
        assert row["values"] == values and row["value"] == statistics.mean(values)
        assert row["std"] == statistics.stdev(values) and row["over"] == "folds"
    assert "sample standard deviation (n - 1) over 2 folds" in capsys.readouterr().out

    untouched = (folder / "f-fold0" / "results.json").stat().st_mtime_ns
    before = row_of(folder / "f-fold1")
    (folder / "f-fold1" / "results.json").unlink()  # stopped before its end
    assert main("finetune", [*command, "--folds", "3"]) == 2  # the folders are there
    assert "--resume" in capsys.readouterr().err
    assert main("finetune", [*command, "--folds", "3", "--resume"]) == 0
    assert "run 1/6 was there" in capsys.readouterr().out
    assert (folder / "f-fold0" / "results.json").stat().st_mtime_ns == untouched
    assert row_of(folder / "f-fold1") == before and checkpoint == before["start"]
    assert row_of(folder / "f")["n"] == 3
    assert main("finetune", [*command, "--folds", "3", "--resume", "optimizer.lr=1"]) == 2
    assert "another configuration" in capsys.readouterr().err
    assert main("finetune", [*command, "--folds", "1", "--exp_name", "first"]) == 2
    assert "single run" in capsys.readouterr().err


def test_frozen_features_over_folds(tmp_path):
    command = [*FEWSHOT, "--root", str(tmp_path), "--svm", "--way", "3", "--shot", "2", "--folds", "2"]
    assert main("finetune", command) == 0
    rows = results(tmp_path / "synthetic" / "svm_default")["rows"]
    assert {"svm_acc", "svm_cv_acc", "prototype_acc"} <= {row["metric"] for row in rows}
    assert all(row["n"] == 2 for row in rows)
    assert "3-way 2-shot" in rows[0]["dataset"][0]


def test_seeds_of_part_segmentation(tmp_path):
    sizes = ["data.train.size=40", "data.test.size=20"]
    command = ["--config", "cfgs/segment/synthetic_small.yaml", *PARTS, *sizes, "data.val_fraction=0.4"]
    assert main("finetune", [*command, "--root", str(tmp_path), "--scratch_model", "--seeds", "2", "--vote"]) == 0
    folder = tmp_path / "synthetic_small"
    assert {"default-seed0", "default-seed1"} <= {path.name for path in folder.iterdir()}
    assert row_of(folder / "default", "instance_iou_vote")["n"] == 2
    for name in ("default-seed0", "default"):
        assert "instance_iou_vote per class" in (folder / name / "report.html").read_text()


def test_a_packed_data_set_with_parts(tmp_path, monkeypatch):
    monkeypatch.setenv("POINT_DATA_ROOT", str(tmp_path))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        points = rng.normal(size=(20, 64, 3)).astype(np.float32)
        seg, labels = (points[..., 0] > 0) + 2 * (np.arange(20) % 2)[:, None], np.arange(20) % 2
        parts: Any = {"part_names": ["a/l", "a/r", "b/l", "b/r"], "part_category": [0, 0, 1, 1]}
        write_packed(tmp_path / f"lpsb19_seg_{split}.npz", points, labels, ["a", "b"], seg=seg, **parts)
    command = ["--config", "cfgs/segment/lpsb19_seg_small.yaml", *PARTS, "--root", str(tmp_path / "runs")]
    assert main("finetune", [*command, "--scratch_model"]) == 0
    assert {"instance_iou", "macc"} <= {
        row["metric"] for row in results(tmp_path / "runs/lpsb19_seg_small/default")["rows"]
    }


def test_own_rooms(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOMS", str(tmp_path))
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        for number in range(4):
            points = rng.random((300, 3)) * (1.5, 1.5, 2)
            np.save(tmp_path / split / f"{number}.npy", np.concatenate([points, points[:, 2:] > 1], axis=1))
    options = [*PARTS, "data.train.least=8", "data.val_fraction=0.25"]
    command = ["--config", "cfgs/segment/rooms_small.yaml", *options, "--root", str(tmp_path / "runs")]
    assert main("finetune", [*command, "--scratch_model"]) == 0
    row = row_of(tmp_path / "runs/rooms_small/default", "miou")
    assert "vote" in row["protocol"] and row["per_class"].keys() == {"0", "1"}


@pytest.mark.parametrize(
    "options, line",
    [
        (["--scratch_model", "--with_scratch"], "--with_scratch stands beside"),
        (["--scratch_model", "--seeds", "2", "--seed", "1"], "leave out --seed"),
        (["--scratch_model", "--seeds", "0"], "at least 1"),
        (["--scratch_model", "--folds", "all", "--fold", "1"], "leave out --fold"),
        (["--scratch_model", "--way", "17"], "--way 16 or less"),
        (["--scratch_model", "--way", "1"], "few_shot.way: 1"),
    ],
)
def test_contradictions(options, line, tmp_path, capsys):
    assert main("finetune", [*FEWSHOT, "--root", str(tmp_path), *options]) == 2
    assert line in capsys.readouterr().err


def test_episodes_go_to_the_data_set_that_has_ready_made_ones():
    config = {"data": {"train": {"name": "synthetic_shapes"}, "test": {"name": "synthetic_shapes"}}}
    assert with_episode(config, way=5, shot=1, fold=2)["data"]["few_shot"] == {"way": 5, "shot": 1, "fold": 2}
    assert "few_shot" not in config["data"]  # untouched


def test_rows_of_other_rules_stay_apart():
    base = {"metric": "acc", "split": "test", "start": "scratch", "dataset": "d", "fingerprint": "f"}
    rows = [
        {**base, "selection": rule, "value": value} for value in (1.0, 3.0) for rule in ("last epoch", "best on val")
    ]
    found = summarise(rows, "seeds")
    assert [(row["selection"], row["value"], row["n"]) for row in found] == [
        ("last epoch", 2, 2),
        ("best on val", 2, 2),
    ]
    assert found[0]["std"] == pytest.approx(2**0.5)
    assert summarise(rows[:1], "seeds")[0]["std"] is None


def test_other_numbers_of_points_are_told():
    made: dict[str, Any] = {
        "data": {"train": {"name": "synthetic_shapes"}, "augment": []},
        "model": {"group_size": 32, "num_group": 64},
    }
    now = {"model": {"group_size": 16, "num_group": 128}}
    assert points_seen(made) == 1024
    assert points_seen({"data": {"train": {"name": "gone", "num_points": 99}}}) == 99
    assert points_seen({"data": {"train": {"name": "packed"}}}) is None
    assert points_seen({"data": {**made["data"], "augment": [{"name": "resample", "num_points": 512}]}}) == 512
    lines = mismatches({"config": made}, now, 8192, trained=True)
    assert len(lines) == 2 and "1024 points a cloud, now 8192" in lines[0] and "group_size 32, now 16" in lines[1]
    assert len(mismatches({"config": made}, now, 1200, trained=False)) == 2  # patches, and how many
    assert mismatches({"base_model": {}}, now, 8192, trained=False) == []


def test_another_depth_is_told():
    def load(depth: int, of: int) -> list[str]:
        sizes: dict[str, Any] = {"embed_dim": 8, "num_heads": 2, "patch_width": 16}
        made = PointMAE(depth=of, decoder_depth=1, decoder_num_heads=2, **sizes)
        model = PointMAEClassifier(3, depth=depth, **sizes)
        return other_depth(load_weights(model, made.state_dict(), "a.pth", model.key_map, may_differ=("head.",)))

    assert load(depth=2, of=2) == []
    assert "blocks left at random: 1 (encoder.transformer.blocks.2)" in load(depth=3, of=2)[0]
    assert "blocks of the checkpoint left out: 2 (encoder.transformer.blocks.1, " in load(depth=1, of=3)[0]


def test_few_steps_are_told():
    assert "20 steps" in too_few_steps(nn.Sequential(nn.BatchNorm1d(3)), 20)[0]
    assert too_few_steps(nn.Sequential(nn.BatchNorm1d(3)), 150) == too_few_steps(nn.Linear(3, 3), 20) == []


def test_probes_of_one_cloud_a_class_have_nothing_to_choose_on():
    features = Features(np.eye(3), np.arange(3))
    for probe in (linear, knn):
        score = probe(features, features)
        assert score.accuracy == 100 and score.protocol.endswith(" 1")


def test_prototypes():
    train = Features(np.array([[1.0, 0], [3, 0.2], [0, 1], [0.1, 5]]), np.array([4, 4, 7, 7]))
    assert prototype(train, Features(np.array([[9.0, 1], [1, 9]]), np.array([4, 7]))).accuracy == 100
    assert prototype(train, Features(np.zeros((1, 2)), np.array([4]))).accuracy in (0, 100)  # no direction: no error
