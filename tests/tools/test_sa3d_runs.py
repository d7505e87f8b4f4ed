"""Runs of SA3D: continued with the same bits, shared by two processes, a teacher made on the way, what is logged."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import (
    assert_same,
    changed,
    checkpoint_of,
    folder_of,
    metrics_of,
    pretrain_config,
    rows_of,
    run,
    start,
    write_config,
    write_data,
)
from tests.tools.test_resume import signal_at


def sa3d_config(folder: Path, **changes: Any) -> dict[str, Any]:
    """As pretrain_config, its model as the backbone; the mask aims from the first epoch."""
    config = pretrain_config(folder)
    mask = {"name": "guided", "ratio": 0.5, "beta_start": 0.5, "beta_end": 1.0}
    config["model"] = {"name": "SA3D", "backbone": config["model"], "mask": mask, "predictor_depth": 1}
    config["model"] |= {"predictor_hidden": 16, "switch_epoch": 1, "ema_start": 0.8, "ema_end": 0.9}
    return changed(config, {"data.batch_size": 4, "runner.epochs": 3, **changes})


FEATURES = {"model.distillation_weights": [1.0, 10.0], "model.teacher": "auto"}


def test_stopped_and_continued_with_the_same_bits(tmp_path, monkeypatch):
    config = write_config(tmp_path, sa3d_config(tmp_path, **FEATURES))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert run("pretrain", config, "--exp_name", "whole") == 0
        teacher = folder_of(config, "whole-teacher")
        made = (teacher / "ckpt-last.pth").stat().st_mtime_ns
        again = ["--exp_name", "part", f"model.teacher={teacher / 'ckpt-last.pth'}"]
        with monkeypatch.context() as patched:
            signal_at(patched, 13, signal.SIGTERM)
            assert run("pretrain", config, *again) == 128 + signal.SIGTERM
        assert run("pretrain", config, *again, "--resume") == 0
    finally:
        torch.set_num_threads(threads)
    assert (teacher / "ckpt-last.pth").stat().st_mtime_ns == made
    whole, part = (folder_of(config, name) for name in ("whole", "part"))
    for key in ("model", "optimizer", "rng", "processes"):
        assert_same(checkpoint_of(whole)[key], checkpoint_of(part)[key])
    assert [r["train/rank_acc"] for r in metrics_of(whole)] == [r["train/rank_acc"] for r in metrics_of(part)]


def test_what_is_logged(tmp_path):
    probe = {"task": {"name": "pretrain"}, "data.val_fraction": 0.34}
    probe["data.test"] = {"name": "packed", "path": str(write_data(tmp_path / "test.npz", clouds=9, seed=1))}
    config = write_config(tmp_path, sa3d_config(tmp_path, **FEATURES, **probe))
    assert run("pretrain", config) == 0
    record = metrics_of(folder_of(config))[-1]
    for name in ("reconstruction", "distillation", "rank"):
        assert {f"train/{name}", f"train/weighted/{name}", f"val/{name}"} <= record.keys()
    assert record["train/mask/guided"] == 1.0 and 0.8 < record["train/ema/decay"] < 0.9
    assert {"val/probe_acc", "val/teacher_probe_acc", "val/rank_acc", "val/teacher_rank_acc"} <= record.keys()
    assert {"svm_acc", "teacher_svm_acc"} <= {row["metric"] for row in rows_of(folder_of(config))}
    assert (folder_of(config) / "difficulty.png").stat().st_size > 1000
    events = b"".join(path.read_bytes() for path in (folder_of(config) / "tensorboard").iterdir())
    assert b"difficulty" in events and b"\x89PNG" in events


def test_a_teacher_is_asked_for_in_one_line(tmp_path, capfd):
    config = write_config(tmp_path, sa3d_config(tmp_path, **{"model.distillation_weights": [1.0, 1.0]}))
    assert run("pretrain", config) == 2
    line = capfd.readouterr().err
    assert line.count("\n") == 1 and "model.teacher=auto" in line and "main_pretrain.py" in line
    assert run("pretrain", config, f"model.teacher={tmp_path}/none.pth") == 2
    assert "no such checkpoint" in capfd.readouterr().err


def test_two_processes_train_as_one(tmp_path):
    """The same masks, averages and losses; plain gradient descent, as Adam makes whole steps of rounding."""
    changes: dict[str, Any] = {"data.batch_size": 12, "model.backbone.drop_path_rate": 0.0}
    changes |= {"model.predictor_drop_path_rate": 0.0, "model.reconstruction_weights": [1.0, 10.0]}
    changes |= {"optimizer": {"name": "SGD", "lr": 0.01}, "runner": {"epochs": 3, "sync_bn": True}}
    config = write_config(tmp_path, sa3d_config(tmp_path, **changes))
    process = start("pretrain", config, "--exp_name", "two", processes=2)
    assert run("pretrain", config, "--exp_name", "one") == 0
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    one, two = folder_of(config, "one"), folder_of(config, "two")
    for single, double in zip(metrics_of(one), metrics_of(two), strict=True):
        assert single["train/loss"] == pytest.approx(double["train/loss"], rel=1e-4)
        assert single["train/mask/guided"] == double["train/mask/guided"]
    other = checkpoint_of(two)["model"]
    for key, value in checkpoint_of(one)["model"].items():
        if value.ndim > 1:
            torch.testing.assert_close(other[key], value, rtol=1e-3, atol=1e-4, msg=key)
