"""The fused passes of the mini-PointNet against modules in float64: values, gradients, running statistics."""

import copy

import pytest
import torch
from torch import Tensor, nn

from extensions import features, library
from models.layers.patch_embed import PatchEmbed


@pytest.fixture(scope="module", autouse=True)
def compiled() -> None:
    if not library.kernels("cpu"):
        pytest.skip("no compiled operations here; `python -m extensions.build` says why")


def close(actual: Tensor, exact: Tensor, tolerance: float) -> bool:
    return bool((actual.double() - exact.double()).norm() <= tolerance * exact.double().norm() + 1e-30)


def layers(channels: int, width: int) -> tuple[nn.BatchNorm1d, nn.Linear]:
    norm, linear = nn.BatchNorm1d(channels), nn.Linear(channels, width)
    nn.init.uniform_(norm.weight, -1, 2)
    nn.init.uniform_(norm.bias, -1, 1)
    return norm, linear


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 2e-6), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("patches, size, channels", [(1, 2, 1), (5, 7, 21), (70, 16, 64), (40, 33, 130)])
@pytest.mark.parametrize("share", [True, False])
def test_norm_relu_linear(
    patches: int, size: int, channels: int, share: bool, dtype: torch.dtype, tolerance: float
) -> None:
    norm, linear = layers(channels, 6)
    exact_norm, exact_linear = copy.deepcopy(norm).double(), copy.deepcopy(linear).double()
    x = (torch.randn(patches, size, channels) * 0.1 + 3).to(dtype)
    shared = torch.randn(patches, channels).to(dtype) if share else None
    inputs = [t.clone().requires_grad_() for t in (x, shared) if t is not None]
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert features.fits(norm, x[0])
        out = features.norm_relu_linear(inputs[0], norm, linear, *inputs[1:])
    exact = [t.detach().double().requires_grad_() for t in inputs]
    joined = exact[0] + (exact[1][:, None] if share else 0)
    expected = exact_linear(exact_norm(joined.flatten(0, 1)).relu())
    weight = torch.randn_like(expected)
    assert out.dtype == dtype and close(out, expected, tolerance)
    (out * weight.to(dtype)).sum().backward()
    (expected * weight).sum().backward()
    scale = max(float(t.grad.norm()) for t in exact if t.grad is not None)  # small differences of large numbers
    for ours, truth in zip(inputs, exact):
        assert ours.grad is not None and truth.grad is not None
        assert (ours.grad.double() - truth.grad).norm() <= 20 * tolerance * scale + 1e-5
    for module, truth_module in ((norm, exact_norm), (linear, exact_linear)):
        for ours, truth in zip(module.parameters(), truth_module.parameters()):
            assert ours.grad is not None and truth.grad is not None
            assert (ours.grad - truth.grad).norm() <= 5 * tolerance * (truth.grad.norm() + scale)
        for mine, theirs in zip(module.buffers(), truth_module.buffers()):
            assert close(mine, theirs, 1e-6)


def test_statistics_are_exact_where_the_mean_is_large() -> None:
    x = torch.randn(4096, 33) * 1e-2 + 100
    mean, variance = library.kernels("cpu")["features"].norm_statistics(x, None, 32)
    assert close(mean, x.double().mean(0), 1e-7) and close(variance, x.double().var(0, correction=0), 1e-6)


def test_group_max_keeps_the_first_and_passes_nan_on() -> None:
    x = torch.randint(0, 4, (50, 9, 37)).float().requires_grad_()
    out = features.group_max(x)
    assert torch.equal(out, x.amax(dim=1))
    out.backward(weight := torch.randn_like(out))
    place = (x == out[:, None]).int().argmax(dim=1)  # the first of equals
    assert x.grad is not None and torch.equal(x.grad, torch.zeros_like(x).scatter(1, place[:, None], weight[:, None]))
    broken = x.detach().clone()
    broken[3, 4, 5] = torch.nan
    assert features.group_max(broken.requires_grad_()).isnan().nonzero().tolist() == [[3, 5]]


