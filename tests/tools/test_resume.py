"""A run that was stopped in any way and continued ends with the same bits as one that was never stopped."""

from __future__ import annotations

import os
import random
import signal
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
from tools.signals import Signals
from tools.tasks.pretrain import Pretrain

EVERYTHING = {
    "model.drop_path_rate": 0.3,
    "model.depth": 2,
    "data.batch_size": 4,
    "runner": {"epochs": 4, "accumulate": 2, "ema_decay": 0.9, "clip_grad": 5.0, "val_every": 2},
}
SCRATCH = ("--scratch_model", "--deterministic")


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in the same order in this process and in those it starts; determinism is switched off again."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def comparable(folder: Path, name: str = "ckpt-last.pth") -> dict[str, Any]:
    """Everything in a checkpoint except for the paths in its configuration."""
    return {key: value for key, value in checkpoint_of(folder, name).items() if key != "config"}


def assert_same_run(folder: Path, other: Path) -> None:
    """Weights, optimizer, moving average, random numbers, best; figures of every epoch, once; results."""
    assert_same(comparable(folder), comparable(other))
    if (other / "ckpt-best.pth").is_file():
        assert_same(comparable(folder, "ckpt-best.pth")["model"], comparable(other, "ckpt-best.pth")["model"])
    figures = [
        [
            {key: value for key, value in record.items() if key not in ("time/epoch", "train/samples_per_sec")}
            for record in log
        ]
        for log in (metrics_of(folder), metrics_of(other))
    ]
    assert figures[0] == figures[1]
    assert [record["epoch"] for record in figures[0]] == list(range(len(figures[0])))
    assert [row["value"] for row in rows_of(folder)] == [row["value"] for row in rows_of(other)]
    assert not list(folder.glob(".*.tmp"))


def wait_for(condition, process, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.002)


def signal_at(monkeypatch, call: int, number: signal.Signals) -> None:
    """Send this process a signal in the middle of the given batch, counted from the first training batch."""
    losses, calls = Pretrain.losses, []

    def counting(self, model, batch, rng):
        calls.append(model.training)
        if sum(calls) == call and model.training:
            os.kill(os.getpid(), number)
        return losses(self, model, batch, rng)

    monkeypatch.setattr(Pretrain, "losses", counting)


def test_killed_at_any_moment(tmp_path):
    """SIGKILL to a process of its own, after the first checkpoint and a random time."""
    config = write_config(tmp_path, changed(finetune_config(tmp_path), EVERYTHING | {"runner.epochs": 15}))
    assert run("finetune", config, *SCRATCH, "--exp_name", "whole") == 0
    process = start("finetune", config, *SCRATCH, "--exp_name", "killed")
    folder = folder_of(config, "killed")
    wait_for((folder / "ckpt-last.pth").is_file, process)
    time.sleep(random.uniform(0, 0.5))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL and not (folder / "results.json").exists()
    assert run("finetune", config, *SCRATCH, "--exp_name", "killed", "--resume") == 0
    assert_same_run(folder, folder_of(config, "whole"))


@pytest.mark.parametrize(
    ("number", "batch"), [(signal.SIGTERM, 13), (signal.SIGINT, 16), (signal.SIGTERM, 32), (signal.SIGHUP, 13)]
)
def test_stopped_in_the_middle_of_an_epoch(number, batch, tmp_path, monkeypatch, capfd):
    """Batch 13 is the first half of a step, 16 the end of an epoch, 32 the end of training."""
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), EVERYTHING))
    assert run("pretrain", config, "--deterministic", "--exp_name", "whole") == 0
    with monkeypatch.context() as patched:
        signal_at(patched, batch, number)
        assert run("pretrain", config, "--deterministic") == 128 + number
    out, err = capfd.readouterr()
    stopped = [line for line in out.splitlines() if line.startswith(f"stopped by {number.name}")]
    assert len(stopped) == 1 and "--resume" in stopped[0] and not err
    assert checkpoint_of(folder_of(config))["step"] == (batch - 1) // 2 % 4 + 1
    assert run("pretrain", config, "--deterministic", "--resume") == 0
    assert_same_run(folder_of(config), folder_of(config, "whole"))


