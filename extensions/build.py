"""Compiles the C++ kernels once for each user, machine and version, and finds them again.

The library lies in ${POINTSMITH_CACHE:-${XDG_CACHE_HOME:-~/.cache}/pointsmith}, or in the folder for temporary files
where that cannot be written, under a name made of the sources, the compiler, its flags and the CPU. Processes that
start together build once: the first takes a lock, and the finished file moves into place in one step.
`python -m extensions.build` does it ahead of time and checks every operation.
"""

import contextlib
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCES = Path(__file__).parent / "csrc"
# no contraction: a fused multiply-add would change last bits, and with them ties and neighbours
FLAGS = ["-std=c++17", "-O3", "-ffp-contract=off", "-fno-math-errno", "-fPIC", "-shared", "-Wno-psabi"]
TUNE = "-march=native" if platform.machine().lower() in ("x86_64", "amd64") else "-mcpu=native"
# tried in this order; what is in $POINTSMITH_CXXFLAGS comes last and wins
OPTIONAL = [[TUNE, "-fopenmp"], [TUNE], ["-fopenmp"], []]
TIMEOUT = 300  # seconds


class BuildError(RuntimeError):
    """Why there is no compiled library: one line."""


@functools.cache
def compiler() -> str:
    """The C++ compiler: $CXX, or the first of the usual names."""
    wanted = os.environ.get("CXX")
    found = next(filter(None, map(shutil.which, [wanted] if wanted else ["g++", "clang++", "c++"])), None)
    if found is None:
        missing = f"CXX={wanted} is not there" if wanted else "no C++ compiler (g++ or clang++) on PATH"
        raise BuildError(f"{missing}; install one, then `python -m extensions.build` checks it")
    return found


@functools.cache
def library() -> Path:
    """Path of the compiled library, built now if need be."""
    name = f"pointsmith-{_key()}.so"
    for folder in cache_folders():
        if (folder / name).is_file():
            return folder / name
    for folder in cache_folders():
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with _lock(folder / f"{name}.lock"):
                if not (folder / name).is_file():
                    _compile(folder / name)
            return folder / name
    raise BuildError(f"none of {[str(folder) for folder in cache_folders()]} can be written; set POINTSMITH_CACHE")


def cache_folders() -> list[Path]:
    """Where the library may lie, best first; a folder that somebody else owns is left out."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    best = Path(os.environ.get("POINTSMITH_CACHE") or Path(cache) / "pointsmith")
    user = os.getuid() if hasattr(os, "getuid") else ""
    spare = Path(tempfile.gettempdir()) / f"pointsmith-{user}"
    return [folder for folder in (best, spare) if not folder.exists() or folder.stat().st_uid == (user or 0)]


def _key() -> str:
    """What the library depends on, as a short hash."""
    digest = hashlib.sha256()
    for source in sorted(SOURCES.glob("*.[ch]*")):
        digest.update(source.name.encode() + source.read_bytes())
    version = subprocess.run([compiler(), "--version"], capture_output=True, text=True, timeout=TIMEOUT).stdout
    digest.update("\n".join([version, *FLAGS, str(OPTIONAL), *_extra_flags(), platform.machine(), _cpu()]).encode())
    return digest.hexdigest()[:16]


def _extra_flags() -> list[str]:
    return os.environ.get("POINTSMITH_CXXFLAGS", "").split()


def _cpu() -> str:
    """The instruction sets of this CPU, as far as the system tells."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return "\n".join(dict.fromkeys(line for line in lines if line.startswith(("flags", "Features", "model name"))))
    return platform.processor()


def _compile(target: Path) -> None:
    """Try the optional flags in turn; the library appears under its name only when it is complete."""
    sources = [str(source) for source in sorted(SOURCES.glob("*.cpp")) if source.stem != "sanitize_main"]
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    message = ""
    for optional in OPTIONAL:
        command = [compiler(), *FLAGS, *optional, *_extra_flags(), *sources, "-o", str(partial)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        if done.returncode == 0:
            os.replace(partial, target)
            return
        lines = done.stderr.splitlines() or [f"exit code {done.returncode}"]
        message = next((line for line in lines if "error" in line), lines[-1]).strip()
    partial.unlink(missing_ok=True)
    raise BuildError(f"{compiler()} failed: {message}; `python -m extensions.build` tries again")


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time, where the system has such locks."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    """Build, check every operation against the reference, print a table; 1 if anything is amiss."""
    import time

    import torch

    from extensions import library as operators
    from extensions import selfcheck

    start = time.perf_counter()
    try:
        path = library()
        print(f"{path} ({time.perf_counter() - start:.1f} s)")
    except BuildError as error:
        print(f"not compiled: {error}")
    good = True
    print(f"{'operation':28}{'device':8}{'path':10}check")
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for name in operators.SCHEMAS:
            compiled = name in operators.kernels(device)
            verdict = ("ok" if selfcheck.agrees(name, device) else "WRONG") if compiled else "-"
            print(f"{name:28}{device:8}{'compiled' if compiled else 'PyTorch':10}{verdict}")
            good &= verdict == "ok"
    return 0 if good else 1


if __name__ == "__main__":
    raise SystemExit(main())
