"""What to build and what to compare for each kind of fixture: folder -> kind -> function of the fixture."""

from collections.abc import Callable

from tests.golden.adapters import m2ae, mae, mae_data, peft, segmentation
from tests.golden.fixtures import Fixture

ADAPTERS: dict[str, dict[str, Callable[[Fixture], None]]] = {
    "m2ae": m2ae.ADAPTERS,
    "mae": {**mae.ADAPTERS, **mae_data.ADAPTERS, **segmentation.MAE},
    "peft": {**peft.ADAPTERS},
    "haq": {**segmentation.HAQ},
}
ELSEWHERE = ("ops",)  # folders that a test file of their own covers
