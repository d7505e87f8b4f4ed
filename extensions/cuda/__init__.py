"""The point operations on NVIDIA GPUs: plain CUDA kernels, compiled at first use without a toolkit (see docs/gpu.md)."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from extensions.build import BuildError


def register() -> dict[str, Callable[..., Any]]:
    """The kernels by operator name; none, and one line in the log that says why, if they cannot be compiled.

    All are compiled here, for the current device, so that nothing can fail later: seconds once, then from the cache.
    """
    from .compile import SOURCES, machine_code
    from .kernels import KERNELS
    from .launch import architecture

    try:
        arch = architecture(torch.cuda.current_device())
        for source in SOURCES:
            machine_code(source, arch)
    except (BuildError, RuntimeError) as error:
        logging.getLogger("pointsmith.extensions").warning(
            "point operations on the GPU run in plain PyTorch, many times slower than compiled: %s", error
        )
        return {}
    return KERNELS
