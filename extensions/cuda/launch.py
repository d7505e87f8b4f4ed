"""Launches kernels through the driver, in torch's own context and on its current stream.

Nothing waits for the device and nothing is allocated, so a launch can be captured in a CUDA graph. The first use of a
source on a device compiles and loads it: do that before a capture begins (one warm-up call, as torch asks for anyway).
"""

import ctypes
import functools
import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .compile import machine_code

Argument = Tensor | int | float | ctypes.c_double | None


def launch(source: str, kernel: str, blocks: int, threads: int, *args: Argument, cooperative: bool = False) -> None:
    """Run a kernel of a source on the device of its first tensor.

    Tensors go in as pointers (None as null), int as 32 bits, float as float32. `cooperative`: all blocks run at the
    same time, or the launch fails.
    """
    if blocks == 0:
        return
    device = next(arg.device for arg in args if isinstance(arg, Tensor))
    with torch.cuda.device(device):
        function = _function(source, kernel, _use(torch.cuda.current_device()))
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        values = pack(args)
        pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
        shape = (blocks, 1, 1, threads, 1, 1, 0)
        if cooperative:
            _call("cuLaunchCooperativeKernel", function, *shape, stream, pointers, about=kernel)
        else:
            _call("cuLaunchKernel", function, *shape, stream, pointers, None, about=kernel)


def load(source: str, device: int) -> None:
    """Compile a source and load it on a device now, not at its first launch."""
    with torch.cuda.device(device):
        _module(source, _use(device))


def multiprocessors(device: torch.device) -> int:
    """How many blocks of any size can surely run at the same time."""
    return torch.cuda.get_device_properties(device).multi_processor_count


def architecture(device: int) -> str:
    """The compiler's name of a device's architecture, such as "sm_90"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"sm_{major}{minor}"


def pack(args: Sequence[Argument]) -> list[Any]:
    """Arguments as C values."""
    return [_c_value(arg) for arg in args]


def _c_value(arg: Argument) -> Any:
    if isinstance(arg, Tensor):
        return ctypes.c_void_p(arg.data_ptr())
    if arg is None:
        return ctypes.c_void_p()
    if isinstance(arg, int):
        return ctypes.c_int(arg)
    return ctypes.c_float(arg) if isinstance(arg, float) else arg


@functools.cache
def _driver() -> ctypes.CDLL:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def _call(name: str, *args: Any, about: str = "") -> None:
    code = getattr(_driver(), name)(*args)
    if code:
        text = ctypes.c_char_p()
        _driver().cuGetErrorString(code, ctypes.byref(text))
        reason = (text.value or b"unknown error").decode()
        raise RuntimeError(f"CUDA: {name} {about}: {reason} (error {code})".replace(" :", ":"))


def _use(device: int) -> int:
    """The current device, its context made current: a thread that has called nothing of CUDA yet has none."""
    _call("cuCtxSetCurrent", _context(device))
    return device


@functools.cache
def _context(device: int) -> ctypes.c_void_p:
    """The context that torch uses on a device."""
    handle, context = ctypes.c_int(), ctypes.c_void_p()
    _call("cuInit", 0)
    _call("cuDeviceGet", ctypes.byref(handle), device)  # numbered as torch does
    _call("cuDevicePrimaryCtxRetain", ctypes.byref(context), handle)
    return context


@functools.cache
def _function(source: str, kernel: str, device: int) -> ctypes.c_void_p:
    function = ctypes.c_void_p()
    _call("cuModuleGetFunction", ctypes.byref(function), _module(source, device), kernel.encode(), about=kernel)
    return function


@functools.cache
def _module(source: str, device: int) -> ctypes.c_void_p:
    """A source, compiled and loaded into the current context, which is that of the device; stays for good."""
    module = ctypes.c_void_p()
    code = machine_code(source, architecture(device))
    _call("cuModuleLoadData", ctypes.byref(module), code, about=source)
    return module
