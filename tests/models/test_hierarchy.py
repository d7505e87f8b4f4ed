"""Nested groups, masks carried to finer scales, packing."""

import torch
from torch import Tensor

from extensions import ops
from models.layers.hierarchy import (
    Packed,
    back_project,
    group_scales,
    hidden_rows,
    key_bias,
    leaking_bias,
    pack,
    put_back,
    radius_bias,
    take,
)

NUMBERS, SIZES = (32, 12, 5), (6, 4, 3)


def scales_of(batch: int = 3, num_points: int = 100):
    return group_scales(torch.randn(batch, num_points, 3), NUMBERS, SIZES, skip_near_origin=True)


def some_mask(batch: int = 3) -> Tensor:
    return torch.stack([torch.randperm(5) < 3 for _ in range(batch)])


def test_one_sampling_equals_one_a_scale() -> None:
    points = torch.randn(2, 100, 3)
    scales, finer = group_scales(points, NUMBERS, SIZES, skip_near_origin=True), points
    for scale, number, size in zip(scales, NUMBERS, SIZES):
        neighborhood, center, index = ops.group(finer, number, size, skip_near_origin=True)
        assert torch.equal(scale.center, center) and torch.equal(scale.index, index)
        assert torch.equal(scale.neighborhood, neighborhood)
        finer = center


def test_clouds_of_few_distinct_points() -> None:
    scales = group_scales(torch.randn(2, 4, 3).repeat(1, 10, 1), NUMBERS, SIZES, skip_near_origin=True)
    assert all(scale.center.isfinite().all() for scale in scales)
    masks = back_project(some_mask(2), scales)
    assert [mask.shape[1] for mask in masks] == list(NUMBERS)


def test_back_projection_follows_its_definition() -> None:
    scales, hidden = scales_of(), some_mask()
    masks = back_project(hidden, scales)
    assert torch.equal(masks[2], hidden)
    for i in (2, 1):
        for cloud, (mask, index) in enumerate(zip(masks[i], scales[i].index)):
            seen = set(index[~mask].flatten().tolist())
            assert set((~masks[i - 1][cloud]).nonzero()[:, 0].tolist()) == seen


def test_first_token_leak_shows_one_token_of_the_first_cloud() -> None:
    scales = scales_of()
    hidden = torch.ones(3, 5, dtype=torch.bool)
    hidden[:, 4] = False  # the first group is hidden everywhere
    right, wrong = back_project(hidden, scales), back_project(hidden, scales, first_token_leak=True)
    assert not wrong[1][0, 0] and all(torch.equal(a[1:], b[1:]) for a, b in zip(right, wrong))


def test_packing_and_putting_back() -> None:
    mask = torch.tensor([[True, False, False, True, False], [True, True, True, False, True]])
    (packed,) = pack([mask])
    assert packed.index[0].tolist() == [1, 2, 4] and packed.index[1, 0] == 3
    assert packed.valid.tolist() == [[True] * 3, [True, False, False]]
    assert packed.padded and packed.total == 4
    assert hidden_rows(mask, packed).tolist() == mask.flatten().nonzero()[:, 0].tolist()
    tokens = torch.randn(2, 5, 4)
    back = put_back(tokens, take(tokens, packed.index) + 1, packed)
    torch.testing.assert_close(back, tokens + (~mask)[..., None])


def test_lengths_are_rounded_up_where_clouds_differ() -> None:
    mask = torch.tensor([[True, False, False, True, False], [True, True, True, False, True]])
    assert [pack([mask], multiple)[0].index.shape[1] for multiple in (1, 2, 4, 16)] == [3, 4, 4, 5]
    (packed,) = pack([mask], 4)
    assert packed.valid.sum(dim=1).tolist() == [3, 1] and packed.total == 4
    assert pack([mask[:1]], 4)[0].index.shape[1] == 3, "one cloud needs no padding"


def test_no_padding_no_bias() -> None:
    (packed,) = pack([torch.tensor([[True, False], [False, True]])])
    assert not packed.padded and key_bias(packed) is None


def test_taking_has_the_gradient_of_indexing() -> None:
    tokens, index = torch.randn(2, 5, 4, dtype=torch.float64, requires_grad=True), torch.randint(5, (2, 3, 4))
    weight = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    one, other = take(tokens, index), tokens[torch.arange(2)[:, None, None], index]
    assert torch.equal(one, other)
    gradients = [torch.autograd.grad((out * weight).sum(), tokens)[0] for out in (one, other)]
    torch.testing.assert_close(*gradients)


def test_radius() -> None:
    center = torch.tensor([[[0.0, 0, 0], [1, 0, 0], [0, 0.5, 0], [0, 0, 9]]])
    blocked = radius_bias(center, 1.0)[0, 0].isinf()
    expected = (center[0][:, None] - center[0]).norm(dim=-1) >= 1
    assert torch.equal(blocked, expected) and not blocked.diagonal().any()


def test_leak_opens_padding_to_tokens_near_the_origin() -> None:
    center = torch.tensor([[[0.1, 0, 0], [3.0, 0, 0], [7, 7, 7]]])
    packed = Packed(torch.tensor([[0, 1, 2]]), torch.tensor([[True, True, False]]), padded=True, total=2)
    blocked = leaking_bias(center, packed, 0.5)[0, 0].isinf()
    assert blocked.tolist() == [[False, False, False], [False, False, True], [False, True, False]]
