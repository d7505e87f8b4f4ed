"""The comparison of masks: which runs it takes, their command lines, the table made of their results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tools.build import check_config
from tools.reproduce_sa3d import CONFIGS, Settings, command, folder, plan, report, wanted
from utils.config import load_config, to_plain

RATIOS = {"random": 1.0, "sa3d": 1.5, "sa3df": 2.0}


def settings(out: Path) -> Settings:
    return Settings(2, 30, ("infomr69", "scan"), 1, (), out, ("data.batch_size=8",))


def test_equal_time_is_fewer_epochs():
    epochs = {arm.name: arm.epochs for arm in plan(30, RATIOS)}
    assert epochs == {
        "random": 30, "averaged": 30, "block": 30, "sa3d": 30, "sa3df": 30, "sa3d-time": 20, "half": 15,
        "sa3df-time": 8, "sa3d-complete": 30, "sa3df-complete": 30, "sa3d-complete-time": 20,
    }  # fmt: skip
    assert min(arm.epochs for arm in plan(1, RATIOS)) == 1


def test_arms_by_name_come_with_what_they_need():
    arms = plan(30, RATIOS)
    assert wanted(arms, ()) == arms
    assert [arm.name for arm in wanted(arms, ("block",))] == ["random", "block"]
    assert [arm.name for arm in wanted(arms, ("sa3df-time",))] == ["random", "half", "sa3df-time"]
    with pytest.raises(SystemExit, match="ARMS: blok; known: random, averaged, block"):
        wanted(arms, ("block", "blok"))


def test_every_command_is_a_configuration(tmp_path):
    chosen = settings(tmp_path)
    for arm in plan(30, RATIOS):
        for data in chosen.data:
            place = folder(chosen, arm, data, 1)
            words = command(chosen, arm, data, 1, place)
            overrides = [word for word in words if "=" in word and not word.startswith("--")]
            config = to_plain(load_config(words[words.index("--config") + 1], overrides)[0])
            check_config(config)
            assert config["runner"]["epochs"] == arm.epochs and config["data"]["batch_size"] == 8
            assert "--resume" not in words and place.parent.name == CONFIGS[arm.config]
            if arm.teacher:
                assert Path(config["model"]["teacher"]).parent.name == f"{data}-{arm.teacher}-seed1"
    place.mkdir(parents=True)
    assert "--overwrite" in command(chosen, arm, data, 1, place)
    (place / "ckpt-last.pth").touch()
    assert "--resume" in command(chosen, arm, data, 1, place)


def test_the_table(tmp_path):
    chosen, arms = settings(tmp_path), plan(30, RATIOS)
    for number, arm in enumerate(arms):
        for data in chosen.data:
            for seed in range(2):
                place = folder(chosen, arm, data, seed)
                place.mkdir(parents=True)
                value = 50.0 + number + 2 * seed
                metrics = ("svm_cv_acc", "svm_acc", "knn_acc", "teacher_svm_cv_acc")
                rows = [{"metric": metric, "value": value} for metric in metrics]
                (place / "results.json").write_text(json.dumps({"rows": rows}))
                (place / "metrics.jsonl").write_text(json.dumps({"val/rank_acc": 0.7}) + "\n")
    lines = report(chosen, arms, RATIOS).splitlines()
    assert "| random | 30 | 51.0 +- 1.4 | 51.0 +- 1.4 |" in lines
    assert any(line.startswith("| SA3D, equal time | 20 | 56.0 +- 1.4 (teacher 56.0, ranking 70 %)") for line in lines)
    assert "| SA3DF, equal time | linear SVM | +7.0 +- 0.0 | +7.0 +- 0.0 |" in lines
    assert not any(line.startswith("|  |") for line in lines)
