"""Walls: within the budget, never endless, never below the smallest width."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.quantize.wall import cheapest_wall, haq_bits, pair_wall, shift_wall, tail_wall, to_action, to_bits

ALLOWED = [2, 3, 4, 6, 8]


def test_every_width_has_its_share() -> None:
    assert [to_bits(a / 10, ALLOWED) for a in range(11)] == [2, 2, 3, 3, 4, 4, 6, 6, 8, 8, 8]
    assert [to_bits(to_action(bits, ALLOWED), ALLOWED) for bits in ALLOWED] == ALLOWED
    assert (haq_bits(0.0, 2, 8), haq_bits(1.0, 2, 8)) == (2, 8)


def test_the_seed_wall_ends_where_all_layers_have_the_most_bits() -> None:
    """Upstream's never did."""
    assert tail_wall([4, 4, 4], [2, 4], sum, 9) == [4, 2, 2]
    assert tail_wall([4, 4], [2, 4], sum, 1) == [2, 2]


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, 1000)), min_size=1, max_size=12), st.floats(0, 1))
def test_shifting_fits_and_uses_the_budget(layers: list[tuple[float, int]], share: float) -> None:
    actions = [action for action, _ in layers]
    costs = [{bits: float(bits * size) for bits in ALLOWED} for _, size in layers]
    low, high = (sum(table[bits] for table in costs) for bits in (2, 8))
    target = low + share * (high - low)
    bits = shift_wall(actions, ALLOWED, costs, target)
    spent = sum(table[each] for table, each in zip(costs, bits))
    assert spent <= target and set(bits) <= set(ALLOWED)
    for table, each in zip(costs, bits):  # nothing more fits
        wider = [other for other in ALLOWED if other > each]
        assert not wider or spent - table[each] + table[min(wider)] > target


def test_shifting_keeps_the_order_of_equal_layers() -> None:
    costs = [{bits: float(bits) for bits in ALLOWED}] * 4
    bits = shift_wall([0.1, 0.5, 0.3, 0.9], ALLOWED, costs, 16)
    assert bits[0] <= bits[2] <= bits[1] <= bits[3]


def test_the_cheapest_is_lowered_first_and_what_is_left_is_spent() -> None:
    costs = [{2: 2.0, 4: 4.0}, {2: 20.0, 4: 40.0}, {2: 2.0, 4: 4.0}]
    errors = [{2: 9.0, 4: 0.0}, {2: 1.0, 4: 0.0}, {2: 5.0, 4: 0.0}]
    assert cheapest_wall([4, 4, 4], [2, 4], costs, 28, errors) == [4, 2, 4]
    assert cheapest_wall([4, 4, 4], [2, 4], costs, 26, errors) == [4, 2, 2]
    assert cheapest_wall([2, 2, 2], [2, 4], costs, 26, errors) == [4, 2, 2]
    assert cheapest_wall([4, 4, 4], [2, 4], costs, 1, errors) == [2, 2, 2]


def test_pairs_end_when_nothing_can_be_lowered() -> None:
    def cost(pairs) -> float:
        return float(torch.tensor(pairs).sum())

    assert pair_wall([(8, 8), (8, 8)], cost, 0, 2) == [(2, 2), (2, 2)]
    assert pair_wall([(8, 8), (8, 8)], cost, 30, 2) == [(8, 8), (7, 7)]


@pytest.mark.parametrize("wall", [tail_wall])
def test_what_fits_stays(wall) -> None:
    assert wall([3, 8, 2], ALLOWED, sum, 13) == [3, 8, 2]
