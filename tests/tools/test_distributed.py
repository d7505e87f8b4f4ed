"""Two processes on the CPU under torchrun: the same training as one, one voice, and exact continuation."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import (
    assert_same,
    changed,
    checkpoint_of,
    finetune_config,
    folder_of,
    metrics_of,
    pretrain_config,
    rows_of,
    run,
    start,
    write_config,
)

DETERMINISTIC = ("--scratch_model", "--deterministic")


def finish(process) -> str:
    """What a run of two processes printed on its standard output."""
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


def test_one_and_two_processes_agree(tmp_path):
    """Ten steps on the same batches, masks and augmentations; BatchNorm over all; gradients and figures averaged.

    Not with Adam, which turns the rounding of a gradient near zero into a whole step: a model whose weights differ by
    1e-7 is 1e-4 away in its loss after ten steps.
    """
    change: dict[str, Any] = {
        "data.batch_size": 16,
        "data.augment": [{"name": "rotate"}, {"name": "jitter"}, {"name": "dropout"}],
    }
    change |= {"model.drop_path_rate": 0.0, "runner": {"epochs": 10, "accumulate": 2, "sync_bn": True}}
    change["optimizer"] = {"name": "SGD", "lr": 0.05, "momentum": 0.9}
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), change))
    process = start("pretrain", config, "--exp_name", "two", processes=2)
    assert run("pretrain", config, "--exp_name", "one") == 0
    out = finish(process)
    assert out.count("epoch 10/10") == 1 and "2 process(es)" in out
    one, two = folder_of(config, "one"), folder_of(config, "two")
    assert len(metrics_of(one)) == len(metrics_of(two)) == 10
    for single, double in zip(metrics_of(one), metrics_of(two)):
        assert single["train/loss"] == pytest.approx(double["train/loss"], abs=1e-5)
        assert single["train/lr"] == double["train/lr"]
    matrices = {key: value for key, value in checkpoint_of(one)["model"].items() if value.ndim > 1}
    for key, value in matrices.items():  # biases before a BatchNorm have no gradient but rounding
        torch.testing.assert_close(checkpoint_of(two)["model"][key], value, rtol=1e-3, atol=1e-4)


def test_two_processes_killed_and_continued(tmp_path):
    """Own random numbers, own BatchNorm statistics and own running means of each process come back."""
    change: dict[str, Any] = {
        "model.drop_path_rate": 0.3,
        "model.depth": 2,
        "data.batch_size": 4,
        "data.eval_batch_size": 4,
    }
    change |= {"runner": {"epochs": 12, "accumulate": 2, "ema_decay": 0.9, "val_every": 2}}
    config = write_config(tmp_path, changed(finetune_config(tmp_path), change))
    whole = start("finetune", config, *DETERMINISTIC, "--exp_name", "whole", processes=2)
    killed = start("finetune", config, *DETERMINISTIC, "--exp_name", "killed", processes=2)
    folder = folder_of(config, "killed")
    wait_for((folder / "ckpt-last.pth"), killed)
    time.sleep(random.uniform(0, 0.3))
    for pid in [killed.pid, *children_of(killed.pid)]:  # the launcher and both processes
        os.kill(pid, signal.SIGKILL)
    killed.communicate()
    finish(whole)
    assert not (folder / "results.json").exists()
    finish(start("finetune", config, *DETERMINISTIC, "--exp_name", "killed", "--resume", processes=2))
    states = [checkpoint_of(folder_of(config, name)) for name in ("whole", "killed")]
    assert_same(states[0], states[1])
    logs = [metrics_of(folder_of(config, name)) for name in ("whole", "killed")]
    assert [record["epoch"] for record in logs[1]] == list(range(12))
    assert [record["train/loss"] for record in logs[0]] == [record["train/loss"] for record in logs[1]]
    assert rows_of(folder) == rows_of(folder_of(config, "whole"))


def test_a_batch_that_cannot_be_shared_is_one_line(tmp_path):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"data.batch_size": 9}))
    process = start("pretrain", config, processes=2)
    out, err = process.communicate(timeout=120)
    assert process.returncode != 0 and out == ""
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    assert said == ["error: data.batch_size: 9 clouds cannot be shared by 2 processes"]
    assert not folder_of(config).exists()


def children_of(pid: int) -> list[int]:
    table = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
    return [int(child) for child, parent in (line.split() for line in table.splitlines()) if int(parent) == pid]


def wait_for(file: Path, process) -> None:
    until = time.monotonic() + 90
    while not file.is_file():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.005)
