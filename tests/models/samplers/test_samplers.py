"""Every sampler keeps the same promises; the learned ones learn, and give points of the cloud when tested."""

import pytest
import torch
from torch import Tensor, nn

from extensions import ops
from models.point_mae import PointMAEClassifier
from models.pointnet import PointNetAutoEncoder, PointNetClassifier
from models.sampled import SampledNetwork
from models.samplers import SAMPLERS
from models.samplers.losses import simplification_loss
from models.samplers.matching import complete_by_farthest, match
from models.samplers.plain import FPSSampler, RandomSampler
from models.samplers.projection import SoftProjection
from models.samplers.samplenet import SampleNet
from utils.checkpoint import load_weights
from utils.errors import UserError
from utils.random import BatchRandom

TINY: dict = {"bottleneck": 16, "mlp": [8, 8], "head": [16]}
SMALL: dict[str, dict] = {"samplenet": TINY, "samplenet_progressive": {**TINY, "sizes": [4, 8]}}
OURS = ("random", "fps", "samplenet", "samplenet_progressive")


def build(name: str, num_out: int = 8, **options):
    return SAMPLERS.build({"name": name, "num_out": num_out, **SMALL.get(name, {}), **options})


def cloud(batch: int = 3, num_points: int = 40, seed: int = 0) -> Tensor:
    return torch.randn(batch, num_points, 3, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", OURS)
def test_eval_gives_distinct_points_of_the_cloud(name: str) -> None:
    points, sampler = cloud(), build(name).eval()
    sampled = sampler(points)
    assert sampled.points.shape == sampled.simplified.shape == (3, 8, 3)
    assert sampled.indices is not None and sampled.indices.dtype == torch.int64
    assert torch.equal(ops.gather_points(points, sampled.indices), sampled.points)
    assert all(len(set(row)) == 8 for row in sampled.indices.tolist())
    assert sampled.losses == {} and sampled.loss == 0
    assert torch.equal(sampler(points).points, sampled.points)


@pytest.mark.parametrize("name", OURS)
@pytest.mark.parametrize("batch, num_points, num_out", [(1, 8, 8), (2, 33, 5)])
def test_odd_sizes(name: str, batch: int, num_points: int, num_out: int) -> None:
    options: dict = {"sizes": [2, 5]} if "progressive" in name else {}
    options |= {"projection_group_size": 3} if "samplenet" in name else {}
    sampled = build(name, num_out, **options).eval()(cloud(batch, num_points))
    assert sampled.points.shape == (batch, num_out, 3)


@pytest.mark.parametrize("name", OURS)
def test_too_few_points_and_wrong_sizes(name: str) -> None:
    with pytest.raises(UserError, match="more than the 7 points"):
        build(name)(cloud(2, 7))
    with pytest.raises(UserError, match=r"must be \(B, N, 3\)"):
        build(name)(torch.zeros(4, 3))
    with pytest.raises(UserError, match="num_out"):
        build(name, 0)


@pytest.mark.parametrize("name", ["samplenet", "samplenet_progressive"])
def test_training_reaches_every_weight_and_the_temperature(name: str) -> None:
    sampler = build(name).train()
    sampled = sampler(cloud(8))
    assert sampled.indices is None and set(sampled.losses) == {"loss", "simplification", "projection"}
    (sampled.points.square().mean() + sampled.loss).backward()
    for key, parameter in sampler.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), key
    assert sampler.project.temperature.grad != 0