def test_stopped_twice_and_killed_while_saving(tmp_path, monkeypatch):
    """A run that dies in the middle of writing a checkpoint continues from the one before."""
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), EVERYTHING))
    assert run("pretrain", config, "--deterministic", "--exp_name", "whole") == 0
    with monkeypatch.context() as patched:
        signal_at(patched, 11, signal.SIGTERM)
        assert run("pretrain", config, "--deterministic") == 128 + signal.SIGTERM
    folder = folder_of(config)
    (folder / ".ckpt-last.pth.1.tmp").write_bytes(b"half a checkpoint")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"epoch": 1, "tra')  # and a line cut off
    with monkeypatch.context() as patched:
        signal_at(patched, 9, signal.SIGTERM)
        assert run("pretrain", config, "--deterministic", "--resume") == 128 + signal.SIGTERM
    assert run("pretrain", config, "--deterministic", "--resume") == 0
    assert_same_run(folder, folder_of(config, "whole"))


def test_what_nohup_ignores_does_not_stop_a_run():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.noted is None and signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.noted == signal.SIGTERM
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_finished_run_without_its_best_weights_still_ends(tmp_path, capfd):
    config = write_config(tmp_path, finetune_config(tmp_path))
    assert run("finetune", config, *SCRATCH) == 0
    (folder_of(config) / "ckpt-best.pth").unlink()
    assert run("finetune", config, *SCRATCH, "--resume") == 0
    assert "ckpt-best.pth is gone" in capfd.readouterr().out
    assert {row["selection"] for row in rows_of(folder_of(config))} == {"last epoch"}


def test_more_epochs_can_be_added(tmp_path):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"scheduler": {"name": "constant"}}))
    assert run("pretrain", config, "runner.epochs=3", "--exp_name", "whole") == 0
    assert run("pretrain", config, "runner.epochs=1") == 0
    assert run("pretrain", config, "runner.epochs=3", "--resume") == 0
    assert_same_run(folder_of(config), folder_of(config, "whole"))


@pytest.mark.parametrize(
    "change", ["optimizer.lr=0.1", "data.batch_size=4", "model.embed_dim=48", "optimizer.name=SGD"]
)
def test_another_configuration_does_not_continue(change, tmp_path, capfd):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"runner.epochs": 1}))
    assert run("pretrain", config) == 0
    before = {path: path.read_bytes() for path in folder_of(config).rglob("*") if path.is_file()}
    extra = ["optimizer.lr=0.001"] if "SGD" in change else []
    assert run("pretrain", config, "--resume", change, *extra) == 2
    line = capfd.readouterr().err
    assert change.split("=")[0] in line and "config.yaml" in line
    assert {path: path.read_bytes() for path in folder_of(config).rglob("*") if path.is_file()} == before


def test_foreign_checkpoints_do_not_continue(tmp_path, capfd):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"runner.epochs": 1}))
    assert run("pretrain", config) == 0
    last = folder_of(config) / "ckpt-last.pth"
    state = torch.load(last, weights_only=True)
    for change, word in [
        ({"format": 0}, "--ckpts"),
        ({"device": "cuda"}, "on cuda"),
        ({"processes": [{}, {}]}, "2 process"),
    ]:
        torch.save(state | change, last)
        assert run("pretrain", config, "--resume") == 2
        assert word in capfd.readouterr().err


def test_sigterm_from_outside(tmp_path):
    """As a scheduler of a cluster does it: exit code, one clear line, and a checkpoint."""
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"runner.epochs": 10000}))
    process = start("pretrain", config)
    wait_for((folder_of(config) / "ckpt-last.pth").is_file, process)
    process.terminate()
    out, err = process.communicate(timeout=30)
    assert process.returncode == 143 and err == ""
    assert out.splitlines()[-1].startswith("stopped by SIGTERM in epoch")
    assert checkpoint_of(folder_of(config))["format"] == 1
