"""A step of training on a real GPU (`pytest -m gpu`): nobody waits for it, and a graph of it is the same step."""

import copy

import pytest
import torch

from tests.helpers import changed, pretrain_config
from tools.build import build_data, build_model, build_optimizer, build_runner, build_schedule, build_task
from tools.experiment import Experiment
from tools.runner import Runner

pytestmark = pytest.mark.gpu


def prepared(tmp_path, name: str, **options) -> tuple[Runner, torch.nn.Module]:
    """A runner on the device, its data there too, that has taken a first step (which compiles kernels)."""
    tmp_path.mkdir(exist_ok=True)
    config = changed(
        pretrain_config(tmp_path), {"data.resident": True, **{f"runner.{k}": v for k, v in options.items()}}
    )
    device = torch.device("cuda")
    torch.manual_seed(0)
    data = build_data(config, device, 0)
    model = build_model(config, data)
    runner = build_runner(config, model.to(device))
    experiment = Experiment(str(tmp_path), "run.yaml", name)
    experiment.open()
    optimizer, schedule = build_optimizer(config, model), build_schedule(config)
    runner.prepare(model, build_task(config), data, optimizer, schedule, experiment, config=config, seed=0)
    return runner, runner._wrap().train()


def steps(runner: Runner, wrapped: torch.nn.Module, number: int) -> list[torch.Tensor]:
    """Weights after a number of steps on the first batches, over and over."""
    for _ in range(number):
        runner._set_learning_rate()
        runner._train_step(wrapped, runner.data.train.epoch(0))
    return [p.detach().clone() for p in runner.model.parameters()]


@pytest.mark.parametrize("options", [{}, {"precision": "bf16", "clip_grad": 1.0}, {"compile": "graph"}])
def test_a_step_waits_for_nothing(options, tmp_path):
    runner, wrapped = prepared(tmp_path, "a", **options)
    steps(runner, wrapped, 2)
    batches = runner.data.train.epoch(0)
    next(batches)  # the order of an epoch is sent to the device once
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        runner._train_step(wrapped, batches)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    runner._hear_all()
    assert runner.left_out.number == 0


def test_a_graph_is_the_same_step(tmp_path):
    results = [steps(*prepared(tmp_path / kind, kind, compile=kind), 5) for kind in ("off", "graph")]
    for one, other in zip(*results):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_spoiled_step_leaves_the_weights(tmp_path):
    runner, wrapped = prepared(tmp_path, "a")
    before = steps(runner, wrapped, 2)
    broken = copy.copy(next(runner.data.train.epoch(0)))
    broken["points"] = torch.full_like(broken["points"], torch.nan)
    runner._train_step(wrapped, iter([broken]))
    runner._hear_all()
    assert runner.left_out.number == 1
    assert all(torch.equal(one, other) for one, other in zip(before, runner.model.parameters()))