def step(model: PatchEmbed, patches: Tensor, ops: str, monkeypatch, dtype: torch.dtype | None = None):
    monkeypatch.setenv("POINT_OPS", ops)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype is not None):
        out = model(patches)
    (out.float() if dtype else out).square().mean().backward()
    return out.detach(), [p.grad for p in model.parameters()], list(model.buffers())


@pytest.mark.parametrize("channels", [3, 20])
def test_the_mini_pointnet_is_nearer_to_float64_than_its_modules(channels: int, monkeypatch) -> None:
    torch.manual_seed(channels)
    fused = PatchEmbed(24, 40, in_channels=channels)
    plain, exact = copy.deepcopy(fused), copy.deepcopy(fused).double()
    patches = torch.randn(4, 20, 17, channels) * 0.1 + 0.2
    ours, modules = step(fused, patches, "auto", monkeypatch), step(plain, patches, "torch", monkeypatch)
    truth = step(exact, patches.double(), "torch", monkeypatch)
    assert close(ours[0], truth[0], 3e-6)
    for a, b, c in zip(ours[1], modules[1], truth[1]):
        if c.norm() > 1e-9:  # a bias in front of a norm has no gradient
            assert (a - c).norm() <= max(3e-6 * c.norm(), 3 * (b - c).norm())
    for a, c in zip(ours[2], truth[2]):
        assert close(a, c, 1e-5)


def test_bfloat16_of_the_mini_pointnet(monkeypatch) -> None:
    model = PatchEmbed(24, 40)
    exact, patches = copy.deepcopy(model).double(), torch.randn(4, 20, 17, 3)
    ours = step(model, patches, "auto", monkeypatch, torch.bfloat16)
    truth = step(exact, patches.double(), "torch", monkeypatch)
    assert ours[0].dtype == torch.bfloat16 and close(ours[0], truth[0], 2e-2)


def test_the_number_of_threads_changes_nothing(monkeypatch) -> None:
    model, patches, before = PatchEmbed(24, 40), torch.randn(4, 300, 9, 20)[..., :3], torch.get_num_threads()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            results.append(step(copy.deepcopy(model), patches, "auto", monkeypatch))
        finally:
            torch.set_num_threads(before)
    assert torch.equal(results[0][2][1], results[1][2][1]) and torch.equal(results[0][2][0], results[1][2][0])
    torch.testing.assert_close(results[0][0], results[1][0])


def test_what_the_modules_must_do_themselves(monkeypatch) -> None:
    """Evaluation, watched modules, points that want a gradient, other dtypes: no fused pass."""
    x, norm = torch.randn(8, 5), nn.BatchNorm1d(5)
    assert features.fits(norm, x) and not features.fits(norm, x.double()) and not features.fits(norm, x[:1])
    assert not features.fits(nn.BatchNorm1d(5).eval(), x) and not features.fits(nn.BatchNorm1d(5, momentum=None), x)
    norm.register_forward_hook(lambda *_: None)
    assert not features.fits(norm, x)
    model, seen = PatchEmbed(24), []
    assert features.plain(model.second[3]) and not features.plain(nn.Bilinear(2, 2, 2))
    model.second[3].register_forward_hook(lambda module, *_: seen.append(module))
    model(torch.randn(2, 4, 6, 3))
    assert seen == [model.second[3]]
    patches = torch.randn(2, 4, 6, 3, requires_grad=True)
    PatchEmbed(24)(patches).sum().backward()
    assert patches.grad is not None
    monkeypatch.setenv("POINT_OPS", "torch")
    assert not features.fits(nn.BatchNorm1d(5), x)


def test_float16_takes_the_modules() -> None:
    model, patches = PatchEmbed(24), torch.randn(4, 20, 17, 3)
    with torch.autocast("cpu", dtype=torch.float16):
        out = model(patches)
    assert out.dtype == torch.float16 and out.isfinite().all()
