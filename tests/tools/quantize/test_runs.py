"""The command line: search, fine-tune, distil, test, export, and every way to ask for the impossible."""

from __future__ import annotations

import builtins
import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from tests.helpers import assert_same, changed, checkpoint_of, finetune_config, folder_of, rows_of, run, write_config
from tools.build import build_data, build_model, build_task
from tools.export import main as export
from tools.quantize.environment import make_environment
from tools.quantize.problem import Problem
from tools.quantize.section import Quantization, load_quantized
from tools.runner import Runner
from utils.checkpoint import read_checkpoint
from utils.errors import UserError

SEARCH = {"agent": {"name": "random"}, "budget": {"uniform": 3}, "episodes": 3, "bits": [2, 3, 4, 8]}


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> tuple[Path, dict, str]:
    """A folder, the configuration of the float network in it, its checkpoint."""
    folder = tmp_path_factory.mktemp("float")
    config = changed(finetune_config(folder), {"data.val_fraction": 0.3, "runner.epochs": 2})
    path = write_config(folder, config, "float.yaml")
    assert run("finetune", path, "--scratch_model") == 0
    return folder, config, str(folder_of(path) / "ckpt-last.pth")


def written(start, tmp_path: Path, name: str = "run.yaml", **changes) -> Path:
    config = changed(copy.deepcopy(start[1]), {"quantize": {"bits": 3}, **changes})
    return write_config(tmp_path, config, name)


@pytest.mark.parametrize("agent", ["ddpg", "random", "uniform", "greedy", "evolutionary"])
def test_a_search(agent, start, tmp_path, capsys) -> None:
    search = {**SEARCH, "agent": {"name": agent, **({"warmup": 1} if agent == "ddpg" else {})}}
    path = written(start, tmp_path, search=search)
    assert run("finetune", path, "--ckpts", start[2]) == 0
    folder = folder_of(path)
    lines = [json.loads(line) for line in (folder / "search.jsonl").read_text().splitlines()]
    assert len(lines) == {"uniform": 2, "greedy": 1}.get(agent, 3)
    row = rows_of(folder)[0]
    assert row["split"] == "val" and row["bytes"] <= row["float_bytes"] and row["search_seconds"] > 0
    limit = max(line["bytes"] for line in lines)
    uniform = written(start, tmp_path, "uniform.yaml")
    assert run("finetune", uniform, "--ckpts", start[2], "--test") == 0
    three = rows_of(folder_of(uniform, "test_default"))[0]["bytes"]
    assert limit <= three + 64  # the header of the budget may be some digits longer
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    assert policy["bytes"] == row["bytes"] and set(policy["layers"].values()) <= {0, 2, 3, 4, 8}
    assert f"episode {len(lines)}/{len(lines)}" in capsys.readouterr().out + (folder / "train.log").read_text()


def test_a_search_continues(start, tmp_path) -> None:
    """Stopped after three episodes and continued: the same five as in one go."""
    search = {**SEARCH, "agent": {"name": "ddpg", "warmup": 1, "batch_size": 8, "hidden": 16}, "episodes": 5}
    whole = written(start, tmp_path, "whole.yaml", search=search)
    assert run("finetune", whole, "--ckpts", start[2]) == 0
    parts = written(start, tmp_path, "parts.yaml", search={**search, "episodes": 3})
    assert run("finetune", parts, "--ckpts", start[2]) == 0
    assert run("finetune", parts, "--resume", "search.episodes=5") == 0
    logs = [
        [json.loads(line) for line in (folder_of(path) / "search.jsonl").read_text().splitlines()]
        for path in (whole, parts)
    ]
    for log in logs:
        for line in log:
            del line["seconds"]
    assert logs[0] == logs[1]
    states = [checkpoint_of(folder_of(path))["agent"] for path in (whole, parts)]
    assert_same(*states)
    assert run("finetune", parts, "--resume", "search.bits=[2,4]") == 2


def test_policies_are_trained_before_they_are_judged(start, tmp_path) -> None:
    path = written(start, tmp_path, search={**SEARCH, "episodes": 1, "tune_epochs": 1})
    assert run("finetune", path, "--ckpts", start[2]) == 0
    assert (folder_of(path) / "tune" / "1" / "metrics.jsonl").is_file()


