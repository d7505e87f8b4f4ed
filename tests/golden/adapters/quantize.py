"""Quantizers, search environment and agent against what HAQ and the seed project computed."""

import itertools
from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from models.quant.apply import calibrate, quantize
from models.quant.clip import kl_threshold
from models.quant.kmeans import (
    Clusters,
    KMeans,
    ProjectedWeight,
    SharedWeight,
    cluster_means,
    lloyd,
    quantile_centroids,
)
from models.quant.linear import ActivationRange, Linear, LinearWeight
from tests.golden.fixtures import Fixture
from tools.quantize.ddpg import DDPG, Replay
from tools.quantize.state import embedding, input_sizes, raw_features
from tools.quantize.wall import haq_bits, pair_wall, tail_wall
from tools.tasks.distill import Distill
from tools.tasks.segment import PartSegmentation
from utils.random import BatchRandom


def kmeans_quantize(fixture: Fixture) -> None:
    for case in fixture.about["cases"]:
        name = case["case"]
        weight, start = fixture[f"in/{name}/weight"], fixture[f"in/{name}/init_centroids"]
        found = lloyd(weight, start, case["max_iter"])
        fixture.check(found.labels.int(), f"out/{name}/labels")
        fixture.check(found.centroids, f"out/{name}/centroids")
        fixture.check(found.decode(), f"out/{name}/weight_q")
        fixture.check(found.inertia, f"out/{name}/inertia")
        fixture.check(torch.tensor(found.iterations), f"out/{name}/n_iter")
        assert len(start) == min(2 ** case["bit"], weight.numel())


def kmeans_empty_relocation(fixture: Fixture) -> None:
    for key in fixture.below("out/"):
        rounds, what = key.split("/")
        found = lloyd(fixture["in/weight"], fixture["in/init_centroids"], int(rounds.removeprefix("iter")))
        fixture.check({"labels": found.labels.int(), "centroids": found.centroids}[what], f"out/{key}")


def layer_from(weight: Tensor, bias: Tensor | None = None, **options: int) -> nn.Module:
    layer: nn.Module
    if weight.ndim == 2:
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    else:
        layer = nn.Conv2d(weight.shape[1], weight.shape[0], weight.shape[2:], bias=bias is not None, **options)  # type: ignore[arg-type]
    layer.load_state_dict({"weight": weight} | ({} if bias is None else {"bias": bias}))
    return layer


def network(fixture: Fixture) -> nn.Module:
    stored = fixture.below_dict("param/")
    names = [name.removesuffix(".weight") for name in stored if name.endswith(".weight")]
    return nn.ModuleDict({name: layer_from(stored[f"{name}.weight"], stored.get(f"{name}.bias")) for name in names})


def kmeans_quantize_model(fixture: Fixture) -> None:
    order = sorted(fixture.below_dict("param/"), key=lambda name: ("conv", "fc1", "fc2").index(name.split(".")[0]))
    names = list(dict.fromkeys(name.split(".")[0] for name in order))
    whole = network(fixture)
    model = nn.ModuleDict({name: whole[name] for name in names})  # type: ignore[index]
    policy = {name: (max(bits, 0), 0) for name, bits in zip(names, fixture.about["bits"])}
    quantize(model, policy, KMeans(max_iter=fixture.about["max_iter"], start="quantile"))
    for place, name in zip(fixture.about["module_index"], names):
        fixture.check(model[name].weight, f"out/{name}.weight")  # type: ignore[arg-type]
        if f"out/{name}.bias" in fixture:
            fixture.check(model[name].bias, f"out/{name}.bias")  # type: ignore[arg-type]
        if policy[name][0]:
            shared = model[name].parametrizations.weight  # type: ignore[union-attr]
            fixture.check(shared[0].labels.int(), f"out/labels/{place}")  # type: ignore[union-attr,index]
            fixture.check(shared.original, f"out/centroids/{place}")  # type: ignore[union-attr,arg-type]
    weight = fixture[f"param/{names[0]}.weight"]
    quantiles = np.quantile(weight.numpy().ravel(), (np.arange(4) + 0.5) / 4)
    torch.testing.assert_close(quantile_centroids(weight, 4), torch.from_numpy(quantiles).float())


def kmeans_update(fixture: Fixture) -> None:
    """Both as a function and as the parametrization that trains so."""
    names = [key.removesuffix(".weight") for key in fixture.below("param/") if key.endswith(".weight")]
    by_size = {fixture[f"param/{name}.weight"].numel(): name for name in names}
    for key in fixture.below("in/labels/"):
        labels, number = fixture[f"in/labels/{key}"], int(fixture[f"in/n_centroids/{key}"])
        name = by_size[labels.numel()]
        weight = fixture[f"param/{name}.weight"]
        centroids = cluster_means(weight, labels, torch.zeros(number))
        fixture.check(centroids[labels.long()], f"out/{name}.weight")
        fixture.check(projected(labels, number)(weight), f"out/{name}.weight")
        bias = f"param/{name}.bias"
        if bias in fixture:
            fixture.check(fixture[bias], f"out/{name}.bias")  # biases are never touched


