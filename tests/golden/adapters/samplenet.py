"""SampleNet's samplers, task networks and rotations against what the official programs computed."""

import zlib
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from datasets.transforms import UnitCube
from extensions import ops
from models.layers.tensorflow import from_tensorflow
from models.pcrnet import PCRNet
from models.pointnet import PointNetAutoEncoder, PointNetClassifier
from models.sampled import SampledNetwork
from models.samplers.losses import nested_simplification_loss, simplification_loss
from models.samplers.matching import complete_by_farthest, match
from models.samplers.progressive import ProgressiveSampleNet
from models.samplers.projection import SoftProjection
from models.samplers.samplenet import SampleNet
from tests.golden.fixtures import Fixture
from tools.tasks.classify import Classify
from tools.tasks.reconstruct import Reconstruct
from tools.tasks.register import Register, alignment, consistency, fixed_angles, relative, rotation_loss
from utils import quaternion
from utils.checkpoint import load_weights
from utils.random import BatchRandom


def within(fixture: Fixture, atol: float, rtol: float = 0.0) -> None:
    """The tolerances of this folder are told in words, for each part of a fixture."""
    fixture.about |= {"atol": atol, "rtol": rtol}


def load(model: nn.Module, weights: dict[str, Tensor], name: str) -> None:
    """All weights and nothing else; counters of batches, which TensorFlow has not, aside."""
    report = load_weights(model, weights, name, getattr(model, "key_map", None))
    missing = [key for key in report.missing if not key.endswith("num_batches_tracked")]
    assert not missing and not report.unexpected and not report.unused, report.summary()


def population(after: Tensor, before: Tensor, momentum: float, count: int) -> Tensor:
    """The running variance as TensorFlow keeps it: of the population; torch divides by count - 1."""
    kept = (1 - momentum) * before
    return kept + (after - kept) * (count - 1) / count


# ---------------------------------------------------------------- samplers


def fps_pointnet2(fixture: Fixture) -> None:
    points, number = fixture["in/points"], fixture["out/index_plain"].shape[1]
    fixture.check(ops.farthest_point_sample(points, number), "out/index_plain")
    fixture.check(ops.farthest_point_sample(points, number, skip_near_origin=True), "out/index_with_origin_skip")


def samplenet(fixture: Fixture) -> None:
    config = fixture.about["config"]
    points = fixture["in/points"] if config["input_shape"] == "bnc" else fixture["in/points"].mT
    sizes = {
        "num_out": config["num_out_points"],
        "bottleneck": config["bottleneck_size"],
        "projection_group_size": config["group_size"],
        "min_sigma": config["min_sigma"],
        **{key: config[key] for key in ("gamma", "delta", "alpha", "lmbda")},
    }

    def build(**options) -> SampleNet:
        model = SampleNet(**sizes, **options)
        load(model, fixture.below_dict("param/"), fixture.name)
        return model

    def shaped(out: Tensor) -> Tensor:
        return out if config["output_shape"] == "bnc" else out.mT

    within(fixture, 1e-4)
    sampled = build().eval()(points)
    fixture.check(shaped(sampled.simplified), "out/eval_simplified")
    within(fixture, 1e-6)
    fixture.check(shaped(sampled.points), "out/eval_matched")
    fixture.check(shaped(build(complete=False).eval()(points).points), "out/eval_matched_no_completion")
    fixture.check(match(sampled.simplified, points, sizes["num_out"], complete=False), "out/eval_nn_index")
    fixture.check(sampled.loss, "out/eval_simplification_loss")
    fixture.check(sampled.loss, "out/eval_projection_loss")

    within(fixture, 2e-4, 1e-3)
    model = build().train()
    sampled = model(points)
    fixture.check(shaped(sampled.simplified), "out/train_simplified")
    fixture.check(shaped(sampled.points), "out/train_projected")
    fixture.check(sampled.losses["simplification"], "out/train_simplification_loss")
    fixture.check(sampled.losses["projection"], "out/train_projection_loss")
    task = (shaped(sampled.points) * fixture["in/task_weight"]).mean()
    fixture.check(task, "out/train_task_loss")
    fixture.check(task + sampled.loss, "out/train_total_loss")
    (task + sampled.loss).backward()
    fixture.check_gradients(model, "out/grad/", model.key_map)
    for key in fixture.below("out/after/"):
        fixture.check(model.state_dict()[str(model.key_map(key))], f"out/after/{key}")


