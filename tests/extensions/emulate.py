"""Stands in for the launches of `extensions.cuda` with kernels that run on the CPU (see cuda_emulator.h)."""

import ctypes
import functools
import re
import subprocess
import tempfile
from pathlib import Path

import torch

from extensions import build
from extensions.cuda.compile import FOLDER
from extensions.cuda.launch import Argument, pack

HEADER = Path(__file__).with_name("cuda_emulator.h")
ENTRY = """
extern "C" void emulate_{name}(unsigned blocks, unsigned threads, void** values, bool cooperative, unsigned seed)
{{
    emulator::launch({name}, blocks, threads, values, cooperative, seed);
}}
"""
# signalling of a wrong address is left to the sanitizers where they exist for fibers; -O1 keeps the build short
FLAGS = ["-std=c++17", "-O1", "-ffp-contract=off", "-fPIC", "-shared", "-pthread", "-Wall", "-Werror"]
IGNORED = ["-Wno-unknown-pragmas", "-Wno-unused-function"]


@functools.cache
def library(source: str) -> ctypes.CDLL:
    """A source compiled as C++, with an entry for each of its kernels."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source}.cpp"
        path.write_text(f'#include "{HEADER}"\n#include "{FOLDER / source}.cu"\n')
        command = [build.compiler(), *FLAGS, *IGNORED]
        expanded = subprocess.run([*command, "-E", str(path)], capture_output=True, text=True, check=True).stdout
        names = re.findall(r'extern "C"\s+void\s+(\w+)\(', expanded)
        path.write_text(path.read_text() + "".join(ENTRY.format(name=name) for name in names))
        target = path.with_suffix(".so")
        done = subprocess.run([*command, str(path), "-o", str(target)], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return ctypes.CDLL(str(target))


def launch(
    source: str, kernel: str, blocks: int, threads: int, *args: Argument, cooperative: bool = False, seed: int = 0
) -> None:
    """As `extensions.cuda.launch.launch`, on CPU tensors."""
    values = pack(args)
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    getattr(library(source), f"emulate_{kernel}")(blocks, threads, pointers, cooperative, seed)


def multiprocessors(device: torch.device) -> int:
    """A small device, so that several launches are needed sometimes."""
    return 5
