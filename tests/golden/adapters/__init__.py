"""What to build and what to compare for each kind of fixture: folder -> kind -> function of the fixture."""

from collections.abc import Callable

from tests.golden.adapters import any2point, m2ae, mae, mae_data, segmentation
from tests.golden.fixtures import Fixture

ADAPTERS: dict[str, dict[str, Callable[[Fixture], None]]] = {
    "m2ae": m2ae.ADAPTERS,
    "mae": {**mae.ADAPTERS, **mae_data.ADAPTERS, **segmentation.MAE},
    "peft": {**any2point.ADAPTERS},
    "haq": {**segmentation.HAQ},
}
ELSEWHERE = ("ops",)  # folders that a test file of their own covers