def losses(fixture: Fixture) -> None:
    config = fixture.about["config"]
    within(fixture, 1e-6, 1e-5)
    for case, (gamma, delta) in enumerate(config["cases_gamma_delta"]):
        free = fixture["in/simplified"].clone().requires_grad_()
        loss = simplification_loss(free, fixture["in/ref"], gamma, delta)
        fixture.check(loss, f"out/loss_{case}")
        fixture.check(torch.autograd.grad(loss, free)[0], f"out/grad_{case}")
    for case in range(len(fixture.below("in/temperature_"))):
        projection = SoftProjection(
            init_temperature=fixture[f"in/temperature_{case}"].item(), min_sigma=config["min_sigma"]
        )
        fixture.check(projection.sigma, f"out/projection_{case}")
        fixture.check(torch.autograd.grad(projection.sigma, projection.temperature)[0], f"out/projection_grad_{case}")


def matching(fixture: Fixture) -> None:
    points, nearest = fixture["in/points"], fixture["in/nn_index"].long()
    indices = complete_by_farthest(nearest, points, nearest.shape[1])
    within(fixture, 0.0)
    fixture.check(indices, "out/completed_index")
    fixture.check(ops.gather_points(points, indices), "out/completed")
    fixture.check(ops.gather_points(points, nearest), "out/not_completed")


def soft_projection(fixture: Fixture) -> None:
    config = fixture.about["config"]
    for prefix, temperature in (("", config["initial_temperature"]), ("low_", config["low_temperature"])):
        points, query = (fixture[f"in/{key}"].mT.clone().requires_grad_() for key in ("point_cloud", "query_cloud"))
        features = fixture["in/point_features"].mT
        projection = SoftProjection(config["group_size"], temperature, min_sigma=config["min_sigma"])
        out = projection(query, points)
        within(fixture, 1e-5, 1e-4)
        fixture.check(out.mT, f"out/{prefix}project")
        fixture.check(projection.sigma, f"out/{prefix}sigma")
        both, carried = projection.propagate(query, points, features)
        fixture.check(carried.mT, f"out/{prefix}propagate")
        fixture.check(both.mT, f"out/{prefix}pp_points")
        fixture.check(carried.mT, f"out/{prefix}pp_features")
        fixture.check(projection.weights(query, points)[1], "aux/knn_index")
        (out * fixture["in/grad_out"].mT).sum().backward()
        within(fixture, 1e-4, 1e-4)
        _check_gradients(fixture, prefix, query.grad, points.grad, projection.temperature.grad)


def _check_gradients(fixture: Fixture, prefix: str, query, points, temperature) -> None:
    for gradient, key in ((query, "query"), (points, "point_cloud"), (temperature, "temperature")):
        name = f"out/{prefix}grad_{key}"
        if name in fixture:
            transposed = gradient.mT if gradient.ndim == 3 and gradient.shape != fixture[name].shape else gradient
            fixture.check(transposed, name)


def soft_projection_tf(fixture: Fixture) -> None:
    config = fixture.about["config"]
    for prefix in ("", "neg_", "low_"):
        points, query = fixture["in/point_cloud"], fixture["in/query_cloud"].clone().requires_grad_()
        projection = SoftProjection(config["group_size"], config[f"{prefix}temperature"], min_sigma=0.0)
        out = projection(query, points)
        within(fixture, 1e-5, 1e-4)
        weights, indices = projection.weights(query, points)
        fixture.check(out, f"out/{prefix}soft")
        fixture.check(weights[..., None], f"out/{prefix}weights")
        fixture.check(projection.distances(query, points, indices)[..., None], f"out/{prefix}dist")
        fixture.check(projection.sigma, f"out/{prefix}sigma")
        hard = F.one_hot(weights.argmax(-1), weights.shape[-1])[..., None].float()
        within(fixture, 0.0)
        fixture.check(hard, f"out/{prefix}hard_weights")
        fixture.check(ops.gather_points(points, match(query, points, query.shape[1], False)), f"out/{prefix}hard")
        (out * fixture["in/grad_out"]).sum().backward()
        within(fixture, 1e-4, 2e-3 if prefix == "low_" else 1e-3)
        _check_gradients(fixture, prefix, query.grad, None, projection.temperature.grad)


