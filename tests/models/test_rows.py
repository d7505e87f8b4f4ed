"""Layers over rows of points: norm and rectifier in one pass give what the modules one after another give."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from extensions import features
from models.layers.point_mlp import dense_stack, pooled
from models.layers.rows import Rows, linear_norm


def stack() -> Rows:
    """As in heads: a dropout without effect, a leaky rectifier, a last layer without any."""
    layers = [*linear_norm(5, 12), nn.Dropout(0), *linear_norm(12, 9, slope=0.2), *linear_norm(9, 7), nn.Linear(7, 3)]
    return randomised(Rows(*layers))


def randomised(module: Any) -> Any:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm1d):
            nn.init.uniform_(norm.weight, 0.5, 2)
            nn.init.uniform_(norm.bias, -1, 1)
    return module


def compare(ours: nn.Module, exact: nn.Module, out: Tensor, expected: Tensor) -> None:
    assert torch.allclose(out.double(), expected, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(expected)
    (out * weight.float()).sum().backward()
    (expected * weight).sum().backward()
    for (name, mine), truth in zip(ours.named_parameters(), exact.parameters()):
        assert mine.grad is not None and truth.grad is not None
        assert (mine.grad - truth.grad).norm() <= 1e-4 * truth.grad.norm() + 1e-4, name
    for own, theirs in zip(ours.buffers(), exact.buffers()):
        assert torch.allclose(own.double(), theirs.double(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_rows(training: bool) -> None:
    layers = stack().train(training)
    exact = copy.deepcopy(layers).double()
    x = torch.randn(3, 11, 5)
    compare(layers, exact, layers(x), nn.Sequential(*exact)(x.double().flatten(0, 1)).unflatten(0, (3, 11)))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [True, False])
def test_pooled(training: bool, norm: bool) -> None:
    layers = randomised(dense_stack([3, 8, 16], norm=norm)).train(training)
    exact = copy.deepcopy(layers).double()
    x = torch.randn(4, 50, 3)
    rows = x.double().flatten(0, 1)
    for dense in exact:
        rows = dense.linear(rows)
        rows = (rows if dense.norm is None else dense.norm(rows)).relu()
    compare(layers, exact, pooled(layers, x), rows.unflatten(0, (4, 50)).amax(dim=1))


def test_what_watches_a_norm_still_sees_it() -> None:
    layers, seen = stack(), []
    layers[1].register_forward_hook(lambda module, inputs, output: seen.append(output.shape))
    layers(torch.randn(2, 6, 5))
    assert seen == [(12, 12)]


def test_one_pass_where_that_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    layers, x = stack(), torch.randn(2, 6, 5)
    if not features.fits(layers[1], torch.randn(12, 12)):
        pytest.skip("no compiled operations here; `python -m extensions.build` says why")
    fused, one_pass = [], features.norm_relu

    def noted(rows: Tensor, norm: nn.BatchNorm1d) -> Tensor:
        fused.append(norm)
        return one_pass(rows, norm)

    monkeypatch.setattr(features, "norm_relu", noted)
    layers(x)
    assert fused == [layers[1], layers[8]]  # not the one with the leaky rectifier
