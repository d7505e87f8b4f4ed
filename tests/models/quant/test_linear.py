"""Equal steps: levels, ranges, what training sees of them."""

import numpy as np
import pytest
import torch
from torch import nn

from models.quant.apply import calibrate, quantize
from models.quant.clip import kl_threshold, mse_thresholds
from models.quant.kmeans import KMeans
from models.quant.linear import ActivationRange, Linear
from utils.errors import UserError

WEIGHTS = {
    "normal": torch.randn(12, 9, generator=torch.Generator().manual_seed(0)),
    "equal": torch.full((4, 3), -0.5),
    "zero": torch.zeros(4, 3),
    "one": torch.tensor([[2.0]]),
}


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", WEIGHTS)
def test_levels(name: str, bits: int, symmetric: bool, per_channel: bool) -> None:
    weight = WEIGHTS[name]
    made = Linear(symmetric, per_channel).weight(weight, bits)
    rounded = made(weight)
    assert rounded.isfinite().all() and rounded.shape == weight.shape
    for row in rounded if per_channel else [rounded]:
        assert row.unique().numel() <= 2**bits
    if name != "normal":
        torch.testing.assert_close(rounded, weight)
    codes = made.pack(weight)["codes"].long()
    assert codes.max() < 2**bits
    assert torch.equal((codes + made.first).float() * made.scale + made.low, rounded)


def test_steps_around_zero_hold_a_zero() -> None:
    rounded = Linear().weight(WEIGHTS["normal"], 3)(torch.tensor([[0.0, 1e-6]]))
    assert rounded.tolist() == [[0.0, 0.0]]


def test_the_cut_with_the_least_error() -> None:
    data = torch.cat([torch.randn(2000, generator=torch.Generator().manual_seed(0)), torch.tensor([40.0])])
    cut = float(mse_thresholds(data[None], 3))

    def error(top: float) -> float:
        return float(((data.clamp(-top, top) / (top / 3)).round() * (top / 3) - data).square().mean())

    assert error(cut) <= min(error(40.0 * share) for share in np.linspace(0.1, 1, 10)) + 1e-9


def test_the_published_search_with_an_empty_first_bin() -> None:
    """Upstream took the first candidate, 0.27 for data between 1 and 2."""
    data = 1 + torch.rand(500, generator=torch.Generator().manual_seed(0))
    assert kl_threshold(data, 3) > 0.9


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("shift", [0.0, 5.0])
def test_inputs(bits: int, symmetric: bool, shift: float) -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) + shift
    range_ = ActivationRange(bits, symmetric)
    range_.calibrating = True
    assert torch.equal(range_(x), x)
    range_.calibrating = False
    rounded = range_(x)
    assert rounded.isfinite().all() and rounded.unique().numel() <= 2**bits
    rounded.sum().backward()
    assert range_.high.grad is not None and range_.high.grad.isfinite()


def test_inputs_that_are_all_zero() -> None:
    range_ = ActivationRange(4)
    range_.calibrating = True
    range_(torch.zeros(3, 2))
    range_.calibrating = False
    assert torch.equal(range_(torch.zeros(3, 2)), torch.zeros(3, 2))


def test_half_precision_keeps_its_type() -> None:
    assert ActivationRange(4)(torch.rand(3, 2, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_codebooks_do_not_round_inputs() -> None:
    with pytest.raises(UserError, match="use quantizer"):
        quantize(nn.Sequential(nn.Linear(2, 2)), {"0": (4, 4)}, KMeans())


def test_a_layer_that_is_not_called_has_no_input() -> None:
    class Merged(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.merged = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x) @ self.merged.weight

    model = quantize(Merged(), {"used": (4, 4), "merged": (4, 4)}, Linear())
    with pytest.raises(UserError, match="input of merged cannot be rounded"):
        calibrate(model, lambda: model(torch.rand(2, 3)))
