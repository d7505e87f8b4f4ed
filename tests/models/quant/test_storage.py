"""Packed files: bits, sizes, damage."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from models.quant.apply import make_policy, quantize
from models.quant.kmeans import KMeans
from models.quant.linear import Linear
from models.quant.storage import Sizes, is_packed, load_packed, pack_bits, packed_length, save_quantized, unpack_bits
from utils.errors import UserError


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 8), st.integers(0, 70), st.integers(0, 1000))
def test_codes_come_back(bits: int, number: int, seed: int) -> None:
    codes = torch.randint(2**bits, (number,), generator=torch.Generator().manual_seed(seed)).to(torch.uint8)
    packed = pack_bits(codes, bits)
    assert len(packed) == packed_length(number, bits) and torch.equal(unpack_bits(packed, bits, number), codes)


def test_the_order_of_the_bits() -> None:
    assert pack_bits(torch.tensor([1, 2, 3, 0]), 2).tolist() == [0b00111001]
    assert pack_bits(torch.tensor([5, 1]), 3).tolist() == [0b00001101]


def model_of(kind: int = 0) -> Any:
    torch.manual_seed(kind)
    inner = (nn.Conv1d(5, 7, 1), nn.BatchNorm1d(7), nn.Linear(7, 2, bias=False))
    return nn.Sequential(nn.Linear(3, 5), *inner, nn.Linear(2, 2))


@pytest.mark.parametrize("quantizer", [KMeans(), Linear(), Linear(symmetric=False), Linear(per_channel=True)])
def test_the_size_is_known_before(quantizer, tmp_path) -> None:
    sizes = Sizes(model_of(), quantizer)
    for pair in itertools.product((0, 1, 2, 3, 5, 8), repeat=2):
        model = model_of()
        policy = make_policy(model, 0, given={"1": pair[0], "3": pair[1]})
        size = save_quantized(tmp_path / "it.safetensors", quantize(model, policy, quantizer))
        assert size == sizes.file(policy)
        with safe_open(tmp_path / "it.safetensors", "pt") as file:  # the ordinary reader takes it
            assert len(list(file.keys())) >= 8


def test_rounded_inputs_are_stored(tmp_path) -> None:
    policy = {"1": (4, 8)}
    model: Any = quantize(model_of(), policy, Linear())
    model[1].input_range.high.data.fill_(1.5)
    assert save_quantized(tmp_path / "it.safetensors", model) == Sizes(model_of(), Linear()).file(policy)
    fresh = model_of(1)
    load_packed(fresh, tmp_path / "it.safetensors", Linear())
    x = torch.randn(2, 5, 6)
    assert torch.equal(fresh[1](x), model[1](x)) and float(fresh[1].input_range.high.detach()) == 1.5


def test_other_files_and_damage(tmp_path) -> None:
    path = tmp_path / "it.safetensors"
    save_quantized(path, quantize(model_of(), {"1": (3, 0)}, KMeans()))
    assert is_packed(path) and not is_packed(tmp_path / "none.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    with pytest.raises(UserError, match="damaged"):
        load_packed(model_of(), path, KMeans())
    path.write_bytes(whole.replace(b'\\"format\\":1', b'\\"format\\":7'))
    with pytest.raises(UserError, match="format 7"):
        load_packed(model_of(), path, KMeans())
    path.write_bytes(whole)
    with pytest.raises(UserError, match="does not fit the model"):
        load_packed(nn.Sequential(nn.Linear(3, 5)), path, KMeans())


def test_a_small_layer_costs_what_it_costs() -> None:
    """A codebook of 256 entries is larger than a layer of 35 weights: it has 35, and the file says so."""
    sizes = Sizes(model_of(), KMeans())
    entries = sizes.layer("1", 8)
    assert entries["1.codebook"][1] == (35,) and entries["1.codes"][1] == (35,)


def test_int8_against_torchao() -> None:
    torchao = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    layer: Any = nn.Sequential(nn.Linear(64, 64, bias=False))
    ours: Any = quantize(nn.Sequential(nn.Linear(64, 64, bias=False)), {}, Linear())
    ours.load_state_dict(layer.state_dict())
    quantize(ours, {"0": (8, 0)}, Linear(per_channel=True, clip="max"))
    torchao.quantize_(layer, torchao.Int8WeightOnlyConfig())
    with torch.no_grad():
        difference = (layer[0].weight.dequantize() - ours[0].weight).abs().max()
        assert float(difference) <= 1.01 * float(ours[0].parametrizations.weight[0].scale.max())