def projected(labels: Tensor, number: int) -> SharedWeight:
    return ProjectedWeight(Clusters(labels, torch.zeros(number), 0, 0.0), 8, "mean")


def kmeans_update_haq_nan(fixture: Fixture) -> None:
    """Upstream turns the layer into NaN; here every weight is the mean of its cluster."""
    weight, labels = fixture["in/weight"], fixture["in/labels"]
    number = int(fixture["in/n_centroids"])
    ours = cluster_means(weight, labels, torch.zeros(number))
    assert fixture["out/weight"].isnan().all() and ours.isfinite().all()
    for label in labels.unique():
        torch.testing.assert_close(ours[label], weight[labels == label].mean())


def linear_quantize(fixture: Fixture) -> None:
    for case in fixture.about["cases"]:
        name = case["case"]
        if name.startswith("threshold"):
            fixture.check(kl_threshold(fixture[f"in/{name}/data"], case["bitwidth"]), f"out/{name}")
            continue
        options = {key: case[key] for key in ("stride", "padding") if key in case}
        weight, bias, x = (fixture[f"in/{name}/{key}"] for key in ("weight", "bias", "x"))
        layer = nn.ModuleDict({"it": layer_from(weight, bias, **options)})
        fixture.check(layer["it"](x), f"out/{name}/y_calibrating") if f"out/{name}/y_calibrating" in fixture else None
        quantize(layer, {"it": (case["w_bit"], case["a_bit"])}, Linear(clip="kl"))
        calibrate(layer, partial(layer["it"], x))
        rounded, made = layer["it"].input_range, layer["it"].parametrizations.weight[0]  # type: ignore[union-attr,index]
        assert isinstance(rounded, ActivationRange) and isinstance(made, LinearWeight)
        assert bool(rounded.signed) != case["half_wave"]
        assert case["a_bit"] - int(rounded.signed) == case["internal_a_bit"]
        fixture.check(rounded.high.reshape(1), f"out/{name}/activation_range")
        fixture.check((made.scale * made.last).reshape(1), f"out/{name}/weight_range")
        fixture.check(layer["it"].weight, f"out/{name}/weight_q")  # type: ignore[arg-type]
        fixture.check(rounded(x), f"out/{name}/x_q")
        fixture.check(layer["it"](x), f"out/{name}/y")
    uncalibrated(fixture)


def uncalibrated(fixture: Fixture) -> None:
    """Without a calibration nothing of the weight is cut off and inputs reach to 6."""
    weight, x = fixture["in/uncal/weight"], fixture["in/uncal/x"]
    fixture.check(weight.abs().max().reshape(1), "out/uncal/weight_range")
    fixture.check(ActivationRange(4).high.reshape(1), "out/uncal/activation_range")
    for bits, input_bits in itertools.product(range(2, 9), repeat=2):  # the recorded widths are not told
        layer = nn.ModuleDict({"it": layer_from(weight)})
        quantize(layer, {"it": (bits, input_bits)}, Linear(clip="max"))
        if torch.allclose(layer["it"](x), fixture["out/uncal/y"], atol=1e-5):
            fixture.check(layer["it"](x), "out/uncal/y")
            return
    raise AssertionError("no width gives the recorded output")


def linear_quantize_grad(fixture: Fixture) -> None:
    w_bit, a_bit = (
        int(fixture.about["cls"].split(f"{key} ")[1].split(",")[0].rstrip(")")) for key in ("w_bit", "a_bit")
    )
    layer = nn.ModuleDict({"it": layer_from(fixture["in/weight"])})
    quantize(layer, {"it": (w_bit, a_bit)}, Linear(clip="max"))
    rounded = layer["it"].input_range
    assert isinstance(rounded, ActivationRange)
    rounded.high.data.copy_(fixture["in/activation_range"][0])
    x = fixture["in/x"].clone().requires_grad_()
    y = layer["it"](x)
    fixture.check(y, "out/y")
    y.backward(fixture["in/grad_y"])
    made = layer["it"].parametrizations.weight  # type: ignore[union-attr]
    fixture.check(x.grad, "out/grad_x")  # type: ignore[arg-type]
    fixture.check(rounded.high.grad.reshape(1), "out/grad_activation_range")  # type: ignore[union-attr]
    fixture.check(made.original.grad, "out/grad_weight")  # type: ignore[union-attr,arg-type]
    fixture.check((made[0].scale * made[0].last).reshape(1), "out/weight_range")  # type: ignore[union-attr,index]