def test_simplification_alone_makes_free_points_cover_the_cloud() -> None:
    torch.manual_seed(0)
    points, sampler = cloud(8, 64), build("samplenet", alpha=1.0, lmbda=0.0).train()
    optimizer = torch.optim.Adam(sampler.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        loss = sampler(points).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_without_projection_it_is_s_net() -> None:
    sampler = build("samplenet", project=False).train()
    sampled = sampler(cloud(4))
    assert sampled.points is sampled.simplified and set(sampled.losses) == {"loss", "simplification"}
    assert not sampler.project.temperature.requires_grad
    assert sampler.eval()(cloud(4)).indices is not None


def test_a_fixed_temperature_stays() -> None:
    sampler = build("samplenet", learn_temperature=False, init_temperature=0.5)
    assert "project.temperature" not in [key for key, p in sampler.named_parameters() if p.requires_grad]
    assert sampler.project.sigma == 0.25


@pytest.mark.parametrize("floor, temperature, sigma", [("sigma", -0.5, 0.25), ("temperature", -0.5, 0.01)])
def test_floors_of_the_temperature(floor, temperature: float, sigma: float) -> None:
    projection = SoftProjection(4, temperature, min_sigma=0.01, floor=floor)
    torch.testing.assert_close(projection.sigma, torch.tensor(sigma))
    projection.sigma.backward()
    assert (projection.temperature.grad == 0) == (floor == "temperature")


def test_projection_sharpens_to_the_nearest_point() -> None:
    points, query = cloud(2, 30), cloud(2, 6, seed=1)
    nearest = ops.gather_points(points, match(query, points, 6, complete=False))
    soft, sharp = (SoftProjection(5, t, min_sigma=0)(query, points) for t in (1.0, 1e-2))
    assert (soft - nearest).abs().max() > 1e-2
    torch.testing.assert_close(sharp, nearest, atol=1e-4, rtol=0)


def test_projection_gradient() -> None:
    points, query = cloud(1, 12).double(), cloud(1, 3, seed=1).double().requires_grad_()
    projection = SoftProjection(4).double()
    analytic = torch.autograd.grad(projection(query, points).square().sum(), [query, projection.temperature])
    step = 1e-3
    for place in range(3):
        moved = [query.detach().clone() for _ in range(2)]
        moved[0][0, 0, place] += step
        moved[1][0, 0, place] -= step
        up, down = (projection(each, points).square().sum().detach() for each in moved)
        assert abs(float((up - down) / (2 * step) - analytic[0][0, 0, place])) < 1e-2


def test_projection_of_identical_points_is_finite() -> None:
    points = torch.ones(2, 10, 3)
    sampler = build("samplenet").train()
    sampled = sampler(points)
    sampled.points.sum().backward()
    assert sampled.points.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in sampler.parameters())
    assert sampler.eval()(points).points.isfinite().all()


def test_too_many_neighbours() -> None:
    with pytest.raises(UserError, match="projection_group_size: 9"):
        build("samplenet", projection_group_size=9).train()(cloud(2, 8))


def slow_completion(nearest: list[int], points: Tensor, num_out: int) -> list[int]:
    chosen = list(dict.fromkeys(nearest))[:num_out]
    wide = points.double()
    while len(chosen) < num_out:
        away = (wide[:, None] - wide[chosen]).square().sum(-1).amin(1)
        chosen.append(int(away.argmax()))
    return chosen


