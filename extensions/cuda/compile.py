"""Compiles the kernels for one GPU architecture and keeps the result.

CUDA wheels of torch bring NVRTC, the run-time compiler, so no toolkit is needed; without it `nvcc` is tried. Machine
code lies beside the compiled CPU kernels in the user's cache, under a name made of the sources, compiler and
architecture. Processes that start together may compile the same file; each moves it into place in one step.
"""

import contextlib
import ctypes
import ctypes.util
import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from extensions.build import BuildError, cache_folders

FOLDER = Path(__file__).parent
SOURCES = tuple(sorted(path.stem for path in FOLDER.glob("*.cu")))
# no contraction: a fused multiply-add would change last bits, and with them ties and neighbours
FLAGS = ("--fmad=false", "--std=c++17")
TIMEOUT = 300  # seconds


class Compiler(NamedTuple):
    """Turns a source (its name without ending) into machine code for an architecture such as "sm_90"."""

    version: str
    compile: Callable[[str, str, Sequence[str]], bytes]


def machine_code(source: str, arch: str) -> bytes:
    """The cubin of a source, from the cache or compiled now."""
    name = f"pointsmith-{source}-{arch}-{_key(source)}.cubin"
    for folder in cache_folders():
        with contextlib.suppress(OSError):
            return (folder / name).read_bytes()
    code = compiler().compile(source, arch, ())
    for folder in cache_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _write(folder / name, code)
            break
    return code


def _write(path: Path, content: bytes) -> None:
    """The file appears under its name only when it is complete."""
    with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as partial:
        partial.write(content)
    os.replace(partial.name, path)


def _key(source: str) -> str:
    digest = hashlib.sha256("\n".join([compiler().version, *FLAGS]).encode())
    for path in (FOLDER / "common.cuh", FOLDER / f"{source}.cu"):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def compiler() -> Compiler:
    """NVRTC if it is there, else nvcc."""
    found = nvrtc() or nvcc()
    if found is None:
        raise BuildError("neither NVRTC (pip package nvidia-cuda-nvrtc) nor nvcc was found")
    return found


@functools.cache
def nvcc() -> Compiler | None:
    """The compiler of the CUDA toolkit, if it is on PATH."""
    path = shutil.which("nvcc")
    if path is None:
        return None

    def compile_source(source: str, arch: str, extra: Sequence[str]) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            target = Path(folder) / "kernels.cubin"
            command = [path, "-cubin", f"-arch={arch}", *FLAGS, *extra, "-o", str(target), str(FOLDER / f"{source}.cu")]
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
            if done.returncode:
                raise BuildError(f"nvcc failed on {source}.cu for {arch}: {(done.stderr or done.stdout).strip()}")
            return target.read_bytes()

    shown = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=TIMEOUT).stdout
    return Compiler(shown, compile_source)


@functools.cache
def nvrtc() -> Compiler | None:
    """The run-time compiler, from the wheels beside torch or from the system."""
    library = next(filter(None, map(_load, _nvrtc_paths())), None)
    if library is None:
        return None
    library.nvrtcGetErrorString.restype = ctypes.c_char_p
    major, minor = ctypes.c_int(), ctypes.c_int()
    library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return Compiler(f"NVRTC {major.value}.{minor.value}", functools.partial(_compile_nvrtc, library))


def _nvrtc_paths() -> list[str]:
    """Where the library may be: wheels of torch's dependencies (Linux), torch itself (Windows), the system."""
    paths = []
    for package, patterns in (
        ("nvidia", ("*/lib/libnvrtc.so.*", "*/bin/nvrtc64_*.dll")),
        ("torch", ("lib/nvrtc64_*",)),
    ):
        spec = importlib.util.find_spec(package)
        for folder in (spec and spec.submodule_search_locations) or ():
            for pattern in patterns:
                paths += sorted(str(path) for path in Path(folder).glob(pattern) if "alt" not in path.name)
    system = ctypes.util.find_library("nvrtc")
    return [*paths, system] if system else paths


def _load(path: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(path)
    except OSError:
        return None


def _compile_nvrtc(library: ctypes.CDLL, source: str, arch: str, extra: Sequence[str]) -> bytes:
    program = ctypes.c_void_p()

    def call(name: str, *args: object) -> None:
        code = getattr(library, name)(*args)
        if code:
            log = _read(library, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog", program) if program else b""
            reason = log.rstrip(b"\0").decode(errors="replace").strip()
            error = library.nvrtcGetErrorString(code).decode()
            raise BuildError(f"NVRTC failed on {source}.cu for {arch}: {error} {reason}")

    text = (FOLDER / f"{source}.cu").read_bytes()
    options = [f"--gpu-architecture={arch}", f"--include-path={FOLDER}", *FLAGS, *extra]
    array = (ctypes.c_char_p * len(options))(*[option.encode() for option in options])
    call("nvrtcCreateProgram", ctypes.byref(program), text, f"{source}.cu".encode(), 0, None, None)
    try:
        call("nvrtcCompileProgram", program, len(options), array)
        return _read(library, "nvrtcGetCUBINSize", "nvrtcGetCUBIN", program)
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(library: ctypes.CDLL, size_function: str, function: str, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    getattr(library, size_function)(program, ctypes.byref(size))
    buffer = ctypes.create_string_buffer(size.value)
    getattr(library, function)(program, buffer)
    return buffer.raw