class Small(nn.Module):
    """The network that the fixture describes in words."""

    def __init__(self, w: int):
        super().__init__()
        self.pre = nn.Sequential(*(nn.Identity() for _ in range(4)))
        self.a, self.b = nn.Linear(22, w), nn.Linear(w, 2 * w)
        self.c = nn.Conv2d(2 * w, 2 * w, 1, groups=2 * w)
        self.d = nn.Conv2d(2 * w, 3 * w, 3, stride=2, padding=1)
        self.e = nn.Linear(3 * w, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.b(self.a(self.pre(x))).mT.unflatten(2, (32, 32))
        return self.e(self.d(self.c(x)).mean(dim=(2, 3))[:, None])


def convolutional(w: int) -> nn.Module:
    relu = nn.ReLU()  # one module, as recorded
    return nn.Sequential(
        nn.Conv2d(3, w, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(w),
        relu,
        nn.Conv2d(w, w, 3, padding=1, groups=w, bias=False),
        relu,
        nn.Conv2d(w, 2 * w, 1, bias=False),
        relu,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(2 * w, 10),
    )


def haq_state_embedding(fixture: Fixture) -> None:
    columns = fixture["out/embedding"].shape[1]
    if "w" not in fixture.about:  # the full-size network: from its recorded raw table on
        fixed = fixture["out/raw"][:, :8].numpy()
        fixture.check(torch.from_numpy(embedding(fixed, 4.0, None, published=True)), "out/embedding")
        fixture.check(torch.from_numpy(fixed[:, 5]).long(), "out/weight_numel")
        fixture.read.add("out/module_index")  # layers have names here
        return
    small = "small" in fixture.name
    model = Small(fixture.about["w"]) if small else convolutional(fixture.about["w"])
    layers = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear | nn.Conv2d)}
    dummy = torch.zeros(1, 1024, 22) if small else torch.zeros(1, 3, 32, 32)
    raw = raw_features(layers, input_sizes(layers, lambda: model.eval()(dummy)))
    ours = embedding(raw, 4.0, None, published=True) if columns == 9 else embedding(raw, published=True)
    fixture.check(torch.from_numpy(ours), "out/embedding")
    places = [place for place, each in enumerate(model.modules()) if isinstance(each, nn.Linear | nn.Conv2d)]
    flatten = [isinstance(each, nn.Flatten) for each in model.modules()]  # a module here, a function upstream
    fixture.check(torch.tensor([place - sum(flatten[:place]) for place in places]), "out/module_index")
    if "out/weight_numel" in fixture:
        fixture.check(torch.from_numpy(raw[:, 5]).long(), "out/weight_numel")
        parameters = sum(p.numel() for p in model.parameters())
        assert parameters == int(fixture["out/ops_params"][1])


def action_wall(fixture: Fixture) -> None:
    about = fixture.about
    low, high = about["min_bit"], about["max_bit"]
    two_valued = "Sharpiless" in about["upstream"]
    allowed = [low, high] if two_valued else list(range(low, high + 1))
    sizes = fixture["in/wsize"].numpy()

    def cost(bits: Sequence[int]) -> float:
        return float((np.array(bits) * sizes).sum())

    whole = about["float_bit"] * float(sizes.sum())
    for key in fixture.below("in/actions"):
        actions = fixture[f"in/actions{key}"].tolist()
        bits = [(high if a > 0.5 else low) if two_valued else haq_bits(a, low, high) for a in actions]
        fixture.check(torch.tensor(bits), f"out/bits_before{key}")
        bits = tail_wall(bits, allowed, cost, about["preserve_ratio"] * whole)
        fixture.check(torch.tensor(bits), f"out/bits_after{key}")
        fixture.check(cost(bits) / whole, f"out/ratio{key}")


def action_wall_linear_env(fixture: Fixture) -> None:
    about, table = fixture.about, fixture["in/cost_table"].numpy()
    low, high = about["min_bit"], about["max_bit"]

    def cost(pairs: Sequence[tuple[int, int]]) -> float:
        return float(sum(table[place, w - 1, a - 1] for place, (w, a) in enumerate(pairs)))

    for key in fixture.below("in/actions"):
        bits = [haq_bits(action, low, high) for action in fixture[f"in/actions{key}"].tolist()]
        pairs = list(zip(bits[::2], bits[1::2]))
        fixture.check(torch.tensor(pairs), f"out/bits_before{key}")
        whole = cost([(about["float_bit"], about["float_bit"])] * len(pairs))
        fixture.check(whole, f"out/org_cost{key}")
        fixed = {0: (high, -1), len(pairs) - 1: (high, high)}
        pairs = pair_wall(pairs, cost, about["preserve_ratio"] * whole, low, fixed)
        fixture.check(torch.tensor(pairs), f"out/bits_after{key}")
        fixture.check(cost(pairs), f"out/cost{key}")


