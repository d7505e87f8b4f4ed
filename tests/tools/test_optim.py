"""Parameter groups: what decays, what does not, what is left out. Our optimizers are PyTorch's to the bit."""

import copy
import functools
from typing import Any

import pytest
import torch
from torch import nn

from models import MODELS
from tests.helpers import assert_same, changed, folder_of, pretrain_config, run, write_config
from tools import OPTIMIZERS
from tools.build import build_optimizer
from tools.optim import eager_step, is_free_of_decay, parameter_groups, rate_scales, unguarded
from tools.runner import Runner
from utils.errors import UserError
from utils.schema import parameters


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)
        self.norm = nn.LayerNorm(4)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.cls_pos = nn.Parameter(torch.zeros(1, 1, 4))
        self.scale = nn.Parameter(torch.zeros(()))


def names_in(model: nn.Module, group: dict) -> set[str]:
    wanted = {id(p) for p in group["params"]}
    return {name for name, p in model.named_parameters() if id(p) in wanted}


def test_groups() -> None:
    model = Small()
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert names_in(model, decayed) == {"layer.weight", "cls_pos"}
    assert names_in(model, plain) == {"layer.bias", "norm.weight", "norm.bias", "mask_token", "scale"}


def test_frozen_parameters_are_left_out() -> None:
    model = Small()
    model.layer.requires_grad_(False)
    model.cls_pos.requires_grad_(False)
    (group,) = parameter_groups(model, 0.05)
    assert group["weight_decay"] == 0.0 and len(group["params"]) == 4
    assert parameter_groups(model.requires_grad_(False), 0.05) == []


def test_rates_fall_from_block_to_block() -> None:
    with torch.device("meta"):
        model = MODELS.build({"name": "PointMAEClassifier", "num_classes": 5, "depth": 3})
    scales = rate_scales(model, 0.5)
    assert scales["encoder.embed.first.0.weight"] == scales["encoder.pos_embed.0.weight"] == scales["cls_pos"] == 0.125
    block = "encoder.transformer.blocks.{}.attn.qkv.weight"
    assert [scales[block.format(number)] for number in range(3)] == [0.25, 0.5, 1.0]
    assert scales["encoder.transformer.norm.weight"] == scales["head.8.weight"] == 1.0
    groups = parameter_groups(model, 0.05, layer_decay=0.5)
    assert {(group["lr_scale"], group["weight_decay"]) for group in groups} == {
        (scale, decay) for scale in (0.125, 0.25, 0.5, 1.0) for decay in (0.05, 0.0)
    }
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    with pytest.raises(UserError, match=r"runner.layer_decay: the model has no numbered blocks"):
        rate_scales(Small(), 0.5)
    with pytest.raises(UserError, match=r"runner.layer_decay: 0"):
        Runner(layer_decay=0.0)


@pytest.mark.parametrize("options", [{"betas": [0.9]}, {"fused": True, "foreach": True}])
def test_options_that_an_optimizer_refuses_are_one_line(options: dict) -> None:
    with pytest.raises(UserError, match=r"^optimizer: AdamW cannot be made with these options \(.+\)$"):
        build_optimizer({"optimizer": {"name": "AdamW", **options}}, Small())


def test_a_run_with_rates_of_its_own(tmp_path) -> None:
    changes = {"runner.layer_decay": 0.5, "model.depth": 2}
    config = write_config(tmp_path, changed(pretrain_config(tmp_path), changes))
    assert run("pretrain", config, "runner.epochs=1") == 0
    state = torch.load(folder_of(config) / "ckpt-last.pth", weights_only=True)
    groups = state["optimizer"]["param_groups"]
    assert len({group["lr_scale"] for group in groups}) > 1
    assert len({round(group["lr"] / group["lr_scale"], 9) for group in groups}) == 1


@pytest.mark.parametrize("name", MODELS.names())
def test_every_parameter_is_in_one_group(name: str) -> None:
    extra: dict = {key: 5 for key in ("num_classes", "num_parts") if key in parameters(MODELS.get(name))}
    if name == "SA3D":
        extra["backbone"] = {"name": "PointMAE"}
    if name == "SampledNetwork":
        extra = {"sampler": {"name": "samplenet"}, "network": {"name": "PointNetClassifier", "num_classes": 5}}
    with torch.device("meta"):
        model = MODELS.build({"name": name, **extra})
    grouped = [p for group in parameter_groups(model, 0.05) for p in group["params"]]
    assert len(grouped) == len(set(map(id, grouped))) == sum(p.requires_grad for p in model.parameters())
    assert all(is_free_of_decay(key, p) for key, p in model.named_parameters() if p.ndim <= 1)


def test_an_optimizer_decays_only_one_group() -> None:
    model = Small()
    nn.init.ones_(model.norm.weight)
    nn.init.ones_(model.layer.weight)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.5), lr=0.1)
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    assert torch.equal(model.norm.weight, torch.ones(4))
    torch.testing.assert_close(model.layer.weight, torch.full((4, 3), 0.95))


def trained(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    for step in range(3):
        generator = torch.Generator().manual_seed(10 * seed + step)
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()
        optimizer.zero_grad()
        assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"foreach": True}, {"foreach": False}], ids=str)
@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_an_optimizer_is_pytorchs_and_continues_what_pytorchs_began(name: str, options: dict[str, Any]) -> None:
    if name == "SGD":
        options = {**options, "momentum": 0.9}
    kinds = (OPTIMIZERS.get(name), getattr(torch.optim, name))
    assert parameters(kinds[0]) == parameters(kinds[1])
    model, states = Small(), []
    for first in kinds:
        for second in kinds:
            each = copy.deepcopy(model)
            optimizer = first(parameter_groups(each, 0.05), lr=0.01, **options)
            trained(each, optimizer, 0)
            saved = copy.deepcopy(optimizer.state_dict())
            optimizer = second(parameter_groups(each, 0.05), lr=0.5, **options)
            optimizer.load_state_dict(saved)
            trained(each, optimizer, 1)
            states.append({"model": each.state_dict(), "optimizer": optimizer.state_dict()})
    for state in states[1:]:
        assert_same(state, states[0])


@pytest.mark.parametrize("name", OPTIMIZERS.names())
def test_hooks_and_closures_of_a_step(name: str) -> None:
    p, called = nn.Parameter(torch.ones(3)), []
    optimizer = OPTIMIZERS.get(name)([p], lr=0.1)
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))

    def closure() -> torch.Tensor:
        called.append("closure")
        loss = (p * p).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).detach() == 3
    assert called == ["before", "closure", "after"] and p.requires_grad and p.is_leaf and (p < 1).all()
    assert torch.is_grad_enabled()


def test_wrappers_of_another_kind_stay() -> None:
    """A PyTorch that wraps its optimizers otherwise is used as it is."""

    def plain(self: Any) -> str:
        return "plain"

    @functools.wraps(plain)
    def other(self: Any) -> str:
        return f"other, {plain(self)}"

    assert unguarded(other) is other and unguarded(plain) is plain and unguarded(len) is len
    assert eager_step(other) is other and eager_step(plain) is plain
    assert unguarded(torch._disable_dynamo(plain)) is plain
