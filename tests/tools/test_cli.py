"""Typical mistakes: exit code 2, one line that names what is wrong and what to do, nothing written or executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.helpers import (
    ROOT,
    changed,
    finetune_config,
    folder_of,
    pretrain_config,
    rows_of,
    run,
    start,
    write_config,
    write_data,
)
from utils.config import load_config

PRETRAIN, FINETUNE = "pretrain", "finetune"
BUILDERS = {PRETRAIN: pretrain_config, FINETUNE: finetune_config}
HIDDEN = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # from users, by Python


class Mistake:
    """What is changed in a good configuration and command line, and the words that the line must hold."""

    def __init__(
        self,
        *words: str,
        mode: str = PRETRAIN,
        change: dict[str, Any] | None = None,
        argv: tuple[str, ...] = (),
        prepare: Callable[[Path], object] | None = None,
    ):
        self.words, self.mode, self.change, self.argv, self.prepare = words, mode, change or {}, argv, prepare


def classifier(*words: str, argv: tuple[str, ...] = ("--scratch_model",), **options: Any) -> Mistake:
    return Mistake(*words, mode=FINETUNE, argv=argv, **options)


def bad_data(**arrays: Any) -> Callable[[Path], object]:
    return lambda folder: write_data(folder / "train.npz", **arrays)


def raw_config(text: str, name: str = "run.yaml") -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


class Malicious:
    """Unpickling this would make a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def save_malicious(folder: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(3)}, "extra": Malicious(folder / "executed")}, folder / "w.pth")


def save_malicious_legacy(folder: Path) -> None:
    (folder / "w.pth").write_bytes(pickle.dumps({"model": Malicious(folder / "executed")}))


def save_damaged(folder: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(9999)}}, folder / "w.pth")
    truncate(folder / "w.pth")


def save_other_model(folder: Path) -> None:
    torch.save({"model": {"conv1.weight": torch.zeros(3, 3)}}, folder / "w.pth")


def save_other_size(folder: Path) -> None:
    torch.save({"base_model": {"module.MAE_encoder.norm.weight": torch.zeros(384)}}, folder / "w.pth")


def objects_in(folder: Path) -> None:
    write_data(folder / "train.npz", labels=np.array([Malicious(folder / "executed")] * 36, dtype=object))


def nan_cloud() -> np.ndarray:
    points = np.ones((36, 64, 3), np.float32)
    points[:, 5] = np.nan
    return points