@pytest.mark.parametrize(
    "budget, said",
    [
        ({"bytes": 1000}, "2 bits everywhere take"),
        ({"share": 1.5}, "nothing has to be quantized"),
        ({"uniform": 3, "share": 0.1}, "give one of"),
        ({"uniform": 12}, "use 1 to 8"),
        ({}, "give one of"),
    ],
)
def test_budgets_that_cannot_be(budget, said, start, tmp_path, capsys) -> None:
    path = written(start, tmp_path, search={**SEARCH, "budget": budget})
    assert run("finetune", path, "--ckpts", start[2]) == 2
    assert said in capsys.readouterr().err


def test_a_budget_that_limits_nothing_is_told(start, tmp_path, capsys) -> None:
    path = written(start, tmp_path, search={**SEARCH, "budget": {"share": 0.9}, "episodes": 1})
    assert run("finetune", path, "--ckpts", start[2]) == 0
    assert "it limits nothing" in (folder_of(path) / "train.log").read_text() + capsys.readouterr().err


def test_train_distil_test_and_export(start, tmp_path, capsys) -> None:
    tuned = written(start, tmp_path, "tuned.yaml")
    task = {"name": "distill", "task": {"name": "classify"}, "loss": "kl", "temperature": 2.0}
    distilled = written(start, tmp_path, "distilled.yaml", task=task)
    for path in (tuned, distilled):
        assert run("finetune", path, "--ckpts", start[2]) == 0
    folder = folder_of(tuned)
    row = rows_of(folder)[-1]
    packed = folder / "quantized.safetensors"
    assert row["bytes"] == packed.stat().st_size and "% of float" in row["protocol"]
    figures = []
    for name, checkpoint in (("trained", folder / "ckpt-best.pth"), ("packed", packed)):
        assert run("finetune", tuned, "--test", "--exp_name", name, "--ckpts", str(checkpoint)) == 0
        figures.append([r["value"] for r in rows_of(folder_of(tuned, f"test_{name}"))])
    assert figures[0] == figures[1]
    out = tmp_path / "out.safetensors"
    assert export(["--quantized", "--ckpts", str(folder / "ckpt-best.pth"), "--output", str(out)]) == 0
    assert "every weight the same bits" in capsys.readouterr().out
    assert out.read_bytes() == packed.read_bytes()
    assert export(["--quantized", "--ckpts", start[2], "--policy", "4", "--output", str(out)]) == 0
    assert export(["--quantized", "--ckpts", start[2], "--output", str(out)]) == 2
    assert run("finetune", tuned, "--ckpts", str(packed), "--exp_name", "no") == 2  # a packed file is not trained
    assert run("finetune", distilled, "--ckpts", str(folder / "ckpt-best.pth"), "--exp_name", "no") == 2  # no teacher


def test_training_continues(start, tmp_path) -> None:
    task = {"name": "distill", "task": {"name": "classify"}}
    whole = written(start, tmp_path, "whole.yaml", task=task, quantize={"bits": 2, "train": "codebooks"})
    parts = written(start, tmp_path, "parts.yaml", task=task, quantize={"bits": 2, "train": "codebooks"})
    assert run("finetune", whole, "--ckpts", start[2], "scheduler={name: constant}") == 0
    constant = ["scheduler={name: constant}"]
    assert run("finetune", parts, "--ckpts", start[2], *constant, "runner.epochs=1") == 0
    assert run("finetune", parts, "--resume", *constant) == 0
    assert_same(checkpoint_of(folder_of(whole))["model"], checkpoint_of(folder_of(parts))["model"])


def test_rounded_inputs_train(start, tmp_path) -> None:
    section = {"quantizer": {"name": "linear"}, "bits": 4, "activation_bits": 8}
    section["policy"] = {"encoder.embed.second.0": [8, 0]}
    path = written(start, tmp_path, quantize=section)
    assert run("finetune", path, "--ckpts", start[2]) == 0
    state = checkpoint_of(folder_of(path))["model"]
    ranges = [value for key, value in state.items() if key.endswith("input_range.high")]
    assert ranges and any(float(value) != 6 for value in ranges)


