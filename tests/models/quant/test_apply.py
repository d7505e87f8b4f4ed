"""Which layers of any network get which bits; and any network of the project through quantization, file and back."""

import copy

import pytest
import torch
from torch import nn

from models import MODELS
from models.quant.apply import dense_weights, is_quantized, layers_of, make_policy, quantize, train_codebooks_only
from models.quant.kmeans import KMeans
from models.quant.linear import Linear
from models.quant.storage import Sizes, load_packed, save_quantized
from tests.models.test_point_mae import SMALL
from utils.errors import UserError

QUANTIZERS = [KMeans(max_iter=5), KMeans(max_iter=5, train="project"), Linear(per_channel=True)]
NAMES = [name for name in MODELS.names() if name.endswith(("Classifier", "Segmenter"))]


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    sizes = {"num_classes": 3} if name.endswith("Classifier") else {"num_parts": 4, "num_categories": 2}
    return MODELS.build({"name": name, **SMALL[name], **sizes}).eval()


def run(model: nn.Module, name: str) -> torch.Tensor:
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(points) if name.endswith("Classifier") else model(points, torch.tensor([0, 1]))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quantizer", QUANTIZERS)
def test_every_network_survives_quantization_and_its_file(name, quantizer, tmp_path) -> None:
    model = network(name)
    sizes, before = Sizes(model, quantizer), run(model, name)
    policy = make_policy(model, 3)
    quantize(model, policy, quantizer)
    assert sum(is_quantized(layer) for layer in layers_of(model).values()) == len(layers_of(model)) - 2
    after = run(model, name)
    assert after.isfinite().all() and not torch.equal(before, after)
    size = save_quantized(tmp_path / "it.safetensors", model)
    assert size == sizes.file(policy) == (tmp_path / "it.safetensors").stat().st_size < 0.8 * sizes.float_file()
    again = network(name)
    assert load_packed(again, tmp_path / "it.safetensors", quantizer) == {k: v for k, v in policy.items() if any(v)}
    for key, layer in layers_of(model).items():
        assert torch.equal(layer.weight, layers_of(again)[key].weight)
    plain = model.state_dict()
    assert all(torch.equal(value, plain[key]) for key, value in again.state_dict().items() if key in plain)
    torch.testing.assert_close(run(again, name), after, atol=1e-6, rtol=1e-6)  # products depend on where memory lies


def test_eight_bits_change_little_and_one_bit_much() -> None:
    changes = []
    for bits in (8, 1):
        model = network("PointMAEClassifier")
        before = run(model, "PointMAEClassifier")
        quantize(model, make_policy(model, bits), KMeans())
        changes.append(float((run(model, "PointMAEClassifier") - before).abs().mean() / before.abs().mean()))
    assert changes[0] < 0.1 < changes[1]


def plain() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Conv1d(4, 4, 1), nn.Linear(4, 4), nn.Linear(4, 2))


def test_what_a_policy_is_made_of() -> None:
    model = plain()
    assert make_policy(model, 4) == {"0": (0, 0), "1": (4, 0), "2": (4, 0), "3": (0, 0)}
    assert make_policy(model, 4, protect=False)["0"] == (4, 0)
    assert make_policy(model, 4, keep_bits={"[03]": 8}) == {"0": (8, 0), "1": (4, 0), "2": (4, 0), "3": (8, 0)}
    assert make_policy(model, 4, keep_float=("2",))["2"] == (0, 0)
    assert make_policy(model, 4, given={"2": [2, 8], "0": 3, "1": -1})["2"] == (2, 8)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"given": {"hed": 4}}, "no layer 'hed'"),
        ({"given": {"1": 9}}, "use 1 to 8"),
        ({"given": {"1": "four"}}, "write the bits"),
        ({"keep_float": ("none*",)}, "no layer matches 'none"),
        ({"bits": 12}, "use 1 to 8"),
    ],
)
def test_mistakes_in_a_policy(options, said) -> None:
    with pytest.raises(UserError, match=said):
        make_policy(plain(), **{"bits": 4, **options})


def test_not_twice() -> None:
    model = quantize(plain(), {"1": (4, 0)}, KMeans())
    with pytest.raises(UserError, match="quantized already"):
        quantize(model, {"1": (4, 0)}, KMeans())


def test_tied_layers_stay_tied(tmp_path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.v = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False), nn.Linear(6, 6)
            self.k.weight = self.q.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.q(x) * self.k(x) + self.v(x)

    model, x = Tied(), torch.randn(3, 6)
    assert list(layers_of(model)) == ["q", "v"]
    sizes, policy = Sizes(model, KMeans()), make_policy(model, 2, protect=False)
    quantize(model, policy, KMeans())
    assert torch.equal(model.q.weight, model.k.weight)
    model(x).sum().backward()
    assert len([p for p in model.parameters() if p.ndim == 1]) == 3  # two codebooks, one bias
    assert save_quantized(tmp_path / "tied.safetensors", model) == sizes.file(policy)
    fresh = Tied()
    load_packed(fresh, tmp_path / "tied.safetensors", KMeans())
    assert torch.equal(fresh(x), model(x)) and fresh.q.weight is fresh.k.weight


def test_codebooks_only() -> None:
    model = quantize(plain(), make_policy(plain(), 2), KMeans())
    train_codebooks_only(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert "0.weight" not in trained and {"0.bias", "1.parametrizations.weight.original"} <= trained


def test_a_copy_computes_the_same() -> None:
    model = network("PointMAEClassifier")
    quantize(model, make_policy(model, 2), KMeans())
    twin = copy.deepcopy(model)
    assert torch.equal(run(twin, "PointMAEClassifier"), run(model, "PointMAEClassifier"))
    assert dense_weights(twin).keys() == dense_weights(model).keys()