CKPTS = ("--finetune_model", "--ckpts", "w.pth")
MISTAKES = {
    "key at top level": Mistake("modle", "'model'", change={"modle": {}}),
    "key in model": Mistake("model.embed_dimm", "'embed_dim'", change={"model.embed_dimm": 24}),
    "key in data": Mistake("data.batchsize", "'batch_size'", change={"data.batchsize": 8}),
    "key in data.train": Mistake("data.train.num_point", "'num_points'", change={"data.train.num_point": 8}),
    "key in runner": Mistake("runner.epoch", "'epochs'", change={"runner.epoch": 8}),
    "key in task": Mistake("task.prob", "'probe'", change={"task.prob": True}),
    "key in scheduler": Mistake("scheduler.minlr", "'min_lr'", change={"scheduler.minlr": 3}),
    "key in a transform": Mistake(
        "data.augment.0.sigm", "'sigma'", change={"data.augment": [{"name": "jitter", "sigm": 1.0}]}
    ),
    "key in the mask": Mistake("model.mask.raito", "'ratio'", change={"model.mask": {"name": "block", "raito": 0.5}}),
    "key that is a method of dictionaries": Mistake("model.update", change={"model.update": 1}),
    "section that is a method of dictionaries": Mistake("items", "section", change={"items": 1}),
    "name of the model": Mistake("model.name", "PointMAE3", "'PointMAE'", change={"model.name": "PointMAE3"}),
    "name of the task": Mistake("task.name", "'pretrain'", change={"task": {"name": "pretraining"}}),
    "name of the data set": Mistake("data.train.name", "'packed'", change={"data.train.name": "paked"}),
    "name of the optimizer": Mistake("optimizer.name", "'AdamW'", change={"optimizer.name": "adamw2"}),
    "name of the scheduler": Mistake("scheduler.name", "'cosine'", change={"scheduler.name": "cosin"}),
    "name of the mask": Mistake("model.mask.name", "'block'", change={"model.mask": {"name": "blok"}}),
    "name of a transform": Mistake("data.augment.0.name", "'jitter'", change={"data.augment": [{"name": "jiter"}]}),
    "name that is a list": Mistake("model.name", change={"model.name": ["PointMAE"]}),
    "no name": Mistake("optimizer.name", "missing", change={"optimizer": {"lr": 1e-3}}),
    "no model": Mistake("model", "missing", change={"model": None}),
    "empty section": Mistake("runner", "mapping", "null", change={"runner": None}),
    "text for a number": Mistake("runner.epochs", "integer", "'ten'", change={"runner.epochs": "ten"}),
    "text for a rate": Mistake("optimizer.lr", "number", "'fast'", change={"optimizer.lr": "fast"}),
    "number for a switch": Mistake("runner.sync_bn", "true or false", change={"runner.sync_bn": 3}),
    "mapping for a list": Mistake("data.augment", "list", change={"data.augment": {"name": "jitter"}}),
    "text in a list of mappings": Mistake("data.augment", "mapping", change={"data.augment": ["jitter"]}),
    "list for a number": Mistake("model.drop_path_rate", "number", change={"model.drop_path_rate": [1]}),
    "precision that is none": Mistake("runner.precision", "'bf16'", change={"runner.precision": "half"}),
    "number for a mask": Mistake("model.mask", "mask by name", "3", change={"model.mask": 3}),
    "seed beyond the generator": Mistake("seed", "2 ** 63", argv=("--seed", str(2**63))),
    "drop path of everything": Mistake("model", "drop_path_rate", "below 1", change={"model.drop_path_rate": 1}),
    "smoothing above one": classifier("task", "label_smoothing", "2", change={"task.label_smoothing": 2}),
    "smoothing of points": Mistake(
        "task", "label_smoothing", change={"task": {"name": "part_segmentation", "label_smoothing": -1.0}}
    ),
    "votes counted never": classifier("task", "vote_repeats", "at least 1", change={"task.vote_repeats": 0}),
    "classes of nothing": Mistake("data.classes", "empty", change={"data.classes": []}),
    "seed below zero": Mistake("seed", "0 or more", argv=("--seed", "-1")),
    "rate below zero": Mistake("optimizer", "learning rate", "-0.1", change={"optimizer.lr": -0.1}),
    "steps of no epochs": Mistake(
        "step_epochs", "at least 1", change={"scheduler": {"name": "step", "step_epochs": 0}}
    ),
    "decay in no time": Mistake("decay_epochs", "0", change={"scheduler": {"name": "decay", "decay_epochs": 0}}),
    "no epochs": Mistake("runner.epochs", "at least 1", change={"runner.epochs": 0}),
    "save never": Mistake("runner.save_every", "at least 1", change={"runner.save_every": 0}),
    "share above one": Mistake("data.val_fraction", "1.5", change={"data.val_fraction": 1.5}),
    "invalid YAML": Mistake("run.yaml", "not valid YAML", "line 2", prepare=raw_config("a: 1\n- b\n")),
    "empty file": Mistake("run.yaml", "top level", prepare=raw_config("")),
    "duplicate key": Mistake("run.yaml:3", "task", "twice", prepare=raw_config("task: {}\nmodel: {}\ntask: {}\n")),
    "impossible date": Mistake("run.yaml:1", "seed", prepare=raw_config("seed: 2020-99-99\n")),
    "base in a circle": Mistake("run.yaml", "_base_", "circle", prepare=raw_config("_base_: run.yaml\n")),
    "base missing": Mistake("rnu.yaml", "`_base_` of run.yaml", "'run.yaml'", prepare=raw_config("_base_: rnu.yaml\n")),
    "variable not set": Mistake(
        "run.yaml:1", "POINT_NOWHERE", "export", prepare=raw_config("seed: ${POINT_NOWHERE}\n")
    ),
    "override without =": Mistake("runner.epochs", "section.option=value", argv=("runner.epochs",)),
    "override below a scalar": Mistake("runner.epochs", "nothing can be set below", argv=("runner.epochs.x=3",)),
    "override beyond a list": Mistake("data.augment.3", "index below 1", argv=("data.augment.3.name=jitter",)),
    "override that is no YAML": Mistake("runner.epochs=[1", "not valid YAML", argv=("runner.epochs=[1",)),
    "data file missing": Mistake("data.train", "train.npz", "not found", change={"data.train.path": "x/train.npz"}),
    "data file misspelt": Mistake("trian.npz", "'train.npz'", change={"data.train.path": "trian.npz"}),
    "folder empty": Mistake("nothing", "no", change={"data.train": {"name": "folder", "path": "nothing"}}),
    "data damaged": Mistake("train.npz", "damaged", prepare=lambda folder: truncate(folder / "train.npz")),
    "data without points": Mistake("train.npz", "'points'", prepare=bad_data(points=None, xyz=np.ones((36, 8, 3)))),
    "data with objects": Mistake("train.npz", "'labels'", "refused", prepare=objects_in),
    "data with NaN": Mistake("train", "cloud", "NaN", prepare=bad_data(points=nan_cloud())),
    "labels out of range": Mistake("train.npz", "'labels'", "7", prepare=bad_data(labels=np.full(36, 7))),
    "patch above the cloud": Mistake("65", "64 points", change={"model.group_size": 65}),
    "more patches than points": Mistake("65", "64 points", change={"model.num_group": 65}),
    "more points than there are": Mistake("num_points", "99", "64", change={"data.train.num_points": 99}),
    "resampling above the cloud": Mistake(
        "num_points", "99", "64", change={"data.eval_transform": [{"name": "random_points", "num_points": 99}]}
    ),
    "heads that do not divide": Mistake("model", "embed_dim 25", "num_heads 2", change={"model.embed_dim": 25}),
    "mask ratio": Mistake("model.mask", "ratio", "1.5", change={"model.mask": {"name": "random", "ratio": 1.5}}),
    "batch above the data": Mistake("data.batch_size", "64", "33", change={"data.batch_size": 64}),
    "batch of none": Mistake("data.eval_batch_size", "at least 1", change={"data.eval_batch_size": 0}),
    "accumulating too much": Mistake("runner.accumulate", "5", "4", change={"runner.accumulate": 5}),
    "selection on no data": Mistake("runner.select", "data.test", change={"runner.select": "test"}),
    "too few classes": classifier("model.num_classes", "2", "3 classes", change={"model.num_classes": 2}),
    "other classes in test": classifier(
        "data.test", "class3", prepare=lambda folder: write_data(folder / "test.npz", classes=4)
    ),
    "checkpoint missing": classifier("w.pth", "no such checkpoint", argv=CKPTS),
    "checkpoint of another model": classifier("w.pth", "another model", argv=CKPTS, prepare=save_other_model),
    "checkpoint of another size": classifier(
        "w.pth", "transformer.norm.weight", "(384,)", "(24,)", argv=CKPTS, prepare=save_other_size
    ),
    "checkpoint damaged": classifier("w.pth", "damaged", argv=CKPTS, prepare=save_damaged),
    "checkpoint empty": classifier("w.pth", "checkpoint", argv=CKPTS, prepare=lambda f: (f / "w.pth").touch()),
    "checkpoint with code": classifier("w.pth", "nothing was executed", argv=CKPTS, prepare=save_malicious),
    "pickle with code": classifier("w.pth", "nothing was executed", argv=CKPTS, prepare=save_malicious_legacy),
    "safetensors damaged": classifier(
        "w.safetensors",
        "damaged",
        argv=("--finetune_model", "--ckpts", "w.safetensors"),
        prepare=lambda folder: (folder / "w.safetensors").write_bytes(b"12345678 not at all"),
    ),
    "nothing to resume": Mistake("experiments/run/default", "leave out --resume", argv=("--resume",)),
    "fine-tuning from nothing": classifier("--finetune_model", "--ckpts", argv=("--finetune_model",)),
    "both models": classifier("choose one", argv=("--finetune_model", "--scratch_model", "--ckpts", "w.pth")),
    "neither model": classifier("--finetune_model", "--scratch_model", argv=()),
    "testing nothing": classifier("--test", "--ckpts", argv=("--test",)),
    "resume from elsewhere": Mistake("--resume", "--ckpts", argv=("--resume", "--ckpts", "w.pth")),
    "flag misspelt": classifier("--chkpts", "'--ckpts'", argv=("--chkpts", "w.pth")),
    "flag abbreviated": Mistake("--exp", "'--exp_name'", argv=("--exp", "x")),
    "vote of a pre-trainer": classifier(
        "task.vote_times", argv=("--scratch_model", "--vote"), change={"task": {"name": "pretrain"}}
    ),
    "probe without a test set": Mistake("data.test", "test set", argv=("--svm",), change={"data.test": None}),
    "noise below zero": Mistake("data.augment.0", "sigma", change={"data.augment": [{"name": "jitter", "sigma": -1}]}),
    "period within the warm-up": Mistake("scheduler", "period", change={"scheduler.period": 1}),
    "device that is none": Mistake("device", "'gpu'", "cuda", change={"device": "gpu"}),
    "device that is a number": Mistake("device", "text", change={"device": 0}),
}
if not torch.cuda.is_available():
    MISTAKES["graph on a CPU"] = Mistake("runner.compile", "CUDA", change={"runner.compile": "graph"})
    MISTAKES["cuda on a CPU machine"] = Mistake("device", "'cuda'", "device=cpu", change={"device": "cuda"})