def test_training_clouds_may_judge(start, tmp_path) -> None:
    changes: dict[str, Any] = {"search": {**SEARCH, "judge_clouds": 5}, "data.val_fraction": 0}
    path = written(start, tmp_path, **changes)
    assert run("finetune", path, "--ckpts", start[2]) == 0
    row = rows_of(folder_of(path))[0]
    assert row["split"] == "train" and row["selection"] == "best of 3 episodes on 5 train clouds"
    assert row["value"] % 20 == pytest.approx(0)  # one of five clouds is 20 percent
    every = problem(start, judge_clouds=10_000)
    assert len(every.clouds.dataset) == len(every.data.fit_set.dataset)
    few = problem(start, judge_clouds=4).clouds.dataset
    assert len(set(few.index.tolist())) == 4 and set(few.index) <= set(every.clouds.dataset.index)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"search": {**SEARCH, "judge_clouds": -1}}, "search.judge_clouds: -1; use 0 or more"),
        ({"quantize": {"bist": 3}}, "Did you mean 'bits'"),
        ({"quantize": {"quantizer": {"name": "kmean"}}}, "Did you mean 'kmeans'"),
        ({"quantize": {"policy": "none.yaml"}}, "none.yaml: no such file"),
        ({"runner.ema_decay": 0.9}, "codes cannot be averaged"),
        ({"search": {"agent": {"name": "ddpq"}, "budget": {"uniform": 3}}}, "Did you mean 'ddpg'"),
        ({"search": {"agent": {"name": "ddpg"}, "budget": {"bites": 3}}}, "Did you mean 'bytes'"),
        ({"search": {**SEARCH, "bits": [9]}}, "widths from 1 to 8"),
        ({"search": SEARCH, "data.val_fraction": 0}, "rewards come from held-out data"),
        ({"search": SEARCH, "quantize": {"keep_float": ["*"]}}, "no layer is left"),
    ],
)
def test_mistakes(changes, said, start, tmp_path, capsys) -> None:
    config = changed(copy.deepcopy(start[1]), {"quantize": {"bits": 3}, **changes})
    path = write_config(tmp_path, config)
    assert run("finetune", path, "--ckpts", start[2]) == 2
    assert said in capsys.readouterr().err


def test_a_start_is_needed_and_a_finished_one(start, tmp_path, capsys) -> None:
    path = written(start, tmp_path)
    assert run("finetune", path) == 2
    assert "needs --ckpts" in capsys.readouterr().err
    state = read_checkpoint(start[2])
    state["model"] = {key: value for key, value in state["model"].items() if not key.startswith("head")}
    torch.save(state, tmp_path / "half.pth")
    assert run("finetune", path, "--ckpts", str(tmp_path / "half.pth")) == 2
    assert "needs a finished model" in capsys.readouterr().err
    state["model"] = {**read_checkpoint(start[2])["model"]}
    state["model"]["encoder.transformer.blocks.0.mlp.fc1.weight"].fill_(float("nan"))
    torch.save(state, tmp_path / "nan.pth")
    assert run("finetune", path, "--ckpts", str(tmp_path / "nan.pth")) == 2
    assert "mlp.fc1.weight: holds values that are not finite" in capsys.readouterr().err


def problem(start, **options) -> Problem:
    config, device = start[1], torch.device("cpu")
    data, task = build_data(config, device, 0), build_task(config)
    section = Quantization()
    model = build_model(config, data)
    load_quantized(
        model, read_checkpoint(start[2]), start[2], section, data, task, device, testing=False, searching=True
    )
    runner = Runner()
    runner.device = device
    return Problem(model, section, task, data, runner.autocast, [2, 4, 8], **options)


def test_the_environment_is_one(start) -> None:
    gymnasium = pytest.importorskip("gymnasium")
    from gymnasium.utils.env_checker import check_env

    found = problem(start)
    found.set_budget(None, None, 0.1, None)
    environment = make_environment(found)
    check_env(environment, skip_render_check=True)
    assert isinstance(environment, gymnasium.Env)
    state, _ = environment.reset(seed=0)
    seen, rewards, done = [state], [], False
    while not done:
        state, reward, done, _, info = environment.step(np.array([0.9], dtype=np.float32))
        seen.append(state)
        rewards.append(reward)
    assert len(rewards) == len(found.names) and set(rewards[:-1]) == {0.0}
    assert seen[1][8] == 1.0 and np.stack(seen).max() <= 1
    outcome = info["outcome"]
    assert outcome.bytes <= found.target and outcome.reward == pytest.approx(
        0.1 * (outcome.metric - found.float_metric)
    )


def test_without_gymnasium(start, monkeypatch) -> None:
    found, real = problem(start), builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith("gymnasium"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UserError, match="pip install gymnasium"):
        make_environment(found)


def test_a_lower_loss_is_a_reward_where_loss_is_watched(start) -> None:
    found = problem(start)
    found.target = float("inf")
    found.task.higher_is_better = False
    outcome = found.finish([2] * len(found.names))
    assert outcome.reward == pytest.approx(-0.1 * (outcome.metric - found.float_metric))
