"""The mini-PointNet: equal to its definition, blind to the order of points."""

import pytest
import torch
from torch import Tensor

from models.layers.patch_embed import PatchEmbed


def as_defined(model: PatchEmbed, patches: Tensor) -> Tensor:
    """With the repetition and the concatenation that the module avoids."""
    batch, number, size, _ = patches.shape
    x = model.first(patches.reshape(-1, 3)).reshape(batch * number, size, 256)
    joined = torch.cat([x.amax(dim=1, keepdim=True).expand_as(x), x], dim=-1)
    x = model.second(joined.reshape(-1, 512))
    return x.reshape(batch, number, size, -1).amax(dim=2)


def test_equals_its_definition() -> None:
    model, patches = PatchEmbed(24).double(), torch.randn(2, 5, 7, 3, dtype=torch.float64)
    for mode in (True, False):
        model.train(mode)
        ours, expected = model(patches), as_defined(model, patches)
        torch.testing.assert_close(ours, expected)
        gradients = [torch.autograd.grad(out.square().sum(), list(model.parameters())) for out in (ours, expected)]
        for one, other in zip(*gradients):
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def test_order_of_points_does_not_matter() -> None:
    model, patches = PatchEmbed(24).eval(), torch.randn(2, 5, 7, 3)
    torch.testing.assert_close(model(patches), model(patches[:, :, torch.randperm(7)]))


def test_strided_patches_of_one_point() -> None:
    patches = torch.randn(3, 1, 4, 2).permute(3, 2, 1, 0)  # (2, 4, 1, 3)
    assert PatchEmbed(24).eval()(patches).shape == (2, 4, 24)


@pytest.mark.parametrize("in_channels", [3, 12])
def test_without_gradient_the_norms_are_folded_and_nothing_changes(in_channels: int) -> None:
    model = PatchEmbed(24, 16, in_channels, hidden=(8, 20))
    for _ in range(3):  # statistics of their own
        model(torch.randn(2, 5, 6, in_channels) * 2 + 1)
    patches = torch.randn(2, 5, 6, in_channels)
    model.eval()
    with torch.no_grad():
        folded = model(patches)
    torch.testing.assert_close(folded, model(patches).detach(), rtol=1e-5, atol=1e-5)
    model.train()
    with torch.no_grad():
        assert not torch.allclose(model(patches), folded)  # in training the batch tells the statistics


def test_no_clouds_no_tokens() -> None:
    assert PatchEmbed(8, width=4).eval()(torch.zeros(0, 3, 5, 3)).shape == (0, 3, 8)
