"""What to build and what to compare for each kind of fixture: folder -> kind -> function of the fixture."""

from collections.abc import Callable

from tests.golden.adapters import (
    any2point,
    haq_data,
    m2ae,
    mae,
    mae_data,
    peft,
    point_transformer,
    quantize,
    sa3d,
    samplenet,
    segmentation,
    sim,
)
from tests.golden.fixtures import Fixture

ADAPTERS: dict[str, dict[str, Callable[[Fixture], None]]] = {
    "m2ae": {**m2ae.ADAPTERS, **sa3d.ADAPTERS},
    "mae": {**mae.ADAPTERS, **mae_data.ADAPTERS, **sa3d.ADAPTERS, **segmentation.MAE},
    "haq": {**segmentation.HAQ, **point_transformer.ADAPTERS, **haq_data.ADAPTERS, **quantize.ADAPTERS},
    "sampling": {**sim.ADAPTERS, **samplenet.ADAPTERS},
    "peft": {**any2point.ADAPTERS, **peft.ADAPTERS},
}
ELSEWHERE = ("ops",)  # folders that a test file of their own covers