@pytest.mark.parametrize("seed", range(3))
def test_completion_against_a_loop(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    points = cloud(4, 25, seed)
    nearest = torch.randint(0, 12, (4, 10), generator=generator)
    nearest[0] = 3  # one point alone
    for num_out in (4, 10, 25):
        found = complete_by_farthest(nearest, points, num_out)
        assert found.tolist() == [slow_completion(*pair, num_out) for pair in zip(nearest.tolist(), points)]


def test_simplification_loss_against_a_loop() -> None:
    free, points = cloud(2, 5, seed=2), cloud(2, 20)
    away = (free[:, :, None] - points[:, None]).square().sum(-1)
    forward, backward = away.amin(2), away.amin(1)
    expected = forward.mean() + forward.amax(1).mean() + (0.5 + 0.1 * 5) * backward.mean()
    torch.testing.assert_close(simplification_loss(free, points, 0.5, 0.1), expected)


def test_progressive_prefixes_are_the_samples() -> None:
    points, sampler = cloud(3, 50), build("samplenet_progressive", 16, sizes=[4, 16]).eval()
    order = sampler.order(points)
    assert [sorted(row) for row in order.tolist()] == [list(range(50))] * 3
    for size in (1, 4, 20, 50):
        sampler.eval_size = size
        assert torch.equal(sampler(points).indices, order[:, :size])


def test_progressive_loss_is_the_sum_or_mean_over_prefixes() -> None:
    points = cloud(4)
    free = cloud(4, 8, seed=5)
    each = [simplification_loss(free[:, :size], points, 0.5, 1 / 30) for size in (4, 8)]
    for reduction, expected in (("sum", each[0] + each[1]), ("mean", (each[0] + each[1]) / 2)):
        sampler = build("samplenet_progressive", reduction=reduction)
        torch.testing.assert_close(sampler.simplification(free, points), expected)
    with pytest.raises(UserError, match="ascend"):
        build("samplenet_progressive", sizes=[8, 4])
    with pytest.raises(UserError, match="num_out 8"):
        build("samplenet_progressive", sizes=[4, 16])


def test_random_is_random_in_training_and_fixed_in_evaluation() -> None:
    points, sampler = cloud(2), RandomSampler(8)
    assert not torch.equal(sampler.train()(points).indices, sampler(points).indices)
    assert torch.equal(sampler.eval()(points).indices, sampler(points).indices)
    rows = sampler(points).indices
    assert rows[0].tolist() != rows[1].tolist()
    first, again = (sampler.train()(points, BatchRandom(3)).indices for _ in range(2))
    assert torch.equal(first, again)


def test_fps_starts() -> None:
    points = cloud(3)
    assert torch.equal(FPSSampler(8)(points).indices, ops.farthest_point_sample(points, 8))
    assert torch.equal(FPSSampler(8, start="mean")(points).indices, ops.farthest_point_sample(points, 8, start="mean"))
    drawn = FPSSampler(8, start="random").train()(points, BatchRandom(1)).indices
    for row, each in zip(drawn, points):
        assert row.tolist() == ops.farthest_point_sample(each[None], 8, start=int(row[0]))[0].tolist()
    assert len(set(drawn[:, 0].tolist())) > 1


def test_published_key_map_covers_the_sampler() -> None:
    sampler = SampleNet(num_out=8)
    official = {"project._temperature": torch.tensor(0.3)}
    for kind, ours, count in (("conv", "mlp", 5), ("fc", "head", 4)):
        for number in range(count):
            linear = getattr(sampler, ours)[number].linear
            weight = linear.weight.detach()
            official[f"{kind}{number + 1}.weight"] = weight[..., None] if kind == "conv" else weight
            official[f"{kind}{number + 1}.bias"] = linear.bias.detach()
    other = SampleNet(num_out=8)
    report = load_weights(other, official, "official", other.key_map)
    assert not report.unexpected and all(".norm." in key for key in report.missing)
    assert other.project.temperature == official["project._temperature"]


# ---------------------------------------------------------------- in front of networks


def network(kind: str) -> nn.Module:
    if kind == "point_mae":
        return PointMAEClassifier(
            5, embed_dim=24, depth=1, num_heads=2, num_group=4, group_size=4, patch_width=16, head_dim=16
        )
    if kind == "autoencoder":
        return PointNetAutoEncoder(num_points=20, mlp=[8], bottleneck=12, decoder=[16])
    return PointNetClassifier(5, transforms=kind == "t_nets", mlp=[8, 8, 8, 8, 16], head=[12, 10])


@pytest.mark.parametrize("kind", ["vanilla", "t_nets", "point_mae", "autoencoder"])
@pytest.mark.parametrize("name", ["samplenet", "samplenet_progressive"])
def test_only_the_sampler_learns_in_front_of_a_frozen_network(kind: str, name: str) -> None:
    model = SampledNetwork(build(name), network(kind)).train()
    before = {key: value.clone() for key, value in model.network.state_dict().items()}
    out = model(cloud(4))
    assert len(out.answers) == (2 if "progressive" in name else 1)
    (sum(answer.square().sum() for answer in out.answers) + out.losses["loss"]).backward()
    assert all(p.grad is not None for p in model.sampler.parameters())
    assert all(p.grad is None for p in model.network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in model.network.state_dict().items())
    assert ("transform" in out.losses) == (kind == "t_nets")
    assert isinstance(model.eval()(cloud(4)), Tensor)


def test_statistics_of_the_batch_or_of_training() -> None:
    net = network("autoencoder")
    for _ in range(3):
        net.train()(cloud(8, 64) * 3)
    points = cloud(4)
    frozen = SampledNetwork(FPSSampler(8), net).train()
    chosen = frozen.sample(points)[0].points
    assert torch.equal(frozen(points).answers[0], net.eval()(chosen))
    kept = [value.clone() for key, value in net.state_dict().items() if "running" in key]
    published = SampledNetwork(FPSSampler(8), net, task_bn="batch").train()
    assert not torch.equal(published(points).answers[0], net.eval()(chosen))
    assert all(map(torch.equal, kept, [value for key, value in net.state_dict().items() if "running" in key]))


def test_joint_training_changes_the_network_too() -> None:
    model = SampledNetwork(build("samplenet"), network("vanilla"), frozen=False).train()
    assert model.network.training
    out = model(cloud(4))
    (out.answers[0].square().sum() + out.losses["loss"]).backward()
    assert all(p.grad is not None for p in model.parameters())


def test_nothing_wrong_passes_as_a_part() -> None:
    with pytest.raises(UserError, match="sampler: needs a mapping"):
        SampledNetwork("fps", network("vanilla"))  # type: ignore[arg-type]


def test_half_precision_keeps_geometry_in_float32() -> None:
    model = SampledNetwork(build("samplenet"), network("vanilla")).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        sample = model.sample(cloud(4))[0]
    assert sample.points.dtype == sample.simplified.dtype == sample.loss.dtype == torch.float32
    exact = build("samplenet").eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        chosen = exact(cloud(4))
    assert torch.equal(ops.gather_points(cloud(4), chosen.indices), chosen.points)
