"""Attention in both forms, stochastic depth, and where positions and norms go."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.layers.attention import dense
from models.layers.attention.dense import Attention, dense_attention
from models.layers.transformer import Block, DropPath, Transformer, position_embedding
from utils.errors import UserError


def attention_and_gradients(length: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    query, key, value, weight = torch.randn(4, 2, 3, length, 8, generator=generator, dtype=torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (query.clone(), key.clone(), value.clone())]
    hidden = torch.rand(2, 1, 1, length, generator=generator) > 0.5  # some keys, never the first
    bias = torch.zeros(2, 1, 1, length).masked_fill(hidden, -torch.inf).index_fill(3, torch.tensor([0]), 0)
    out = dense_attention(leaves[0], leaves[1], leaves[2], bias)
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), leaves)]


@pytest.mark.parametrize("length", [1, 2, 17])
def test_explicit_attention_equals_the_fused_one(length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    explicit = attention_and_gradients(length)
    calls: list[int] = []
    fused = F.scaled_dot_product_attention

    def counted(*args, **kwargs) -> Tensor:
        calls.append(1)
        return fused(*args, **kwargs)

    monkeypatch.setattr(dense, "EXPLICIT_BELOW", 0)
    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    for one, other in zip(explicit, attention_and_gradients(length)):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
    assert calls == [1]


def test_attention_follows_its_formula() -> None:
    attention, x = Attention(12, num_heads=3, qkv_bias=True).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    query, key, value = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for part in torch.arange(12).chunk(3):
        scores = query[..., part] @ key[..., part].mT / 4**0.5
        heads.append(scores.softmax(dim=-1) @ value[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=-1)))


def test_attention_does_not_care_about_order() -> None:
    attention, x = Attention(12, num_heads=3).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    order = torch.randperm(5)
    torch.testing.assert_close(attention(x)[:, order], attention(x[:, order]))


def test_heads_must_divide_the_width() -> None:
    with pytest.raises(UserError, match="embed_dim 10 is not a multiple of num_heads 3"):
        Attention(10, num_heads=3)


def test_drop_path_drops_whole_samples_and_keeps_the_mean() -> None:
    x = torch.ones(10_000, 2, 3)
    dropped = DropPath(0.25).train()(x)
    values = dropped.flatten(1)
    assert torch.equal(values.amin(dim=1), values.amax(dim=1))
    assert set(values[:, 0].tolist()) == {0.0, torch.tensor(4 / 3).item()}
    assert abs(dropped.mean().item() - 1) < 0.03
    assert torch.equal(DropPath(0.25).eval()(x), x)
    assert torch.equal(DropPath(0.0).train()(x), x)


def test_rates_of_drop_path_grow_linearly() -> None:
    model = Transformer(8, depth=5, num_heads=2, drop_path_rate=0.2)
    rates = [block.drop_path.rate for block in model.blocks]  # type: ignore[union-attr]
    assert rates == pytest.approx([0, 0.05, 0.1, 0.15, 0.2])
    assert [b.drop_path.rate for b in Transformer(8, 1, 2, drop_path_rate=0.2).blocks] == [0]  # type: ignore[union-attr]


def test_position_is_added_before_every_block_and_the_norm_comes_last() -> None:
    model, x, position = Transformer(8, depth=3, num_heads=2), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    expected = x
    for block in model.blocks:
        assert isinstance(block, Block)
        shifted = expected + position
        middle = shifted + block.attn(block.norm1(shifted))
        expected = middle + block.mlp(block.norm2(middle))
    torch.testing.assert_close(model(x, position), model.norm(expected))


@pytest.mark.parametrize("last", [0, 2, 6])
def test_last_tokens(last: int) -> None:
    model, x, position = Transformer(8, depth=2, num_heads=2).eval(), torch.randn(2, 6, 8), torch.randn(2, 6, 8)
    whole = model(x, position)
    torch.testing.assert_close(model(x, position, last=last), whole[:, 6 - last :])


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        model = Transformer(8, depth=2, num_heads=2, drop_path_rate=0.1)
    assert all(parameter.is_meta for parameter in model.parameters())


def test_position_embedding() -> None:
    assert position_embedding(24)(torch.randn(2, 5, 3)).shape == (2, 5, 24)