def files_below(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line(mistake, tmp_path, monkeypatch, capfd, recwarn):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nothing").mkdir()
    config = write_config(tmp_path, changed(BUILDERS[mistake.mode](tmp_path), mistake.change))
    if mistake.prepare:
        mistake.prepare(tmp_path)
    before = files_below(tmp_path)
    code = run(mistake.mode, config, *mistake.argv)
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), lines
    # a warning would be a second line; those that Python hides come from what other tests left to the garbage collector
    warned = [str(w.message) for w in recwarn.list if not issubclass(w.category, HIDDEN)]
    assert code == 2 and not warned
    assert [word for word in mistake.words if word not in lines[0]] == [], lines[0]
    assert files_below(tmp_path) == before  # no folder of a run, and what lay there lies there


def test_a_missing_configuration_names_the_nearest(tmp_path, capsys):
    write_config(tmp_path, {}, "pretrain_small.yaml")
    assert run(PRETRAIN, tmp_path / "pretrain_smal.yaml") == 2
    assert "Did you mean 'pretrain_small.yaml'?" in capsys.readouterr().err
    assert run(PRETRAIN, tmp_path) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: is a folder; a configuration is one file\n"


def test_an_existing_folder_is_untouched(tmp_path, capfd):
    config = write_config(tmp_path, pretrain_config(tmp_path))
    folder_of(config).mkdir(parents=True)
    (folder_of(config) / "ckpt-last.pth").write_text("weeks of work")
    before = files_below(tmp_path)
    assert run(PRETRAIN, config) == 2
    line = capfd.readouterr().err
    assert "experiments/run/default" in line and "--resume" in line and "--overwrite" in line
    assert run(PRETRAIN, config, "--resume") == 2  # that is no checkpoint
    assert "ckpt-last.pth: " in capfd.readouterr().err
    assert files_below(tmp_path) == before


