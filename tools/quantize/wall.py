"""From the numbers that an agent gives to bits, and from bits to bits that fit a budget.

A cost is a function of the list of bits; a wall lowers bits until the cost is within the target.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

Cost = Callable[[Sequence[int]], float]
Pair = tuple[int, int]


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


def cheapest_wall(
    bits: Sequence[int],
    allowed: Sequence[int],
    cost: Cost,
    target: float,
    errors: Sequence[Mapping[int, float]],
    fill: bool,
) -> list[int]:
    """Lower by one width where the least error is added for what is saved, until it fits. fill: then raise where the
    most error goes for what it costs, as long as it fits. errors: for every layer, width -> error."""
    bits, allowed = list(bits), sorted(allowed)
    while cost(bits) > target:
        steps = _steps(bits, allowed, cost, errors, up=False)
        if not steps:
            break
        _, place, width = min(steps)
        bits[place] = width
    while fill:
        steps = [step for step in _steps(bits, allowed, cost, errors, up=True) if _changed(bits, step, cost) <= target]
        gain, place, width = max(steps, default=(0.0, 0, 0))
        if gain <= 0:
            break
        bits[place] = width
    return bits


def _changed(bits: list[int], step: tuple[float, int, int], cost: Cost) -> float:
    return cost([step[2] if place == step[1] else each for place, each in enumerate(bits)])


def _steps(
    bits: list[int], allowed: Sequence[int], cost: Cost, errors: Sequence[Mapping[int, float]], up: bool
) -> list[tuple[float, int, int]]:
    """(change of the error for a unit of cost, layer, its next width) for every layer that can go on."""
    now, steps = cost(bits), []
    for place, own in enumerate(bits):
        others = [each for each in allowed if (each > own if up else each < own)]
        if not others:
            continue
        width = min(others) if up else max(others)
        size = abs(_changed(bits, (0.0, place, width), cost) - now)
        steps.append((abs(errors[place][own] - errors[place][width]) / max(size, 1e-12), place, width))
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