def cls_sampler_tf(fixture: Fixture) -> None:
    config, points = fixture.about["config"], fixture["in/points"]
    momentum = 1 - config["bn_decay"]
    model = SampleNet(
        num_out=config["num_output_points"], bottleneck=config["bottleneck_size"], norm_output=True, layout="points",
        projection_group_size=config["group_size"], bn_eps=1e-3, bn_momentum=momentum, init="glorot", min_sigma=0.0,
        gamma=config["gamma"], delta=config["delta"], alpha=30, lmbda=1,
    )  # fmt: skip
    load(model, from_tensorflow(fixture.below_dict("param/"), "sampler"), fixture.name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    within(fixture, 1e-4)
    sampled = model.eval()(points)
    fixture.check(sampled.simplified, "out/eval_simplified")
    fixture.check(sampled.points, "out/eval_matched")
    fixture.check(model.project(sampled.simplified, points), "out/eval_soft")
    nearest = match(sampled.simplified, points, config["num_output_points"], complete=False)
    fixture.check(nearest, "out/eval_nn_index")
    fixture.check(ops.gather_points(points, nearest), "out/eval_hard")
    fixture.check(model.simplification(sampled.simplified, points), "out/eval_simplification_loss")
    nested = nested_simplification_loss(
        sampled.simplified, points, config["progressive_sizes"], config["progressive_gamma"],
        config["progressive_delta"], summed=True,
    )  # fmt: skip
    fixture.check(nested, "out/eval_progressive_simplification_sum")
    within(fixture, 5e-4, 1e-3)
    sampled = model.train()(points)
    fixture.check(sampled.simplified, "out/train_simplified")
    fixture.check(sampled.points, "out/train_soft")
    fixture.check(sampled.losses["simplification"], "out/train_simplification_loss")
    _check_statistics(fixture, model, before, momentum, points, "sampler")


def _check_statistics(
    fixture: Fixture, model: nn.Module, before: dict[str, Tensor], momentum: float, points: Tensor, scope: str
) -> None:
    batch, number, _ = points.shape
    for name in fixture.below(f"out/after/{scope}/"):
        (key,) = from_tensorflow({name: torch.zeros(1)})
        key = str(model.key_map(key))  # type: ignore[operator]
        after = model.state_dict()[key]
        if key.endswith("running_var"):
            after = population(after, before[key], momentum, batch * number if key.startswith("mlp") else batch)
        fixture.check(after, f"out/after/{scope}/{name}")


# ---------------------------------------------------------------- task networks


def recipe(name: str, shape: list[int], seed: int) -> np.ndarray:
    """Uniform numbers for a tensor that the fixture does not store."""
    stream = (seed * 1000003 + zlib.crc32(name.encode())) % 2**32
    return np.random.RandomState(stream).uniform(-1, 1, size=shape)


def checked(fixture: Fixture, name: str, value: np.ndarray) -> Tensor:
    """The checksum shows that the recipe was followed."""
    value = value.astype(np.float32)
    expected = fixture.about["param_checksum_sum_first_last"][name]
    found = [value.astype(np.float64).sum(), value.flat[0], value.flat[-1]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    return torch.from_numpy(value)


def pointnet_weights(fixture: Fixture) -> dict[str, Tensor]:
    weights = {}
    for name, shape in fixture.about["param_shapes"].items():
        value = recipe(name, shape, fixture.about["seed"])
        if name.endswith("weights"):
            value = value * np.sqrt(6 / np.prod(shape[:-1])) * (0.02 if "/transform_" in name else 1)
        elif name.endswith("moving_variance"):
            value = 1 + 0.5 * value
        elif name.endswith("gamma"):
            value = 1 + 0.2 * value
        else:
            value = 0.1 * value
        weights[name] = checked(fixture, name, value)
    return from_tensorflow(weights)


def pointnet_cls(fixture: Fixture) -> None:
    """With T-Nets where their weights are there."""
    shapes, weight = fixture.about["param_shapes"], fixture.about["config"]["reg_weight"]
    model = PointNetClassifier(
        shapes["fc3/biases"][0],
        transforms=any(name.startswith("transform_net") for name in shapes),
        mlp=[shapes[f"conv{i}/biases"][0] for i in range(1, 6)],
        head=[shapes[f"fc{i}/biases"][0] for i in (1, 2)],
        **({} if weight is None else {"transform_weight": weight}),
    ).eval()
    load(model, pointnet_weights(fixture), fixture.name)
    points, label = fixture["in/points"], fixture["in/label"].long()
    within(fixture, 1e-3, 1e-3)
    features = model.forward_features(points)
    fixture.check(model.encode(points), "out/global_feature")
    critical = fixture["out/critical_index"].long()  # of equal maxima, mostly zeros, another one may be named
    reached = features.gather(1, critical[:, None])[:, 0]
    torch.testing.assert_close(reached, features.amax(dim=1), atol=1e-3, rtol=1e-3)
    out = model.with_losses(points)
    fixture.check(out.answers[0], "out/logits")
    if "out/retrieval_vector" in fixture:
        fixture.check(model.retrieval_vector(points), "out/retrieval_vector")
        fixture.check(model.align(points)[2], "out/feature_transform")  # type: ignore[arg-type]
    loss = Classify().losses(lambda points: out, {"points": points, "label": label}, BatchRandom(0))["loss"]  # type: ignore[arg-type]
    fixture.check(loss, "out/loss")


def _autoencoder(fixture: Fixture) -> PointNetAutoEncoder:
    config = fixture.about["config"]
    model = PointNetAutoEncoder(num_points=config["N"], bottleneck=config["bottleneck"])
    load(model, from_tensorflow(fixture.below_dict("param/"), "autoencoder"), fixture.name)
    return model.eval()


def autoencoder_tf(fixture: Fixture) -> None:
    config, points, task = fixture.about["config"], fixture["in/points"], Reconstruct(fixture.about["config"]["loss"])
    index = ops.farthest_point_sample(points, config["n_sample_points"])
    if config["use_fps"]:
        fixture.check(index, "out/fps_index")
    sample = ops.gather_points(points, index) if config["use_fps"] else points
    model = _autoencoder(fixture)
    within(fixture, 1e-4)
    fixture.check(sample, "out/fps_points")
    ratios = []
    for cloud, key in ((sample, "from_fps"), (points, "full")):
        fixture.check(model.encode(cloud), f"out/eval_latent_{key}")
        fixture.check(model(cloud), f"out/eval_reconstruction_{key}")
        ratios.append(task.errors(model(cloud), points))
        fixture.check(ratios[-1], f"out/eval_loss_per_cloud_{key}")
    fixture.check(ratios[0].mean(), "out/eval_loss_from_fps")
    fixture.check(ratios[0] / ratios[1], "out/nre_per_cloud")
    within(fixture, 5e-4, 1e-3)
    model.train()
    fixture.check(model.encode(sample), "out/train_latent_from_fps")
    fixture.check(model(sample), "out/train_reconstruction_from_fps")
    fixture.check(task.errors(model(sample), points).mean(), "out/train_loss_from_fps")


RECONSTRUCTION: dict[str, Any] = {  # the sampler of the reconstruction
    "mlp": (64, 128, 128, 256), "head": (256, 256), "norm_head": False, "layout": "points", "min_sigma": 1e-4,
    "floor": "temperature", "gamma": 0.0, "delta": 1 / 64,
}  # fmt: skip


def recon_sampler_tf(fixture: Fixture) -> None:
    config, points, task = fixture.about["config"], fixture["in/points"], Reconstruct()
    sampler = SampleNet(
        num_out=config["n_samp"], projection_group_size=config["projection_group_size"],
        init_temperature=config["temperature"], alpha=config["alpha"], lmbda=config["lmbda"], **RECONSTRUCTION,
    )  # fmt: skip
    load(sampler, from_tensorflow(fixture.below_dict("param/"), "sampler"), fixture.name)
    model = SampledNetwork(sampler, _autoencoder(fixture), task_bn="batch").eval()
    before = {key: value.clone() for key, value in sampler.state_dict().items()}
    within(fixture, 1e-4)
    sampled = model.sample(points)[0]
    fixture.check(sampled.simplified, "out/eval_simplified")
    fixture.check(sampled.points, "out/sampled_completed")
    fixture.check(sampled.indices, "out/sampled_completed_index")  # type: ignore[arg-type]
    nearest = match(sampled.simplified, points, config["n_samp"], complete=False)
    fixture.check(nearest, "out/eval_nn_index")
    fixture.check(ops.gather_points(points, nearest), "out/eval_hard")
    fixture.check(model(points), "out/reconstruction_from_sampled")
    fixture.check(task.errors(model(points), points), "out/loss_ae_per_cloud_from_sampled")
    soft = sampler.project(sampled.simplified, points)
    fixture.check(soft, "out/eval_soft")
    rebuilt = model.network(soft)
    fixture.check(rebuilt, "out/eval_reconstruction_from_soft")
    terms = sampler.losses(sampled.simplified, points)
    error = task.errors(rebuilt, points).mean()
    fixture.check(error, "out/eval_loss_ae")
    fixture.check(terms["simplification"], "out/eval_loss_simplification")
    fixture.check(terms["projection"], "out/eval_loss_projection")
    fixture.check(error + terms["loss"], "out/eval_loss_total")

    within(fixture, 5e-4, 1e-3)
    kept = {key: value.clone() for key, value in model.network.state_dict().items() if "running" in key}
    answer = model.train()(points)
    fixture.check(answer.answers[0], "out/train_reconstruction")
    figures = task.losses(lambda _: answer, {"points": points}, BatchRandom(0))  # type: ignore[arg-type]
    fixture.check(figures["task"], "out/train_loss_ae")
    fixture.check(figures["loss"], "out/train_loss_total")
    _check_statistics(fixture, sampler, before, 0.1, points, "sampler")
    assert all(torch.equal(model.network.state_dict()[key], value) for key, value in kept.items())
    sampled = sampler(points)  # batch statistics: the same points again
    fixture.check(sampled.simplified, "out/train_simplified")
    fixture.check(sampled.points, "out/train_soft")


def recon_progressive_tf(fixture: Fixture) -> None:
    config, points, task = fixture.about["config"], fixture["in/points"], Reconstruct()
    sampler = ProgressiveSampleNet(
        num_out=max(config["pc_size"]), sizes=config["pc_size"], reduction="mean", norm_output=False, bn_eps=1e-5,
        projection_group_size=config["projection_group_size"], init_temperature=config["temperature"],
        alpha=config["alpha"], lmbda=config["lmbda"], **RECONSTRUCTION,
    ).eval()  # fmt: skip
    load(sampler, from_tensorflow(fixture.below_dict("param/"), "sampler"), fixture.name)
    model = SampledNetwork(sampler, _autoencoder(fixture)).eval()
    within(fixture, 1e-4)
    simplified = sampler.simplify(points)
    fixture.check(simplified, "out/simplified")
    soft = sampler.project(simplified, points)
    fixture.check(soft, "out/soft")
    rebuilt = model.network(soft[:, : sampler.sizes[0]])
    fixture.check(rebuilt, "out/reconstruction_smallest")
    fixture.check(task.errors(rebuilt, points).mean(), "out/loss_ae_smallest")
    smallest = simplification_loss(simplified[:, : sampler.sizes[0]], points, sampler.gamma, sampler.delta)
    fixture.check(smallest, "out/loss_simplification_smallest")
    fixture.check(sampler.project.sigma, "out/loss_projection")
    fixture.check(match(simplified, points, simplified.shape[1], complete=False), "out/nn_index")
    order = sampler.order(points)
    fixture.check(order, "out/ordered_index")
    fixture.check(ops.gather_points(points, order), "out/ordered_points")
    # the recorded total is of a network in eval mode that nevertheless projects softly
    model.training = sampler.training = True
    figures = task.losses(model, {"points": points}, BatchRandom(0))
    fixture.check(figures["loss"], "out/loss_total")


def approx_emd(fixture: Fixture) -> None:
    x, y = fixture["in/xyz1"], fixture["in/xyz2"].clone().requires_grad_()
    within(fixture, 1e-4)
    plan = ops.approx_match(x, y.detach())
    fixture.check(plan.mT, "out/match")
    within(fixture, 1e-4, 1e-3)
    cost = Reconstruct("emd").errors(x, y)
    fixture.check(cost, "out/cost")
    fixture.check(torch.autograd.grad(cost.sum(), y)[0], "out/grad_xyz2")


# ---------------------------------------------------------------- registration


def rotations(fixture: Fixture) -> None:
    q, r, v, euler = (fixture[f"in/{key}"] for key in ("q", "r", "v", "euler"))
    fixture.check(quaternion.multiply(q, r), "out/qmul")
    fixture.check(quaternion.rotate(q, v), "out/qrot")
    fixture.check(quaternion.inverse(q), "out/qinv")
    fixture.check(quaternion.from_rotation_vector(euler), "out/expmap")
    for order in ("xyz", "yzx", "zxy", "xzy", "yxz", "zyx"):
        fixture.check(quaternion.from_euler(euler, order, published_sign=True), f"out/euler_to_quaternion_{order}")
        fixture.check(quaternion.to_euler(q, order), f"out/qeuler_{order}")
    fixture.check(quaternion.continuous(fixture["in/qfix"]), "out/qfix")
    points, a, b = fixture["in/points"], fixture["in/vec_a"], fixture["in/vec_b"]
    turn = a[:, :4]
    fixture.check(quaternion.rotate_cloud(turn, points), "out/rotated")
    fixture.check(quaternion.rotate_cloud(quaternion.inverse(turn), fixture["out/rotated"]), "out/rotated_back")
    fixture.check(quaternion.rotate(turn[0], points[0]), "out/rotated_2d")
    _check_errors(fixture, a, b, "out/rot_err_rad", 1.0)
    for seed in (0, 1):
        number = len(fixture[f"out/dataset_vec_seed{seed}"])
        poses = quaternion.from_euler(fixed_angles(number, np.pi / 4, seed), published_sign=True)
        fixture.check(F.pad(poses, (0, 3)), f"out/dataset_vec_seed{seed}")
    cube = UnitCube()({"points": fixture["in/raw_cloud"][None]}, BatchRandom(0))["points"]
    fixture.check(cube[0], "out/on_unit_cube")


def _check_errors(fixture: Fixture, a: Tensor, b: Tensor, key: str, unit: float) -> None:
    """The published error is twice the angle between the rotations."""
    fixture.check(2 * quaternion.angle_between(a[:, :4], b[:, :4]).mean() * unit, key)
    fixture.check(relative(a[:, :4], b[:, :4]).square().sum(dim=(1, 2)).mean(), "out/norm_err")
    fixture.check((a[:, 4:] - b[:, 4:]).abs().mean(), "out/trans_err")


def pcrnet(fixture: Fixture) -> None:
    model = PCRNet(bottleneck=fixture.about["config"]["bottleneck_size"]).eval()
    weights = {}
    for name in fixture.about["param_checksum_sum_first_last"]:
        shape = list(model.state_dict()[str(model.key_map(name))].shape)
        shape = [*shape, 1] if "conv" in name and len(shape) == 2 else shape
        value = recipe(name, shape, fixture.about["seed"])
        value = value * np.sqrt(6 / np.prod(shape[1:])) if len(shape) > 1 else 0.1 * value
        weights[name] = checked(fixture, name, value)
    load(model, weights, fixture.name)
    template, source, truth = (fixture[f"in/{key}"] for key in ("p0", "p1", "gt_vec"))
    within(fixture, 1e-4, 1e-3)
    fixture.check(model.encode(template), "out/feature_p0")
    pose = model(template, source)
    estimate = torch.cat([pose["quaternion"], pose["translation"]], dim=1)
    fixture.check(estimate, "out/twist")
    fixture.check(pose["raw"], "out/pre_normalised_quat")
    fixture.check(alignment(pose), "out/chamfer_loss")
    fixture.check(Register().judge(pose, truth[:, :4])["loss"], "out/loss_supervised")
    fixture.check(Register(supervised=False).judge(pose, truth[:, :4])["loss"], "out/loss_unsupervised")
    fixture.check(rotation_loss(pose["quaternion"], truth[:, :4]), "out/norm_err")
    _check_errors(fixture, estimate, truth, "out/rot_err_deg", 180 / np.pi)
    picked = [
        ops.gather_points(cloud, fixture[f"in/sample_index_{i}"].long().expand(len(cloud), -1))
        for i, cloud in enumerate((template, source))
    ]
    fixture.check(
        consistency({**pose, "template": picked[0], "source": picked[1]}, truth[:, :4]).mean(), "out/consistency"
    )
    fixture.read.add("out/qnorm_loss")  # logged upstream, part of no loss: not computed here


ADAPTERS = {
    "fps_pointnet2": fps_pointnet2,
    "samplenet": samplenet,
    "samplenet_losses": losses,
    "samplenet_matching": matching,
    "samplenet_soft_projection": soft_projection,
    "samplenet_soft_projection_tf": soft_projection_tf,
    "samplenet_cls_sampler_tf": cls_sampler_tf,
    "samplenet_pointnet_cls_tf": pointnet_cls,
    "samplenet_pointnet_cls_basic_tf": pointnet_cls,
    "samplenet_autoencoder_tf": autoencoder_tf,
    "samplenet_recon_sampler_tf": recon_sampler_tf,
    "samplenet_recon_progressive_tf": recon_progressive_tf,
    "samplenet_approx_emd": approx_emd,
    "samplenet_quaternion": rotations,
    "samplenet_pcrnet": pcrnet,
}