def test_overwrite_keeps_the_old_folder(tmp_path):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"runner.epochs": 1}))
    folder_of(config).mkdir(parents=True)
    (folder_of(config) / "notes.txt").write_text("weeks of work")
    assert run(PRETRAIN, config, "--overwrite") == 0
    (kept,) = folder_of(config).parent.glob("default.replaced-*")
    assert (kept / "notes.txt").read_text() == "weeks of work"
    assert (folder_of(config) / "ckpt-last.pth").is_file() and not (folder_of(config) / "notes.txt").exists()


def test_nan_that_comes_late_is_one_line(tmp_path, capfd):
    """The first clouds are fine, so the run has begun."""
    points = np.random.default_rng(0).normal(size=(36, 64, 3)).astype(np.float32)
    points[30] = np.inf
    config = write_config(tmp_path, pretrain_config(tmp_path))
    write_data(tmp_path / "train.npz", points=points)
    assert run(PRETRAIN, config) == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1 and "cloud 30" in lines[0]


def test_a_full_disk_and_memory_are_one_line(tmp_path, monkeypatch, capfd):
    config = write_config(tmp_path, pretrain_config(tmp_path))
    (tmp_path / "experiments").write_text("a file where the folder should be")
    assert run(PRETRAIN, config) == 2
    assert "experiments" in capfd.readouterr().err
    monkeypatch.setattr("tools.cli.build_model", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no\nspace")))
    assert run(PRETRAIN, config, "--exp_name", "b") == 2
    assert capfd.readouterr().err == (
        "error: no: out of memory; use a smaller data.batch_size, more runner.accumulate\n"
    )


def test_overrides_stand_anywhere(tmp_path, capsys):
    config = write_config(tmp_path, pretrain_config(tmp_path))
    argv = ("runner.epochs=7", "--exp_name", "x", "seed=3", "--set", "model.depth=2", "--print-config")
    assert run(PRETRAIN, config, *argv) == 0
    shown = capsys.readouterr().out
    for line in ("runner.epochs: 7", "seed: 3", "model.depth: 2"):
        assert any(row.startswith(line) and row.endswith("# command line") for row in shown.splitlines())


def test_tested_figures_are_those_of_the_run(tmp_path):
    """With a moving average too: --test reads the weights that the run was judged by."""
    change = {"runner": {"epochs": 3, "ema_decay": 0.5}}
    config = write_config(tmp_path, changed(finetune_config(tmp_path), change))
    assert run(FINETUNE, config, "--scratch_model") == 0
    for name, selection in (("ckpt-last.pth", "last epoch"), ("ckpt-best.pth", "best on val")):
        assert run(FINETUNE, config, "--test", "--ckpts", str(folder_of(config) / name), "--exp_name", name) == 0
        values = {row["metric"]: row["value"] for row in rows_of(folder_of(config, f"test_{name}"))}
        rows = [row for row in rows_of(folder_of(config)) if row["selection"].startswith(selection)]
        assert values == {row["metric"]: row["value"] for row in rows}


def test_voting_is_reported_beside_the_plain_figure(tmp_path):
    config = write_config(tmp_path, changed(finetune_config(tmp_path), {"runner.epochs": 1}))
    assert run(FINETUNE, config, "--scratch_model", "--vote") == 0
    rows = {row["metric"]: row for row in rows_of(folder_of(config))}
    assert rows["acc_vote_mean"]["voting"].startswith("10 draws") and "voting" not in rows["acc"]


def test_a_run_from_its_own_configuration_gives_the_same_weights(tmp_path):
    config = write_config(tmp_path, pretrain_config(tmp_path))
    assert run(PRETRAIN, config, "--seed", "5", "model.drop_path_rate=0.2") == 0
    first = folder_of(config)
    assert run(PRETRAIN, first / "config.yaml") == 0
    second = folder_of(first / "config.yaml")
    states = [torch.load(folder / "ckpt-last.pth", weights_only=True) for folder in (first, second)]
    assert load_config(first / "config.yaml")[0]["seed"] == 5
    assert all(torch.equal(value, states[1]["model"][key]) for key, value in states[0]["model"].items())


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["runner.epoch=3"], "runner.epoch: section 'runner' has no such option. Did you mean 'epochs'?"),
        (["--chkpts", "x"], "unrecognized arguments: --chkpts. Did you mean '--ckpts'?"),
        (["model.group_size=65"], "65 is more than the 64 points there are"),
    ],
)
def test_as_a_person_calls_it(argv, words, tmp_path):
    """In a process of its own: the exit code and the one line arrive."""
    process = start(PRETRAIN, write_config(tmp_path, pretrain_config(tmp_path)), *argv)
    out, err = process.communicate(timeout=100)
    assert (process.returncode, len(err.splitlines()), out) == (2, 1, "")
    assert words in err


def test_shipped_configurations_are_valid(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    for path in sorted(Path("cfgs").rglob("*.yaml")):
        if "_base_" not in path.parts:
            mode = PRETRAIN if load_config(path)[0]["task"]["name"] == "pretrain" else FINETUNE
            assert run(mode, path, "--print-config") == 0, path
