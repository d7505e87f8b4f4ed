"""What to build and what to compare for each kind of fixture: folder -> kind -> function of the fixture."""

from collections.abc import Callable

from tests.golden.adapters import m2ae, mae, mae_data, samplenet, segmentation
from tests.golden.fixtures import Fixture

ADAPTERS: dict[str, dict[str, Callable[[Fixture], None]]] = {
    "m2ae": m2ae.ADAPTERS,
    "mae": {**mae.ADAPTERS, **mae_data.ADAPTERS, **segmentation.MAE},
    "haq": {**segmentation.HAQ},
    "sampling": {**samplenet.ADAPTERS},
}
ELSEWHERE = ("ops",)  # folders that a test file of their own covers
