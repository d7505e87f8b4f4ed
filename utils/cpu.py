"""Process set-up that makes training on a CPU faster, results unchanged; which processors have units for bfloat16.

POINTSMITH_TUNE=0 switches the set-up off.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # names of glibc's malloc.h
EXACT = 1e-6  # relative error of a float32 product; bfloat16 would be at 3e-3


def tune() -> list[str]:
    """Keep freed memory, take the faster of two exact matrix products; says what it did."""
    if os.environ.get("POINTSMITH_TUNE") == "0":
        return ["off (POINTSMITH_TUNE=0)"]
    done = []
    if _keep_memory():
        done.append("allocator keeps memory")
    if _use_onednn():
        done.append("float32 products by oneDNN")
    return done


def emulates_bfloat16() -> bool:
    """Whether bfloat16 products are put together from float32 here, hundreds of times slower than float32 ones."""
    return "flags" in _cpuinfo() and not has_bfloat16(torch.device("cpu"))


@functools.cache
def has_bfloat16(device: torch.device) -> bool:
    """Whether a device is known to have units for bfloat16 products."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    units = ("avx512_bf16", "amx_bf16", "avx_ne_convert")
    return device.type == "cpu" and any(unit in _cpuinfo() for unit in units)


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.is_file() else ""


def _keep_memory() -> bool:
    """Large tensors are reused instead of being mapped, zeroed and unmapped each time (glibc only)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    settings = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, (1 << 31) - 1), (M_TOP_PAD, 256 << 20))
    return sum(mallopt(name, value) for name, value in settings) == len(settings)


def _use_onednn() -> bool:
    """MKL takes a slow path on AMD processors; oneDNN does not. Its "bf16" setting is true float32 where the processor
    has no AMX unit, which a product against float64 confirms. The choice depends on the processor alone, so that a run
    continued on the same machine computes the same bits."""
    text = _cpuinfo()
    matmul = getattr(torch.backends.mkldnn, "matmul", None)
    if "AuthenticAMD" not in text or "amx" in text or matmul is None or not hasattr(matmul, "fp32_precision"):
        return False
    before = matmul.fp32_precision
    matmul.fp32_precision = "bf16"
    if _product_error() < EXACT:
        return True
    matmul.fp32_precision = before
    return False


def _product_error() -> float:
    """Relative error of a float32 matrix product."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=generator) for _ in range(2))
    exact = left.double() @ right.double()
    return float((left @ right - exact).norm() / exact.norm())
