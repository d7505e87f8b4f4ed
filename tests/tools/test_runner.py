"""The training loop: what a step does to the weights, what is left out, which weights count."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.helpers import (
    changed,
    checkpoint_of,
    finetune_config,
    folder_of,
    metrics_of,
    pretrain_config,
    rows_of,
    run,
    write_config,
    write_data,
)
from tools.experiment import Experiment
from tools.lagged import Lagged
from tools.runner import Runner
from tools.schedule import Constant, Cosine
from tools.splits import DataSplits
from tools.tasks.base import Task
from tools.tasks.classify import Classify
from utils.errors import UserError


class Regress(Task):
    """The label from the mean point; keeps the weights it saw, and spoils the losses at the given calls."""

    def __init__(self, spoiled: tuple[int, ...] = (), value: float = float("nan")):
        self.spoiled, self.value = spoiled, value
        self.weights: list[dict[str, Tensor]] = []
        self.batches: list[dict[str, Tensor]] = []

    def losses(self, model, batch, rng) -> dict[str, Tensor]:
        self.weights.append(copy.deepcopy(model.state_dict()))
        self.batches.append(batch)
        loss = (model(batch["points"].mean(1))[:, 0] - batch["label"]).square().mean()
        return {"loss": loss * self.value if len(self.batches) in self.spoiled else loss}

    def evaluate(self, model, loader, data, autocast) -> dict[str, float]:
        return {"loss": float(len(self.batches))}


def fitted(
    tmp_path: Path,
    task: Regress,
    norm: bool = False,
    rate: float = 0.1,
    batch: int = 8,
    lagged: bool = False,
    compat: dict[str, bool] | None = None,
    **options: Any,
) -> Runner:
    """A linear model, trained for one epoch with plain gradient descent."""
    tmp_path.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Sequential(*([nn.BatchNorm1d(3)] if norm else []), nn.Linear(3, 1))
    train = {"name": "packed", "path": str(write_data(tmp_path / "train.npz"))}
    data = DataSplits(train, val_fraction=0.0, batch_size=batch)
    runner, experiment = Runner(**{"epochs": 1, **options}), Experiment(str(tmp_path), "run.yaml", "default")
    experiment.open()
    optimizer = torch.optim.SGD(model.parameters(), lr=rate, fused=lagged or None)
    runner.prepare(model, task, data, optimizer, Constant(), experiment, config={}, seed=0, **(compat or {}))
    if lagged:  # as on a GPU; there the host hears of a step later
        runner.lagged = Lagged(optimizer, lambda: runner.means, runner.left_out)
    runner.fit()
    return runner


def test_accumulated_batches_count_like_one(tmp_path):
    small = fitted(tmp_path / "a", Regress(), batch=9, accumulate=2).model.state_dict()
    large = fitted(tmp_path / "b", Regress(), batch=18).model.state_dict()
    for key, value in large.items():
        torch.testing.assert_close(small[key], value)
    assert not torch.equal(small["0.weight"], fitted(tmp_path / "c", Regress(), batch=9).model.state_dict()["0.weight"])


def test_clipping_bounds_the_gradient(tmp_path):
    task = Regress(value=1e4, spoiled=(2,))
    model = fitted(tmp_path, task, rate=1.0, clip_grad=0.01).model
    states = [*task.weights, model.state_dict()]
    for before, after in itertools.pairwise(states):
        moved = sum((after[key] - before[key]).square().sum() for key in after)
        assert float(moved) ** 0.5 == pytest.approx(0.01, rel=1e-3)


def test_the_published_second_step(tmp_path):
    """One gradient, taken twice: as it is, then clipped."""
    once = fitted(tmp_path / "once", task := Regress(), batch=32, rate=0.1)
    twice = fitted(tmp_path / "twice", Regress(), batch=32, rate=0.1, clip_grad=0.01, compat={"double_step": True})
    start, after, both = task.weights[0], once.model.state_dict(), twice.model.state_dict()
    first = torch.cat([(after[key] - start[key]).flatten() for key in start])
    second = torch.cat([(both[key] - after[key]).flatten() for key in start])
    torch.testing.assert_close(second, first * 0.1 * 0.01 / first.norm(), rtol=1e-3, atol=1e-7)
    with pytest.raises(UserError, match=r"compat\.double_step: a loss scale allows one step a batch"):
        fitted(tmp_path / "half", Regress(), precision="fp16", compat={"double_step": True})


def test_moving_average(tmp_path):
    task = Regress()
    runner = fitted(tmp_path, task, ema_decay=0.8)
    first, *rest = [state["0.weight"] for state in [*task.weights[1:], runner.model.state_dict()]]
    for weight in rest:
        first = 0.8 * first + 0.2 * weight
    assert runner.ema is not None and runner.eval_model() is runner.ema.module and len(rest) > 2
    torch.testing.assert_close(runner.ema.module.state_dict()["0.weight"], first)


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_step_that_is_not_finite_leaves_no_trace(value, accumulate, tmp_path):
    """The second batch: weights, BatchNorm statistics and moving average stay; the clouds are kept for a look."""
    task = Regress(spoiled=(2,), value=value)
    runner = fitted(tmp_path, task, norm=True, ema_decay=0.5, accumulate=accumulate)
    before, after = (task.weights[i] for i in ((1, 2) if accumulate == 1 else (0, 2)))
    for key, tensor in before.items():
        assert torch.equal(tensor, after[key]), key
    assert all(
        tensor.isfinite().all() for tensor in [*runner.model.state_dict().values(), *runner.eval_model().buffers()]
    )
    kept = torch.load(tmp_path / "run/default/nonfinite-rank0.pth", weights_only=True)
    taken = task.batches[2 - accumulate : 2]
    assert torch.equal(kept["points"], torch.cat([batch["points"] for batch in taken]))
    assert metrics_of(runner.experiment.folder)[0]["train/skipped_steps"] == runner.left_out.number == 1
    assert runner.means.count == 0 and torch.isfinite(
        torch.tensor(metrics_of(runner.experiment.folder)[0]["train/loss"])
    )


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_left_out_on_the_device_as_by_the_host(accumulate, tmp_path):
    """The way of a GPU, which is never waited for: the same weights, statistics, figures and clouds."""
    runs = [
        fitted(tmp_path / name, Regress(spoiled=(2,)), norm=True, accumulate=accumulate, batch=6, lagged=lagged)
        for name, lagged in (("waited", False), ("lagged", True))
    ]
    for (key, one), other in zip(runs[0].model.state_dict().items(), runs[1].model.state_dict().values()):
        torch.testing.assert_close(one, other, msg=key)
    figures = [metrics_of(run.experiment.folder)[0] for run in runs]
    assert figures[0]["train/loss"] == pytest.approx(figures[1]["train/loss"])
    assert runs[0].left_out.number == runs[1].left_out.number == 1
    kept = [torch.load(tmp_path / name / "run/default/nonfinite-rank0.pth") for name in ("waited", "lagged")]
    assert torch.equal(kept[0]["points"], kept[1]["points"])


def test_a_graph_needs_a_gpu(tmp_path):
    with pytest.raises(UserError, match=r"graph needs a CUDA device; use runner\.compile=off"):
        fitted(tmp_path, Regress(), compile="graph")


@pytest.mark.parametrize("lagged", [False, True])
def test_too_many_in_a_row_end_the_run(lagged, tmp_path):
    with pytest.raises(UserError, match=r"3 steps in a row.*epoch 1, step 4.*optimizer\.lr"):
        fitted(tmp_path, Regress(spoiled=(2, 3, 4)), batch=6, max_nonfinite=3, lagged=lagged)
    task = Regress(spoiled=(1, 2, 4, 5))  # not in a row
    assert fitted(tmp_path / "b", task, batch=6, max_nonfinite=3, lagged=lagged).left_out.number == 4


def test_divergence_on_the_command_line(tmp_path, capfd):
    change = {"optimizer": {"name": "SGD", "lr": 1e30}, "scheduler": {"name": "constant"}, "runner.max_nonfinite": 2}
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), change))
    assert run("pretrain", config) == 2
    out, err = capfd.readouterr()
    assert len(err.splitlines()) == 1 and "nonfinite-rank0.pth" in err and "runner.clip_grad" in err
    assert "step left out" in out


def test_an_empty_mean_is_no_figure(tmp_path):
    """Every step of the epoch was left out."""
    runner = fitted(tmp_path, Regress(spoiled=(1, 2, 3, 4)), epochs=2)
    first, second = metrics_of(runner.experiment.folder)
    assert "train/loss" not in first and "train/loss" in second and runner.left_out.number == 4


def test_a_run_that_learned_nothing_is_no_result(tmp_path):
    with pytest.raises(UserError, match=r"none of the 4 steps was finite.*optimizer\.lr"):
        fitted(tmp_path, Regress(spoiled=(1, 2, 3, 4)))


def test_momentum_of_batch_norm_follows_its_schedule(tmp_path):
    halving = {"name": "step", "step_epochs": 1, "gamma": 0.5, "lowest": 0.2}
    for epochs, momentum in ((1, 0.1), (2, 0.05), (4, 0.02)):
        runner = fitted(tmp_path / str(epochs), Regress(), norm=True, epochs=epochs, bn_momentum=halving)
        assert [norm.momentum for norm, _ in runner.norms] == pytest.approx([momentum])
    with pytest.raises(UserError, match=r"runner\.bn_momentum\.name: unknown scheduler 'stop'"):
        Runner(bn_momentum={"name": "stop"})


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision(precision, tmp_path):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"runner.precision": precision}))
    assert run("pretrain", config) == 0
    full = write_config(tmp_path, pretrain_config(tmp_path), "full.yaml")
    assert run("pretrain", full) == 0
    last, exact = metrics_of(folder_of(config))[-1], metrics_of(folder_of(full))[-1]
    assert (
        last["train/loss"] == pytest.approx(exact["train/loss"], rel=0.05) and last["train/loss"] != exact["train/loss"]
    )
    assert all(tensor.dtype != torch.bfloat16 for tensor in checkpoint_of(folder_of(config))["model"].values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_compiled(tmp_path):
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), {"runner": {"epochs": 1}}))
    assert run("pretrain", config, "--exp_name", "plain") == 0
    assert run("pretrain", config, "--exp_name", "compiled", "runner.compile=true") == 0
    losses = [metrics_of(folder_of(config, name))[0]["train/loss"] for name in ("plain", "compiled")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)
    assert (
        checkpoint_of(folder_of(config, "plain"))["model"].keys()
        == checkpoint_of(folder_of(config, "compiled"))["model"].keys()
    )


@pytest.mark.parametrize(
    ("select", "rules"),
    [
        ("val", {"last epoch", "best on val"}),
        ("last", {"last epoch"}),
        ("test", {"last epoch", "best on test (optimistic)"}),
    ],
)
def test_which_weights_count(select, rules, tmp_path, monkeypatch):
    """Every row says how its weights were chosen; the best is the first of the highest."""
    scores = iter([10.0, 30.0, 30.0, 20.0])
    monkeypatch.setattr(Classify, "evaluate", lambda *_: {"acc": next(scores)})
    config = write_config(tmp_path, changed(finetune_config(tmp_path), {"runner": {"epochs": 4, "select": select}}))
    assert run("finetune", config, "--scratch_model") == 0
    assert {row["selection"].partition(", epoch")[0] for row in rows_of(folder_of(config))} == rules
    if select == "last":
        assert not (folder_of(config) / "ckpt-best.pth").exists()
    else:
        best = checkpoint_of(folder_of(config), "ckpt-best.pth")
        assert best["best"] == {"value": 30.0, "metric": f"{select}/acc", "epoch": 2} and best["epoch"] == 2
        assert {row.get("best_epoch") for row in rows_of(folder_of(config))} == {None, 2}
    keys = metrics_of(folder_of(config))[0].keys()
    assert (f"{'test' if select == 'test' else 'val'}/acc") in keys


def test_a_figure_that_is_nan_is_never_the_best(tmp_path, monkeypatch):
    scores = iter([float("nan"), 5.0, float("nan")])
    monkeypatch.setattr(Classify, "evaluate", lambda *_: {"acc": next(scores)})
    config = write_config(tmp_path, changed(finetune_config(tmp_path), {"runner": {"epochs": 3}}))
    assert run("finetune", config, "--scratch_model") == 0
    assert checkpoint_of(folder_of(config))["best"]["value"] == 5.0


def test_every_row_tells_its_protocol(tmp_path):
    config = write_config(tmp_path, changed(finetune_config(tmp_path), {"runner.epochs": 1}))
    assert run("finetune", config, "--scratch_model", "--seed", "4") == 0
    for row in rows_of(folder_of(config)):
        assert row["split"] == "test" and row["seed"] == 4 and row["epochs"] == 1 and row["dataset"] == "test"
        assert row["fingerprint"] and row["config_hash"] and row["machine"] and row["selection"]


def test_the_rate_in_the_log_is_the_one_of_the_last_step(tmp_path):
    change = {"runner.epochs": 4, "scheduler": {"name": "cosine", "warmup_epochs": 2, "min_lr": 1e-5}}
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), change))
    assert run("pretrain", config) == 0
    schedule = Cosine(warmup_epochs=2, min_lr=1e-5)
    for record in metrics_of(folder_of(config)):
        assert record["train/lr"] == schedule(1e-3, record["epoch"] + 3 / 4, 4)  # step 3 of 0 ... 3
        assert record["step"] == 4 * (record["epoch"] + 1)


def test_the_published_schedule_runs_one_epoch_more(tmp_path):
    change = {
        "runner.epochs": 3,
        "compat": {"point_mae_schedule": True},
        "scheduler": {"name": "cosine", "warmup_epochs": 1},
    }
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), change))
    assert run("pretrain", config) == 0
    rates = [record["train/lr"] for record in metrics_of(folder_of(config))]
    schedule = Cosine(warmup_epochs=1)
    assert rates == [schedule(1e-3, epoch, 3) for epoch in (0, 0, 1, 2)]
