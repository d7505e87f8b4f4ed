"""Every adaptation on every kind of backbone keeps what it promises: little is trained, the rest does not move, clouds
of a batch do not see each other, and it can be taken off, saved alone and put on again."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from models.peft import PEFT
from models.peft.apply import (
    adapter_state,
    apply_peft,
    backbone_hash,
    count,
    load_adapter_state,
    merge_peft,
    methods_of,
    remove_peft,
    unused_parameters,
)
from models.peft.point_peft import PointPEFT
from models.peft.prior import retrieve
from tests.models.test_point_mae import build
from utils.errors import UserError

POINT_PEFT = {"name": "point_peft", "num_prompts": 5, "adapter_dim": 4, "prior_dim": 3, "bank": "build"}
METHODS: dict[str, list[dict]] = {
    "adapter": [{"name": "adapter", "dim": 4}],
    "adapter_parallel": [{"name": "adapter", "dim": 4, "place": "parallel", "scale": 0.1}],
    "bitfit": [{"name": "bitfit"}],
    "dapt": [{"name": "dapt", "rank": 4}],
    "dapt_each": [{"name": "dapt", "rank": 4, "positions": "each", "head_prompt": False}],
    "idpt": [{"name": "idpt", "k": 3}],
    "linear_probe": [{"name": "linear_probe"}],
    "lora": [{"name": "lora", "rank": 2, "targets": ["qkv", "proj", "fc1", "fc2"]}],
    "point_peft": [POINT_PEFT],
    "point_peft_gate": [{**POINT_PEFT, "ffn": "gate", "prompt_blocks": None, "pooling": "mean_max"}],
    "point_peft_keys": [{**POINT_PEFT, "prompts": "keys", "prompt_blocks": 1, "leave_one_out": True}],
    "point_peft_compat": [{**POINT_PEFT, "compat": ["prompt_rows", "shifted_mask", "unused_weights"]}],
    "point_peft_no_bank": [{**POINT_PEFT, "bank": None}],
    "vpt_deep": [{"name": "vpt", "num_prompts": 3}],
    "vpt_shallow": [{"name": "vpt", "num_prompts": 3, "mode": "shallow"}],
    "several": [
        {"name": "freeze_stats"},
        {"name": "lora", "rank": 2},
        {"name": "vpt"},
        {"name": "unfreeze", "parameters": ["norm"]},
    ],
}
CLASSIFIERS = ("PointMAEClassifier", "PointM2AEClassifier")
MODELS = (*CLASSIFIERS, "PointMAESegmenter", "PointM2AESegmenter")
each_method = pytest.mark.parametrize("method", METHODS)
each_classifier = pytest.mark.parametrize("name", CLASSIFIERS)


def cloud(batch: int = 3) -> Tensor:
    return torch.randn(batch, 64, 3)


def adapted(name: str, method: str, moved: bool = True) -> nn.Module:
    """A model with its adaptation, and a bank where one is wanted. moved: not as it starts, where much is zero."""
    model = apply_peft(build(name), METHODS[method])
    fill(model)
    if moved:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def fill(model: nn.Module, seed: int = 7) -> None:
    columns = torch.randn(24, 12, generator=torch.Generator().manual_seed(seed))
    for method in methods_of(model):
        if isinstance(method, PointPEFT) and method.bank_from:
            method.set_bank(nn.functional.normalize(columns, dim=0))


def train(model: nn.Module, steps: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(steps):
        model(cloud(4)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


@each_method
@pytest.mark.parametrize("name", MODELS)
def test_gradients_reach_what_is_trained_and_nothing_else(name: str, method: str) -> None:
    model = adapted(name, method).train()
    out = model(cloud())
    assert out.isfinite().all()
    out.square().mean().backward()
    unused = set(unused_parameters(model))
    for key, parameter in model.named_parameters():
        assert (parameter.grad is not None) == (parameter.requires_grad and key not in unused), key
    assert count(model).unused == sum(model.get_parameter(key).numel() for key in unused)


@each_method
@each_classifier
def test_batch_mates_do_not_matter(name: str, method: str) -> None:
    model, points = adapted(name, method).eval(), cloud()
    together = model(points)
    for i in range(len(points)):
        torch.testing.assert_close(model(points[i : i + 1])[0], together[i], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model(points.flip(0)).flip(0), together, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.encode(points[1:2])[0], model.encode(points)[1], atol=1e-5, rtol=1e-4)  # type: ignore[operator]


@each_method
@each_classifier
def test_frozen_is_frozen(name: str, method: str) -> None:
    model = adapted(name, method)
    frozen = {key: p.clone() for key, p in model.named_parameters() if not p.requires_grad}
    trained = {key: p.clone() for key, p in model.named_parameters() if p.requires_grad}
    optimizer = train(model, 20 if method in ("point_peft", "several", "dapt", "idpt") else 3)
    now = dict(model.named_parameters())
    assert all(torch.equal(now[key], value) for key, value in frozen.items())
    moved = [key for key, value in trained.items() if not torch.equal(now[key], value)]
    assert len(moved) > 0.8 * len(set(trained) - set(unused_parameters(model)))
    held = {id(p) for p in optimizer.state}
    assert held <= {id(now[key]) for key in trained} and not held & {id(now[key]) for key in frozen}


@each_method
@each_classifier
def test_alone_on_a_fresh_backbone(name: str, method: str) -> None:
    start = build(name).state_dict()
    model = build(name)
    model.load_state_dict(start)
    apply_peft(model, METHODS[method])
    fill(model)
    train(model, 2)
    tensors = {key: value.clone() for key, value in adapter_state(model).items()}
    assert len(tensors) < len(model.state_dict())

    fresh = build(name)
    fresh.load_state_dict({key: value for key, value in start.items() if key.startswith("encoder.")}, strict=False)
    apply_peft(fresh, METHODS[method])
    fill(fresh)
    assert backbone_hash(fresh) == backbone_hash(model)
    points = cloud()
    assert not torch.equal(fresh.eval()(points), model.eval()(points))
    load_adapter_state(fresh, tensors)
    assert torch.equal(fresh(points), model(points))


@each_method
@each_classifier
def test_it_comes_off(name: str, method: str) -> None:
    model, points = build(name), cloud()
    before, flags = copy.deepcopy(model), [p.requires_grad for p in model.parameters()]
    apply_peft(model, METHODS[method])
    fill(model)
    train(model, 2)
    remove_peft(model)
    now = model.state_dict()
    assert list(now) == list(before.state_dict())
    for key, value in before.state_dict().items():
        assert key.startswith("head.") or torch.equal(now[key], value), key
    assert [p.requires_grad for p in model.parameters()] == flags
    assert torch.equal(model.eval().encode(points), before.eval().encode(points))  # type: ignore[operator]
    assert model(points).shape == before(points).shape


@each_method
def test_copies_are_independent(method: str) -> None:
    model, points = adapted("PointMAEClassifier", method).eval(), cloud()
    model(points)  # what a forward pass leaves must not stand in the way
    twin = copy.deepcopy(model)
    expected = model(points)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.zero_()
    assert torch.equal(twin(points), expected)
    assert not torch.equal(model(points), expected)


@each_method
def test_bf16_and_hard_clouds(method: str) -> None:
    model = adapted("PointMAEClassifier", method).train()
    points = cloud(4)
    points[0] = points[0, :1]  # one point many times
    points[1, 32:] = points[1, :32]
    with torch.autocast("cpu", torch.bfloat16):
        out = model(points)
    assert out.isfinite().all()
    out.float().square().mean().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_lora_merges() -> None:
    for name in CLASSIFIERS:
        model, points = adapted(name, "lora").eval(), cloud()
        keys = list(build(name).state_dict())
        expected = model(points)
        merge_peft(model)
        assert list(model.state_dict()) == keys and all(p.requires_grad for p in model.parameters())
        torch.testing.assert_close(model(points), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match=r"cannot be merged|can be merged"):
        merge_peft(adapted("PointMAEClassifier", "vpt_deep"))


def test_nothing_changes_where_it_starts_at_zero() -> None:
    points = cloud()
    for method in ("adapter", "lora", "bitfit", "linear_probe"):
        model = build("PointMAEClassifier").eval()
        before = model(points)
        assert torch.equal(apply_peft(model, METHODS[method])(points), before)


def test_statistics_of_frozen_parts() -> None:
    for method, moves in (("lora", True), ("several", False)):
        model = adapted("PointMAEClassifier", method)
        before = {key: value.clone() for key, value in model.named_buffers() if key.startswith("encoder.")}
        train(model, 2)
        now = dict(model.named_buffers())
        assert any(not torch.equal(now[key], value) for key, value in before.items()) == moves
        assert model.head[1].num_batches_tracked == 2  # type: ignore[index, union-attr]


def test_retrieval() -> None:
    bank = nn.functional.normalize(torch.randn(6, 9), dim=0)
    feature = 3 * bank[:, 4:5].T + 0.01
    found = retrieve(feature, bank, 3)[0]
    similarity = (nn.functional.normalize(feature, dim=-1) @ bank)[0]
    order = similarity.argsort(descending=True)[:3]
    assert order[0] == 4 and torch.equal(found[0], feature[0])
    torch.testing.assert_close(found[2:], bank.T[order])
    torch.testing.assert_close(found[1], similarity[order].softmax(0) @ bank.T[order])
    torch.testing.assert_close(retrieve(feature, bank, 3, temperature=1e-3)[0, 1], bank[:, 4], atol=1e-2, rtol=0)
    assert torch.equal(retrieve(feature, bank, 2, skip=1)[0, 2], bank.T[order[1]])


def test_the_prior_sees_the_backbone_as_it_was() -> None:
    model, points = build("PointMAEClassifier"), cloud()
    with torch.no_grad():
        expected = model.eval().forward_features(points).amax(dim=1)  # type: ignore[operator]
    apply_peft(model, [*METHODS["point_peft"], {"name": "bitfit"}])
    fill(model)
    train(model, 3)
    (method, _) = methods_of(model)
    assert isinstance(method, PointPEFT) and method.extractor is not None
    assert torch.equal(method.extractor(points), expected)
    own, copied = model.encoder, method.extractor.backbone.encoder
    assert own.transformer.blocks[0].attn.qkv.weight is copied.transformer.blocks[0].attn.qkv.weight  # type: ignore[union-attr, index]


def test_the_bank_matters_and_must_fit() -> None:
    model, points = adapted("PointMAEClassifier", "point_peft").eval(), cloud()
    before = model(points)
    fill(model, seed=8)
    assert not torch.equal(model(points), before)
    (method,) = methods_of(model)
    assert isinstance(method, PointPEFT) and "peft.methods.0.bank" not in model.state_dict()
    for shape in ((23, 12), (24, 2), (24,)):
        with pytest.raises(UserError, match="bank"):
            method.set_bank(torch.randn(shape))


@pytest.mark.parametrize(
    "entries, match",
    [
        ([], "empty"),
        ([{"name": "vpt"}, {"name": "dapt"}], "insert tokens"),
        ([{"name": "lora", "targets": ["fc3"]}], "fc3"),
        ([{"name": "lora", "rank": 0}], "rank"),
        ([{"name": "unfreeze", "parameters": ["nowhere"]}], "nowhere"),
        ([{"name": "point_peft", "inner_heads": 4}], "inner_heads"),
        ([{"name": "point_peft", "num_prompts": 2}], "num_prompts"),
        ([{"name": "point_peft", "bank": "build", "query_num_groups": [4, 2]}], "query_num_groups"),
        ([{"name": "idpt", "layer": 9}], "layer"),
        ([{"name": "adaptor"}], "adapter"),
    ],
)
def test_mistakes_leave_the_model_alone(entries: list[dict], match: str) -> None:
    model, points = build("PointMAEClassifier").eval(), cloud()
    before, keys = model(points), list(model.state_dict())
    with pytest.raises(UserError, match=match):
        apply_peft(model, entries)
    assert list(model.state_dict()) == keys and all(p.requires_grad for p in model.parameters())
    assert torch.equal(model(points), before)


def test_more_mistakes() -> None:
    model = build("PointMAEClassifier")
    with pytest.raises(UserError, match="not adapted"):
        remove_peft(model)
    apply_peft(model, METHODS["lora"])
    with pytest.raises(UserError, match="already"):
        apply_peft(model, METHODS["lora"])
    tensors = dict(adapter_state(model))
    tensors.pop("cls_token")
    with pytest.raises(UserError, match="cls_token"):
        load_adapter_state(model, tensors)
    with pytest.raises(UserError, match="encoder"):
        apply_peft(nn.Linear(2, 2), METHODS["lora"])


def test_one_layer_probe() -> None:
    model = apply_peft(build("PointMAEClassifier"), [{"name": "linear_probe", "one_layer": True}])
    assert count(model).trained == 48 * 5 + 5
    model(cloud()).sum().backward()


def test_every_registered_name_is_tested() -> None:
    assert {entry["name"] for entries in METHODS.values() for entry in entries} == set(PEFT.names())
