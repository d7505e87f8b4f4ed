"""Files of weights: whole or not there, read without running code, loaded with a report."""

from __future__ import annotations

import datetime
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from utils.checkpoint import load_weights, read_checkpoint, save_checkpoint, weights_in
from utils.errors import UserError


@pytest.mark.parametrize("hidden", [False, True])
def test_a_full_disk_is_told_and_leaves_the_old_file(hidden, tmp_path, monkeypatch):
    path = tmp_path / "a.pth"
    save_checkpoint(path, {"epoch": 1})

    def half(state, file):
        file.write(b"half of it")
        try:
            raise OSError("no space left on device")
        finally:
            if hidden:  # as PyTorch's writer does when it closes its file
                raise RuntimeError("unexpected pos 704 vs 598")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(UserError, match=r"a\.pth: cannot be written \(no space.*unharmed.*make room"):
        save_checkpoint(path, {"epoch": 2})
    assert read_checkpoint(path) == {"epoch": 1} and [p.name for p in tmp_path.iterdir()] == ["a.pth"]


def test_round_trip(tmp_path):
    state: dict[str, Any] = {"model": {"w": torch.randn(3)}, "plain": [1, 2.5, "a", None, True, {"k": (1, 2)}]}
    save_checkpoint(tmp_path / "a.pth", state)
    read = read_checkpoint(tmp_path / "a.pth")
    assert torch.equal(read["model"]["w"], state["model"]["w"]) and read["plain"] == state["plain"]


def test_official_files(tmp_path):
    """Weights under another key, prefixes of several processes, the accuracy as a NumPy number."""
    state = {"base_model": {"module.weight": torch.ones(2, 3)}, "epoch": 300, "metrics": {"acc": np.float64(0.93)}}
    torch.save(state | {"best_metrics": np.float32(0.5), "n": np.int64(3)}, tmp_path / "a.pth")
    read = read_checkpoint(tmp_path / "a.pth")
    assert read["metrics"]["acc"] == 0.93 and read["n"] == 3
    assert list(weights_in(read, "a.pth")) == ["weight"]


@pytest.mark.parametrize("key", ["model", "base_model", "state_dict", "model_state_dict", None])
def test_where_weights_lie(key):
    weights = {"a": torch.zeros(2), "count": 3}
    assert list(weights_in({key: weights, "epoch": 3} if key else weights, "x")) == ["a"]


def test_the_moving_average_is_what_was_judged():
    state = {"model": {"a": torch.zeros(1)}, "ema": {"module.a": torch.ones(1), "n_averaged": torch.tensor(3)}}
    assert weights_in(state, "x") == {"a": torch.ones(1)}
    assert weights_in(state | {"ema": None}, "x") == {"a": torch.zeros(1)}


def test_safetensors(tmp_path):
    save_file({"weight": torch.ones(2)}, tmp_path / "a.safetensors")
    assert torch.equal(weights_in(read_checkpoint(tmp_path / "a.safetensors"), "a")["weight"], torch.ones(2))


@pytest.mark.parametrize("value", [datetime.timedelta(1), np.array([object()], dtype=object), print, nn.Linear(2, 2)])
def test_objects_are_refused(value, tmp_path):
    torch.save({"model": {"w": torch.zeros(1)}, "x": value}, tmp_path / "a.pth")
    with pytest.raises(UserError, match="refused"):
        read_checkpoint(tmp_path / "a.pth")


@pytest.mark.parametrize("size", [0, 10, 200, 1000])
def test_cut_files(size, tmp_path):
    save_checkpoint(tmp_path / "a.pth", {"model": {"w": torch.zeros(500)}})
    (tmp_path / "a.pth").write_bytes((tmp_path / "a.pth").read_bytes()[:size])
    with pytest.raises(UserError, match=r"a\.pth: (damaged|holds)"):
        read_checkpoint(tmp_path / "a.pth")


def test_what_is_no_checkpoint(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds a list"):
        read_checkpoint(tmp_path / "list.pth")
    with pytest.raises(UserError, match=r"no such checkpoint; beside it: list\.pth"):
        read_checkpoint(tmp_path / "lost.pth")
    with pytest.raises(UserError, match="no weights in it; keys found: epoch"):
        weights_in({"epoch": 3}, "x")


def two_layers() -> nn.Module:
    return nn.ModuleDict({"body": nn.Linear(2, 2), "head": nn.Linear(2, 3)})


def test_report():
    model, before = two_layers(), {}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {
        "body.weight": torch.ones(2, 2, 1),
        "old.bias": torch.ones(2),
        "what": torch.ones(1),
        "skip": torch.ones(1),
    }
    names = {"old.bias": "body.bias", "skip": None}
    report = load_weights(model, weights, "f.pth", lambda key: names.get(key, key))
    assert report.loaded == ["body.bias", "body.weight"] and report.missing == ["head.bias", "head.weight"]
    assert report.unexpected == ["what"] and report.unused == ["skip"] and not report.reshaped
    state = model.state_dict()
    assert torch.equal(state["body.weight"], torch.ones(2, 2)) and torch.equal(state["head.bias"], before["head.bias"])
    assert "loaded 2 tensors" in report.summary() and "2 (head.bias, head.weight)" in report.summary()


def test_other_sizes():
    model = two_layers()
    weights = {**model.state_dict(), "head.weight": torch.ones(7, 2)}
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=r"head\.weight: file \(7, 2\), model \(3, 2\)"):
        load_weights(model, {**weights, "body.weight": torch.ones(2, 2)}, "f.pth")
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())  # nothing half-loaded
    assert load_weights(model, weights, "f.pth", may_differ=("head.",)).reshaped
    with pytest.raises(UserError, match="nothing fits"):
        load_weights(model, {"other": torch.ones(1)}, "f.pth")
