"""3DSimAttention and its networks against what the official code computed."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from extensions import ops
from models.keras_weights import from_keras
from models.layers.attention.lsh import LSHAttention, similarity_values
from models.layers.attention.sim import SimAttention, variance
from models.layers.neighbourhood import nearest_l1
from models.samplers.ass import adaptive_sparse_sample
from models.sim3d import (
    AttentionLayer,
    NeighbourhoodPool,
    SimNeighbourhoodClassifier,
    SimNetwork,
    SimPointClassifier,
    SimSegmenter,
)
from tests.golden.fixtures import Fixture
from utils.checkpoint import load_weights

PUBLISHED: dict[str, int] = {"d_l": 8, "d_h": 64, "k_h": 4, "k": 16, "window": 9, "d": 32, "n": 72, "K": 32}


def config_of(fixture: Fixture) -> dict[str, Any]:
    """Sizes of the JSON; some stand in a text ("d=32, d_l=8, ..."), what stands nowhere is as published."""
    config = dict(fixture.about["config"])
    told = dict(part.strip().split("=") for part in str(config.pop("fixed", "")).split(",") if "=" in part)
    return PUBLISHED | {key: int(value) for key, value in told.items()} | config


def sim_kind(config: Mapping[str, Any]) -> partial:
    sizes = {"d_low": config["d_l"], "k_heads": config["k_h"], "n_proj": config["k"]}
    return partial(SimAttention, **sizes, window=config.get("window_size", config["window"]), restore="none")


def load(model: nn.Module, fixture: Fixture, prefix: str = "param/") -> None:
    weights = from_keras(fixture.below_dict(prefix))
    own = {key for key in model.state_dict() if not key.endswith((".projection", ".source"))}
    report = load_weights(model, weights, fixture.name)
    assert set(report.loaded) == own and not report.unexpected, report.summary()


def check_layer(fixture: Fixture, layer: AttentionLayer) -> None:
    x = fixture["in/x"].requires_grad_()
    out = layer(x)
    fixture.check(out, "out/y")
    out.backward(fixture["in/grad_out"])
    assert x.grad is not None
    fixture.check(x.grad, "out/grad_x")
    names = [key.removeprefix("grad_") for key in fixture.below("out/") if key not in ("y", "grad_x")]
    gradients = {key: p.grad for key, p in layer.named_parameters() if p.grad is not None}
    recorded = from_keras({name: fixture[f"out/grad_{name}"] for name in names})
    assert set(recorded) == set(gradients)
    for key, expected in recorded.items():
        torch.testing.assert_close(gradients[key], expected, atol=5e-5, rtol=1e-3)


def sim_attention(fixture: Fixture) -> None:
    config = config_of(fixture)
    layer = AttentionLayer(config["d_in"], config["d_h"], attention=sim_kind(config))
    load(layer, fixture)
    attention = layer.attention
    assert isinstance(attention, SimAttention)
    projection = fixture["in/RME"]
    attention.register_buffer("projection", projection)
    fixture.about.setdefault("atol", 2e-5)
    if "aux/query_low" in fixture:
        low = attention.query(fixture["in/x"])
        fixture.check(low.relu(), "aux/query_low")
        spread = variance(low.relu() @ projection, None)
        fixture.check(spread, "aux/variance")
        fixture.check(attention._orders(low, projection, None).mT, "aux/order")
    check_layer(fixture, layer)


def lsh_attention(fixture: Fixture) -> None:
    config = config_of(fixture)
    kind = partial(LSHAttention, window=config.get("window_size", config["window"]), restore="none")
    layer = AttentionLayer(config["dim"], config["dim"], config["num_heads"], kind, skip="identity")
    load(layer, fixture)
    attention = layer.attention
    assert isinstance(attention, LSHAttention)
    fixture.about.setdefault("atol", 5e-5)
    if "aux/simvalues" in fixture:
        up = attention.up(fixture["in/x"])
        fixture.check(similarity_values(up.unflatten(-1, (config["num_heads"], -1))), "aux/simvalues")
        fixture.check(attention._order(up, None), "aux/order")
    check_layer(fixture, layer)


def sim_neighborhood_pool(fixture: Fixture) -> None:
    config = config_of(fixture)
    pool = NeighbourhoodPool(config["channels"], config["d"])
    weights = from_keras(fixture.below_dict("param/"))
    load_weights(pool, {key.removeprefix("pool."): value for key, value in weights.items()}, fixture.name)
    fixture.check(pool(fixture["in/x"]), "out/y")


def sim_sampling(fixture: Fixture) -> None:
    config, points = fixture.about["config"], fixture["in/points"]
    index = ops.farthest_point_sample(points, config["n_fps"], start="mean")
    fixture.check(index, "out/fps_index")
    samples = {"fps": ops.gather_points(points, index), "ass": adaptive_sparse_sample(points, config["n_ass"])[0]}
    for name, centers in samples.items():
        fixture.check(centers, f"out/{name}")
        members = ops.gather_points(points, nearest_l1(fixture[f"out/{name}"], points, config["k"]))
        fixture.check(members, f"out/neighbours_of_{name}")


def check_network(fixture: Fixture, model: SimNetwork, probabilities: Any) -> None:
    load(model, fixture)
    for i, layer in enumerate(model.layers):
        dict(layer.named_modules())["attention"].register_buffer("projection", fixture[f"in/RME.{i}"])
    fixture.about.setdefault("atol", 2e-5)
    fixture.check(probabilities(model.eval()(fixture["in/points"])), "out/prob")


def softmax(logits: Tensor) -> Tensor:
    return logits.softmax(dim=-1)


def sizes(fixture: Fixture, head: str) -> dict[str, Any]:
    config = config_of(fixture)
    kind, outputs = sim_kind(config), fixture[f"param/{head}.kernel"].shape[1]
    return {"depth": config["layer_num"], "embed_dim": config["d_h"], "attention": kind, "outputs": outputs}


def sim_classification(fixture: Fixture) -> None:
    config, options = config_of(fixture), sizes(fixture, "classify_head")
    groups = {"token_dim": config["d"], "num_group": config["n"], "group_size": config["K"]}
    check_network(fixture, SimNeighbourhoodClassifier(options.pop("outputs"), **options, **groups), softmax)


def sim_classification_pw(fixture: Fixture) -> None:
    options = sizes(fixture, "classify_head")
    check_network(fixture, SimPointClassifier(options.pop("outputs"), **options), softmax)


def sim_segmentation(fixture: Fixture) -> None:
    options = sizes(fixture, "seg_head")
    check_network(fixture, SimSegmenter(options.pop("outputs"), **options), torch.sigmoid)


ADAPTERS = {
    "sim_attention": sim_attention,
    "lsh_attention": lsh_attention,
    "sim_neighborhood_pool": sim_neighborhood_pool,
    "sim_sampling": sim_sampling,
    "sim_classification": sim_classification,
    "sim_classification_pw": sim_classification_pw,
    "sim_segmentation": sim_segmentation,
}
