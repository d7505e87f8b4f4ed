"""Parameter groups: what decays, what does not, what is left out."""

import pytest
import torch
from torch import nn

from models import MODELS
from tools.optim import is_free_of_decay, parameter_groups
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
