"""The point operations on NVIDIA GPUs: CUDA kernels, compiled at first use without a toolkit (see docs/gpu.md)."""

import logging
from collections.abc import Callable
from typing import Any

import torch

from extensions.build import BuildError


def register() -> dict[str, Callable[..., Any]]:
    """The kernels by operator name; none, and one line in the log that says why, if they cannot be had.

    All are compiled and loaded here, for the current device, so that nothing fails later: seconds once, then from the
    cache.
    """
    from .compile import SOURCES
    from .kernels import KERNELS
    from .launch import load

    try:
        if not torch.cuda.is_available():
            raise BuildError("there is no CUDA device")
        for source in SOURCES:
            load(source, torch.cuda.current_device())
    except (BuildError, RuntimeError, OSError) as error:
        logging.getLogger("pointsmith.extensions").warning(
            "point operations on the GPU run in plain PyTorch, many times slower than compiled: %s", error
        )
        return {}
    return KERNELS