def search_log_policies(fixture: Fixture) -> None:
    bits, sizes = fixture["in/bits"].double(), fixture["in/wsize"].double()
    fixture.check(100 * (bits * sizes).sum(dim=1) / (32 * sizes.sum()), "out/ratio_percent")
    fixture.read.add("out/accuracy")  # of a network that is not here


def ddpg(fixture: Fixture) -> None:
    args = fixture.args
    agent = DDPG(
        args["nb_states"],
        args["hidden1"],
        args["hidden2"],
        args["lr_a"],
        args["lr_c"],
        args["tau"],
        args["discount"],
        args["init_delta"],
        args["delta_decay"],
        args["warmup"],
    )
    for name in ("actor", "critic", "actor_target", "critic_target"):
        agent.networks()[name].load_state_dict(fixture.below_dict(f"param/{name}/"))
    agent.average = float(fixture["in/moving_average"])
    batch = {key: fixture[f"in/{key}"] for key in ("state", "action", "reward", "next_state", "not_terminal")}
    fixture.check(agent.actor(batch["state"].float()), "out/actor")
    fixture.check(agent.critic(batch["state"].float(), batch["action"].float()), "out/critic")
    losses = agent.update(batch)
    fixture.check(losses["value_loss"], "out/value_loss")
    fixture.check(losses["policy_loss"], "out/policy_loss")
    fixture.check(agent.average, "out/moving_average")
    for name in ("actor", "critic", "actor_target", "critic_target"):
        for key, value in agent.networks()[name].state_dict().items():
            fixture.check(value, f"out/after/{name}/{key}")


def ddpg_noise(fixture: Fixture) -> None:
    """The rule's constants are the published ones of the seed: 0.5, 0.99, five episodes of warming up."""
    agent = DDPG(9, 4, 4, warmup=5)
    for episode, delta in zip(fixture["in/episode"].tolist(), fixture["out/delta"].tolist()):
        assert abs(agent.delta(episode) - delta) <= 1e-9 * delta


def replay_memory(fixture: Fixture) -> None:
    states, actions = fixture["in/observations"], fixture["in/actions"]
    memory = Replay(fixture.about["limit"], states.shape[1])
    for state, action, reward, terminal in zip(states, actions, fixture["in/rewards"], fixture["in/terminals"]):
        memory.append(state, float(action), float(reward), bool(terminal))
    batch = memory.take(fixture["in/batch_idxs"])
    for ours, key in (("state", "state0"), ("next_state", "state1")):
        fixture.check(batch[ours], f"out/{key}")
    for key in ("action", "reward", "not_terminal"):
        fixture.check(batch[key], f"out/{key}")


def distill_loss(fixture: Fixture) -> None:
    student, teacher = fixture["in/student"], fixture["in/teacher"]
    task = Distill(PartSegmentation(), weight=fixture.about["weight"])
    task.set_teacher(Answer(teacher))
    batch = {"points": torch.zeros(len(student), 1, 3), "label": torch.zeros(len(student)), "seg": fixture["in/target"]}
    losses = task.losses(Answer(student), batch, BatchRandom(0))
    fixture.check(losses["loss"], "out/loss")
    fixture.check(losses["distance"], "out/mse")
    fixture.check(task.task.losses(Answer(student), batch, BatchRandom(0))["loss"], "out/ce")


class Answer(nn.Module):
    """A network that always says the same."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.logits = logits

    def forward(self, points: Tensor, category: Tensor) -> Tensor:
        return self.logits


ADAPTERS = {
    "distill_loss": distill_loss,
    "kmeans_quantize": kmeans_quantize,
    "kmeans_empty_relocation": kmeans_empty_relocation,
    "kmeans_quantize_model": kmeans_quantize_model,
    "kmeans_update": kmeans_update,
    "kmeans_update_haq_nan": kmeans_update_haq_nan,
    "linear_quantize": linear_quantize,
    "linear_quantize_grad": linear_quantize_grad,
    "haq_state_embedding": haq_state_embedding,
    "action_wall": action_wall,
    "action_wall_linear_env": action_wall_linear_env,
    "search_log_policies": search_log_policies,
    "ddpg": ddpg,
    "ddpg_noise": ddpg_noise,
    "replay_memory": replay_memory,
}
