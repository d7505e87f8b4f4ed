"""Which processors have units for bfloat16."""

from collections.abc import Iterator

import pytest
import torch

from utils import cpu

CPU = torch.device("cpu")
INFO = {  # what /proc/cpuinfo says: (units, products are emulated)
    "flags : fma avx2 avx512f": (False, True),
    "flags : fma avx512f avx512_bf16": (True, False),
    "flags : amx_bf16 amx_tile": (True, False),
    "": (False, False),  # not known
}


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    cpu.has_bfloat16.cache_clear()
    yield
    cpu.has_bfloat16.cache_clear()


@pytest.mark.parametrize("info", INFO)
def test_units_for_bfloat16(info: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu, "_cpuinfo", lambda: info)
    assert (cpu.has_bfloat16(CPU), cpu.emulates_bfloat16()) == INFO[info]
    assert not cpu.has_bfloat16(torch.device("meta"))
