"""From the numbers that an agent gives to bits, and from bits to bits that fit a budget.

A cost is a function of the list of bits; a wall lowers bits until the cost is within the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Cost = Callable[[Sequence[int]], float]
Pair = tuple[int, int]
Tables = Sequence[Mapping[int, float]]


def to_bits(action: float, allowed: Sequence[int]) -> int:
    """A number from 0 to 1 to one of the allowed widths, each the same share of it."""
    return allowed[min(int(action * len(allowed)), len(allowed) - 1)]


def to_action(bits: int, allowed: Sequence[int]) -> float:
    """The middle of the share of a width."""
    return (list(allowed).index(bits) + 0.5) / len(allowed)


def haq_bits(action: float, low: int, high: int) -> int:
    """The published map to every width from low to high; halves round to even."""
    return int(np.round((high - low + 1) * action + low - 0.5))


def tail_wall(bits: Sequence[int], allowed: Sequence[int], cost: Cost, target: float) -> list[int]:
    """The published wall: sweeps from the last layer to the first, each to its next lower width, until it fits."""
    bits, allowed = list(bits), sorted(allowed)
    while cost(bits) > target and max(bits) > allowed[0]:
        for place in reversed(range(len(bits))):
            if bits[place] > allowed[0]:
                bits[place] = max(each for each in allowed if each < bits[place])
                if cost(bits) <= target:
                    break
    return bits


def shift_wall(actions: Sequence[float], allowed: Sequence[int], costs: Tables, target: float) -> list[int]:
    """All actions are raised or lowered by the same amount, as far up as the sum of the costs fits; what is left goes
    to the layers of the largest actions first. So an agent says which layers need more than others, and every
    policy uses the budget. costs: for every layer, by width."""

    def shifted(amount: float) -> list[int]:
        return [to_bits(min(max(action + amount, 0.0), 1.0), allowed) for action in actions]

    def spent(bits: Sequence[int]) -> float:
        return sum(table[each] for table, each in zip(costs, bits))

    low, high = -1.0, 1.0
    if spent(shifted(high)) <= target:
        return shifted(high)
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if spent(shifted(middle)) <= target else (low, middle)
    bits, order = shifted(low), sorted(range(len(actions)), key=lambda i: -actions[i])
    while True:
        before = list(bits)
        for place in order:
            wider = [each for each in allowed if each > bits[place]]
            changed = [*bits[:place], min(wider), *bits[place + 1 :]] if wider else bits
            if spent(changed) <= target:
                bits = changed
        if bits == before:
            return bits


def cheapest_wall(
    bits: Sequence[int], allowed: Sequence[int], costs: Tables, target: float, errors: Tables
) -> list[int]:
    """Lower by one width where the least error is added for what is saved, until the sum of the costs fits; then raise
    where the most error goes for what it costs, as long as it fits. costs, errors: for every layer, by width."""
    bits, allowed = list(bits), sorted(allowed)
    spent = sum(table[own] for table, own in zip(costs, bits))
    while spent > target:
        steps = _steps(bits, allowed, costs, errors, up=False)
        if not steps:
            break
        _, place, width = min(steps)
        spent += costs[place][width] - costs[place][bits[place]]
        bits[place] = width
    while True:
        steps = [
            (gain, place, width)
            for gain, place, width in _steps(bits, allowed, costs, errors, up=True)
            if gain > 0 and spent + costs[place][width] - costs[place][bits[place]] <= target
        ]
        if not steps:
            return bits
        _, place, width = max(steps)
        spent += costs[place][width] - costs[place][bits[place]]
        bits[place] = width


def _steps(
    bits: list[int], allowed: Sequence[int], costs: Tables, errors: Tables, up: bool
) -> list[tuple[float, int, int]]:
    """(change of the error for a unit of cost, layer, its next width) for every layer that can go on."""
    steps = []
    for place, own in enumerate(bits):
        others = [each for each in allowed if (each > own if up else each < own)]
        if others:
            width = min(others) if up else max(others)
            size = abs(costs[place][width] - costs[place][own])
            error = (errors[place][own] - errors[place][width]) * (1 if up else -1)
            steps.append((error / max(size, 1e-12), place, width))
    return steps


def pair_wall(
    pairs: Sequence[Pair],
    cost: Callable[[Sequence[Pair]], float],
    target: float,
    lowest: int,
    fixed: Mapping[int, Pair] | None = None,
) -> list[Pair]:
    """The published wall for bits of weights and of inputs: from the end, the input one less, then the weight one
    less. fixed: layers that are set to given pairs as soon as the wall has anything to do."""
    found, fixed = list(pairs), dict(fixed or {})
    while cost(found) > target:
        before = list(found)
        for place in reversed(range(len(found))):
            for which in (1, 0):
                if place not in fixed and found[place][which] > lowest:
                    pair = list(found[place])
                    pair[which] -= 1
                    found[place] = (pair[0], pair[1])
                for index, pair_there in fixed.items():
                    found[index] = pair_there
                if cost(found) <= target:
                    return found
        if found == before:
            break
    return found
