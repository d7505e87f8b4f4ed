"""Sparse attention against plain formulas; what follows a permutation; what is saved; hidden and special tokens."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.layers.attention import ATTENTION
from models.layers.attention.lsh import LSHAttention, similarity_values
from models.layers.attention.sim import SimAttention, gaussian
from models.layers.transformer import Transformer
from models.point_m2ae import PointM2AE
from models.point_mae import PointMAE, PointMAEClassifier
from tests.models.test_point_mae import SMALL
from utils.errors import UserError

KINDS: dict[str, dict[str, Any]] = {
    "first": {"name": "sim", "window": 5},
    "per_head": {"name": "sim", "window": 5, "restore": "per_head"},
    "lsh": {"name": "lsh", "window": 5},
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "sim": {"name": "sim", "window": 5, "restore": "none"},
    "lsh": {"name": "lsh", "restore": "none"},
}


def build(kind: str, dim: int = 12, **options) -> nn.Module:
    return ATTENTION.build({**KINDS[kind], **options}, "attention")(dim, 3).double()


def tokens(batch: int = 2, length: int = 40, dim: int = 12) -> Tensor:
    return torch.randn(batch, length, dim, dtype=torch.float64)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 6, 40])
def test_permuted_points_give_permuted_results(kind: str, length: int) -> None:
    layer, x, order = build(kind, dim=48), tokens(length=length, dim=48), torch.randperm(length)
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("restore", ["first", "per_head"])
def test_points_that_relu_silences_keep_an_order_of_their_own(restore: str) -> None:
    """Dead rows all lie at 0; without a second criterion their storage would decide whom they see."""
    layer, x, order = build(restore, d_low=8), tokens(length=60), torch.randperm(60)
    with torch.no_grad():
        layer.query.bias.fill_(-1.2)  # type: ignore[union-attr, operator]
    dead = (layer.query(x) <= 0).all(dim=-1)  # type: ignore[operator]
    assert dead.sum() > 10
    torch.testing.assert_close(layer(x[:, order]), layer(x)[:, order], rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", PUBLISHED)
def test_the_published_form_depends_on_the_order_of_storage(kind: str) -> None:
    layer = ATTENTION.build(PUBLISHED[kind])(12, 3).double()
    x, order = tokens(), torch.randperm(40)
    assert (layer(x[:, order]) - layer(x)[:, order]).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["first", "lsh"])
def test_restored_rows_are_those_of_the_published_form(kind: str) -> None:
    layer, x = build(kind), tokens()
    restored = layer(x)
    layer.restore = "none"  # type: ignore[assignment]
    published = layer(x)
    for one, other in zip(restored, published):  # the same rows at other places
        difference = (one[:, None] - other).abs().amax(dim=-1).amin(dim=1)
        assert difference.max() < 1e-12


def test_a_window_over_everything_is_full_attention() -> None:
    """per_head with one order and a window of n: every row sees all rows."""
    layer, x = build("per_head", window=39, k_heads=1), tokens(length=39)
    keys = layer.mix(layer.query(x).relu()).relu()  # type: ignore[operator]
    values = layer.value(keys).relu()  # type: ignore[operator]
    weights = (keys @ keys.mT / keys.shape[-1] ** 0.5).softmax(dim=-1)
    torch.testing.assert_close(layer(x), weights @ values)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: str) -> None:
    layer, x = build(kind, dim=6), tokens(1, 9, 6).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,), eps=1e-7, atol=1e-5)
    assert torch.autograd.gradcheck(partial(layer, special=2), (x,), eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_recomputing_changes_nothing(kind: str) -> None:
    plain, x = build(kind), tokens()
    again = build(kind, recompute=True)
    again.load_state_dict(plain.state_dict())
    results = []
    for layer in (plain, again):
        leaf = x.clone().requires_grad_()
        layer.train()(leaf, special=1).square().sum().backward()
        results.append([leaf.grad, *(p.grad for p in layer.parameters())])
    for one, other in zip(*results):
        assert torch.equal(one, other)


def test_directions_of_every_step_survive_recomputation() -> None:
    plain, again = (build("first", projections="per_step", recompute=flag) for flag in (False, True))
    again.load_state_dict(plain.state_dict())
    x, grads = tokens(), []
    for layer in (plain.train(), again.train()):
        for _ in range(2):  # two calls before one backward pass, as a shared layer has
            out = layer(x)
        (layer(x) + out).square().sum().backward()
        grads.append(dict(layer.named_parameters())["query.weight"].grad)
    assert grads[0] is not None and grads[1] is not None and torch.equal(grads[0], grads[1])


@pytest.mark.parametrize("kind", KINDS)
def test_hidden_points_leave_no_trace(kind: str) -> None:
    """Padding behind a bias of -inf: what remains attends as if it were alone."""
    layer, x = build(kind), tokens(length=30)
    padded = torch.cat([x, 100 * tokens(length=13)], dim=1)
    bias = torch.zeros(2, 1, 1, 43)
    bias[..., 30:] = -torch.inf
    torch.testing.assert_close(layer(padded, bias)[:, :30], layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_that_must_not_see_each_other(kind: str) -> None:
    """Two groups that are hidden from each other: changing one leaves the other as it is, where the order stays."""
    layer, x = build(kind), tokens(1, 20)
    groups = torch.arange(20) % 2
    bias = torch.zeros(20, 20).masked_fill(groups[:, None] != groups, -torch.inf)[None, None]
    free, bound = layer(x), layer(x, bias)
    assert (free - bound).abs().max() > 1e-3
    alone = torch.eye(20).log()[None, None]
    keys_only = layer(x, alone)  # everybody sees itself alone: the value of its own row
    assert keys_only.isfinite().all() and (keys_only - bound).abs().max() > 1e-3


def test_special_tokens_see_everything_and_are_seen() -> None:
    layer, x = build("per_head", k_heads=1, window=39), tokens(length=41)
    out = layer(x, special=2)
    keys = layer.mix(layer.query(x).relu()).relu()  # type: ignore[operator]
    values = layer.value(keys).relu()  # type: ignore[operator]
    full = (keys @ keys.mT / keys.shape[-1] ** 0.5).softmax(dim=-1) @ values
    torch.testing.assert_close(out, full)


@pytest.mark.parametrize("kind", KINDS)
def test_class_token_does_not_disturb_the_order_of_the_points(kind: str) -> None:
    layer, x, order = build(kind), tokens(length=31), torch.randperm(30)
    permuted = torch.cat([x[:, :1], x[:, 1:][:, order]], dim=1)
    first, second = layer(x, special=1), layer(permuted, special=1)
    torch.testing.assert_close(second[:, 0], first[:, 0])
    torch.testing.assert_close(second[:, 1:], first[:, 1:][:, order], rtol=0, atol=1e-13)


def test_directions_are_saved_and_drawn_as_told() -> None:
    x = tokens()
    fixed = build("first").train()
    assert torch.equal(fixed(x), fixed(x))
    other = build("first")
    assert not torch.equal(other(x), fixed(x))
    other.load_state_dict(fixed.state_dict())
    assert torch.equal(other(x), fixed(x))

    step = build("first", projections="per_step").train()
    assert not torch.equal(step(x), step(x))
    step.eval()
    assert torch.equal(step(x), step(x))

    call, twin = (build("first", projections="per_call").eval() for _ in range(2))
    assert not torch.equal(call(x), call(x))
    twin.load_state_dict(call.state_dict())
    assert torch.equal(call(x), twin(x)) and torch.equal(call(x), twin(x))


def test_directions_are_seeded_and_normal() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(5)
        first = SimAttention(12, 3)
        torch.manual_seed(5)
        second = SimAttention(12, 3)
        third = SimAttention(12, 3)
    assert torch.equal(first.projection, second.projection) and not torch.equal(first.projection, third.projection)
    numbers = gaussian(torch.tensor([3, 7]), 400, 500).double()
    assert abs(numbers.mean()) < 0.01 and abs(numbers.std() - 1) < 0.01
    assert abs((numbers**4).mean() - 3) < 0.05 and abs((numbers[1:] * numbers[:-1]).mean()) < 0.01
    assert not torch.equal(gaussian(torch.tensor([3, 8]), 4, 5), gaussian(torch.tensor([3, 7]), 4, 5))


def test_a_given_projection() -> None:
    layer, x = build("first"), tokens()
    given = torch.randn_like(layer.projection)  # type: ignore[arg-type]
    out = layer(x, projection=given)
    layer.projection.copy_(given)  # type: ignore[operator]
    assert torch.equal(layer(x), out)


def test_similarity_values_follow_their_definition() -> None:
    up = torch.randn(1, 6, 3, 5).relu()
    votes = torch.where(up > 0, 1, -1).sum(dim=2)
    for row, actual in zip(votes[0], similarity_values(up)[0]):
        order = sorted(range(5), key=lambda c: (-int(row[c]), c))
        waves = [(torch.cos if c % 2 == 0 else torch.sin)(torch.tensor(10 ** (-c / 5))) for c in order]
        expected = sum(0.4 * 0.6**i * (row[c] + wave / 0.4) for i, (c, wave) in enumerate(zip(order, waves)))
        torch.testing.assert_close(actual, expected)


def test_wrong_options() -> None:
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"name": "sim", "window": 4}, "window: 4; use an odd number"),
        ({"name": "lsh", "window": 0}, "window: 0; use an odd number"),
        ({"name": "sim", "k_heads": 20}, "k_heads: 20; use 1 to 16"),
    ]
    for options, message in wrong:
        with pytest.raises(UserError, match=message):
            ATTENTION.build(options)(12, 3)
    wrong = [
        ({"name": "sim", "widow": 9}, r"attention.widow: .*no such option. Did you mean 'window'"),
        ({"name": "sim", "restore": "second"}, r"attention.restore: expected one of 'first', 'per_head', 'none'"),
        ({"name": "sym"}, "unknown attention 'sym'. Did you mean 'sim'"),
        ({"name": "sim", "dim": 3}, "attention.dim: follows from the model"),
    ]
    for options, message in wrong:
        with pytest.raises(UserError, match=message):
            ATTENTION.build(options, "attention")
    with pytest.raises(UserError, match="one bias for all heads"):
        build("first")(tokens(), torch.zeros(2, 3, 40, 40))


@pytest.mark.parametrize("kind", [*KINDS, "dense"])
def test_every_backbone_takes_every_kind(kind: str) -> None:
    from models import MODELS

    options: Any = KINDS.get(kind, "dense")
    points = torch.randn(2, 64, 3)
    for name in ("PointMAE", "PointMAEClassifier", "PointMAESegmenter", "PointM2AE", "PointM2AEClassifier"):
        size = "num_classes" if name.endswith("Classifier") else "num_parts"
        extra = {size: 5} if name.endswith(("Classifier", "Segmenter")) else {}
        model = MODELS.build({"name": name, **SMALL[name], **extra, "attention": options})
        out = model.train()(points)
        (out["loss"] if isinstance(out, dict) else out.square().mean()).backward()
        for key, p in model.named_parameters():
            assert not p.requires_grad or (p.grad is not None and p.grad.isfinite().all()), key
        attention = [m for m in model.modules() if type(m).__name__.endswith("Attention")]
        wanted = {"dense": "Attention", "lsh": "LSHAttention"}.get(kind, "SimAttention")
        assert wanted in {type(m).__name__ for m in attention}


def test_decoder_and_encoder_choose_for_themselves() -> None:
    sim = partial(SimAttention, window=3)
    model = PointMAE(**{**SMALL["PointMAE"], "decoder_attention": sim})
    assert isinstance(model.decoder.blocks[0].attn, SimAttention)
    assert not any(isinstance(m, SimAttention) for m in model.encoder.modules())


def test_classifier_does_not_depend_on_the_order_of_its_points() -> None:
    model = PointMAEClassifier(num_classes=5, **SMALL["PointMAEClassifier"], attention=SimAttention).double().eval()
    points = torch.randn(2, 64, 3, dtype=torch.float64)
    order = torch.cat([torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(63)])  # sampling starts at the first point
    torch.testing.assert_close(model(points[:, order]), model(points))


def test_padding_of_point_m2ae_leaves_no_trace() -> None:
    """A cloud beside another one, with padding, gives the tokens that it gives alone."""
    model = PointM2AE(**SMALL["PointM2AE"], attention=LSHAttention).double().eval()
    points = torch.randn(3, 64, 3, dtype=torch.float64)
    alone = torch.cat([model.forward_features(points[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(model.forward_features(points), alone)


def test_memory_grows_linearly() -> None:
    """What is kept for the backward pass, by its size; nothing of n x window x width among it."""

    def kept(length: int, **options) -> int:
        layer, seen = SimAttention(64, 8, **options), {}
        with torch.autograd.graph.saved_tensors_hooks(lambda t: seen.update({t.data_ptr(): t.numel()}) or t, id_):
            layer.train()(torch.randn(1, length, 64))
        assert max(seen.values()) <= length * 64
        return sum(seen.values())

    def id_(tensor: Tensor) -> Tensor:
        return tensor

    small, large = kept(1024), kept(4096)
    assert 3.9 < large / small < 4.1 and large / 4096 < 9 * 64
    assert kept(1024, recompute=True) < 0.4 * small


def test_transformer_passes_special_tokens_on() -> None:
    model = Transformer(12, 2, 3, attention=partial(SimAttention, window=3)).double()
    seen: list[Any] = []
    for block in model.blocks:
        block.attn.register_forward_pre_hook(lambda module, args: seen.append(args[2]))  # type: ignore[union-attr]
    model(tokens(), tokens(), special=3)
    assert seen == [3, 3]
