"""What a run leaves behind."""

from __future__ import annotations

import json

import pytest
import yaml

from tests.helpers import changed, folder_of, pretrain_config, run, write_config
from tools.experiment import Experiment, config_hash
from utils.errors import UserError


def test_everything_that_repeats_a_run_is_written(tmp_path):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"runner.epochs": 1}))
    assert run("pretrain", config, "--seed", "3", "--deterministic") == 0
    folder = folder_of(config)
    resolved = yaml.safe_load((folder / "config.yaml").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    assert resolved["seed"] == environment["seed"] == 3 and resolved["deterministic"] is True
    assert environment["config_hash"] == config_hash(resolved)
    assert {"python", "torch", "machine", "threads", "processes"} <= environment.keys()
    assert (folder / "command.txt").read_text().count("\n") == 1
    assert "epoch 1/1" in (folder / "train.log").read_text()
    assert list((folder / "tensorboard").iterdir()) and (folder / "report.html").is_file()


def test_looking_writes_nothing(tmp_path):
    experiment = Experiment(str(tmp_path / "experiments"), "cfgs/some.yaml", "a")
    assert experiment.folder == tmp_path / "experiments/some/a" and not list(tmp_path.iterdir())
    experiment.open()
    assert experiment.folder.is_dir()


def test_an_empty_folder_is_free_and_leftovers_of_a_killed_run_go(tmp_path):
    folder = tmp_path / "some/a"
    folder.mkdir(parents=True)
    Experiment(str(tmp_path), "some.yaml", "a").open()
    (folder / "ckpt-last.pth").write_text("whole")
    (folder / ".ckpt-last.pth.77.tmp").write_text("half")
    with pytest.raises(UserError, match="exists already"):
        Experiment(str(tmp_path), "some.yaml", "a")
    Experiment(str(tmp_path), "some.yaml", "a", resume=True).open()
    assert [path.name for path in folder.iterdir()] == ["ckpt-last.pth"]


def test_the_hash_is_of_values_not_of_order():
    assert config_hash({"a": 1, "b": {"c": [1, 2]}}) == config_hash({"b": {"c": [1, 2]}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
