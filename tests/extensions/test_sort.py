"""Sorting: stable, NaN last, every length."""

import pytest
import torch

from extensions import ops
from utils.errors import UserError

pytestmark = pytest.mark.usefixtures("point_ops")


@pytest.mark.parametrize("n", [0, 1, 2, 100, 511, 512, 513, 5000])
@pytest.mark.parametrize("kind", ["normal", "ties", "special", "tiny"])
def test_equals_the_stable_sort_of_torch(n: int, kind: str) -> None:
    keys = torch.randn(2, 3, n)
    if kind == "ties":
        keys = keys.round()  # -0 among them
    if kind == "special":
        values = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, -torch.nan])
        keys = torch.where(torch.rand(2, 3, n) < 0.3, values[torch.randint(6, (2, 3, n))], keys)
    if kind == "tiny":
        keys = keys * 1e-39
    assert torch.equal(ops.sort_order(keys), keys.sort(dim=-1, stable=True).indices)


def test_strided_and_double() -> None:
    keys = torch.randn(3, 700, 4)
    assert torch.equal(ops.sort_order(keys.mT), keys.mT.sort(dim=-1, stable=True).indices)
    assert torch.equal(ops.sort_order(keys.double()), keys.double().sort(dim=-1, stable=True).indices)


def test_wrong_arguments() -> None:
    with pytest.raises(UserError, match="floating point numbers"):
        ops.sort_order(torch.arange(4))
