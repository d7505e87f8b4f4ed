"""Weight sharing: what must hold for any layer, and what has gone wrong elsewhere."""

import copy
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans as Reference
from torch import nn

from models.quant.apply import make_policy, quantize, trained_weight
from models.quant.kmeans import KMeans, cluster_means, lloyd, quantile_centroids
from utils.errors import UserError


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
@pytest.mark.parametrize("max_iter", [1, 3, 60])
def test_the_same_as_scikit_learn(bits: int, max_iter: int) -> None:
    weight = torch.randn(40, 13, generator=torch.Generator().manual_seed(bits)) ** 3
    start = quantile_centroids(weight, 2**bits)
    ours = lloyd(weight, start, max_iter)
    theirs = Reference(2**bits, init=start[:, None].numpy(), n_init=1, max_iter=max_iter).fit(weight.reshape(-1, 1))
    assert torch.equal(ours.labels.flatten(), torch.from_numpy(theirs.labels_).long())
    torch.testing.assert_close(
        ours.centroids, torch.from_numpy(theirs.cluster_centers_[:, 0]).float(), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    "weight",
    [
        torch.full((6, 5), 0.25),
        torch.zeros(4, 4),
        torch.tensor([[1.0]]),
        torch.tensor([[1.0, 2.0, 3.0]]),
        torch.randn(9).repeat(50).reshape(10, 45),
        torch.tensor([[1e-38, -1e-38, 1e30, -1e30]]),
    ],
    ids=["equal", "zero", "one", "fewer than clusters", "nine values", "extremes"],
)
@pytest.mark.parametrize("start", ["best", "quantile", "even", "spread"])
def test_no_layer_gives_nan(weight: torch.Tensor, start: str) -> None:
    for bits in (1, 4, 8):
        made = KMeans(start=start).weight(weight, bits)  # type: ignore[arg-type]
        rounded = made(made.initial())
        assert rounded.isfinite().all() and len(made.start) == min(2**bits, weight.numel())
        if weight.unique().numel() <= 2**bits:  # every value has a cluster of its own
            torch.testing.assert_close(rounded, weight)


def test_weights_that_are_not_finite_are_told() -> None:
    with pytest.raises(UserError, match=r"head\.weight: holds values that are not finite"):
        KMeans().weight(torch.tensor([1.0, float("nan")]), 2, "head.weight")


def test_an_empty_cluster_keeps_its_entry() -> None:
    means = cluster_means(torch.tensor([1.0, 3.0]), torch.tensor([0, 0]), torch.tensor([9.0, 7.0]))
    assert means.tolist() == [2.0, 7.0]


@pytest.mark.parametrize("grad", ["sum", "mean"])
def test_gradient_of_a_codebook(grad: str) -> None:
    made = KMeans(grad=grad).weight(torch.randn(5, 7), 2)  # type: ignore[arg-type]
    codebook = made.initial().clone().requires_grad_()
    towards = torch.randn(5, 7)
    (made(codebook) * towards).sum().backward()
    for entry, gradient in enumerate(codebook.grad):  # type: ignore[arg-type]
        own = towards[made.labels == entry]
        torch.testing.assert_close(gradient, own.sum() if grad == "sum" else own.mean())


@pytest.mark.parametrize("optimizer", ["SGD", "Adam"])
def test_training_projected_is_a_projection_after_every_step(optimizer: str) -> None:
    """The published loop against the parametrization, several steps, momentum and decay included."""
    torch.manual_seed(0)
    layer, x = nn.Linear(6, 4), torch.randn(10, 6)
    ours: Any = nn.Sequential(copy.deepcopy(layer))
    quantize(ours, {"0": (2, 0)}, KMeans(train="project"))
    made = ours[0].parametrizations.weight[0]
    layer.weight.data = ours[0].weight.detach().clone()
    options = {"lr": 0.05, "weight_decay": 0.1} | ({"momentum": 0.9} if optimizer == "SGD" else {})
    if optimizer == "Adam":
        options["weight_decay"] = 0.0  # decay inside Adam's gradient looks at the single weight
    steppers = [getattr(torch.optim, optimizer)(each.parameters(), **options) for each in (layer, ours)]
    for _ in range(5):
        for model, stepper in zip((layer, ours), steppers):
            stepper.zero_grad()
            model(x).square().mean().backward()
            stepper.step()
        layer.weight.data = cluster_means(layer.weight.data, made.labels, made.start)[made.labels.long()]
    torch.testing.assert_close(ours[0].weight, layer.weight)


def test_more_bits_are_nearer_and_beat_equal_steps() -> None:
    from models.quant.linear import Linear

    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    errors = []
    for bits in range(1, 9):
        made, even = KMeans().weight(weight, bits), Linear().weight(weight, bits)
        errors.append(float((made(made.initial()) - weight).square().mean()))
        assert errors[-1] < float((even(weight) - weight).square().mean())
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-3


def test_only_the_codebook_trains() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2))
    quantize(model, make_policy(model, 3), KMeans())
    assert trained_weight(model[1]).shape == (8,) and trained_weight(model[0]).shape == (8, 3)
    model(torch.randn(4, 3)).sum().backward()
    assert trained_weight(model[1]).grad is not None
    assert model[1].weight.unique().numel() <= 8
