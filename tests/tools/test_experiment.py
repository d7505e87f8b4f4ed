"""What a run leaves behind."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import yaml

from tests.helpers import ROOT, changed, folder_of, pretrain_config, run, write_config
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
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "ckpt-last.pth"]


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_two_runs_do_not_share_a_folder(options, tmp_path):
    begin = "from tools.experiment import Experiment\n"
    begin += "run = Experiment(sys.argv[1], 'some.yaml', 'a'); run.open(); print('open', flush=True); sys.stdin.read()"
    seen = Experiment(str(tmp_path), "some.yaml", "a")  # looked before the other began
    with subprocess.Popen(
        [sys.executable, "-c", f"import sys\n{begin}", str(tmp_path)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None and other.stdout.readline() == "open\n"
        seen.last.write_text("of the other run")
        experiment = Experiment(str(tmp_path), "some.yaml", "a", **options) if options else seen
        with pytest.raises(UserError, match="another run is writing"):
            experiment.open()
        assert seen.last.read_text() == "of the other run" and [path.name for path in tmp_path.iterdir()] == ["some"]
        other.kill()
    experiment.open()  # a killed run holds nothing


def test_a_damaged_record_is_told(tmp_path):
    experiment = Experiment(str(tmp_path), "some.yaml", "a")
    experiment.open()
    (experiment.folder / "environment.json").write_text("{")
    with pytest.raises(UserError, match=r"environment\.json: damaged"):
        experiment.read_json("environment.json")


def test_the_hash_is_of_values_not_of_order():
    assert config_hash({"a": 1, "b": {"c": [1, 2]}}) == config_hash({"b": {"c": [1, 2]}, "a": 1})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
