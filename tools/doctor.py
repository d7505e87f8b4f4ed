"""What works here and what to do about the rest: python -m tools.doctor

Packages are imported in processes of their own, so that one that breaks or crashes is a line and not the end. This file
itself needs nothing but Python. Exit code 0 when the core works, else 1.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REQUIREMENTS = ROOT / "requirements.txt"
MODULES = {"pyyaml": "yaml", "scikit-learn": "sklearn"}  # packages imported under another name
OPTIONAL = {"torchvision": "frozen 2D towers", "timm": "frozen 2D towers"}  # package: what needs it
OLDEST_PYTHON = (3, 10)
LITTLE_SPACE = 5  # GiB
IMPORT_LIMIT = 120  # seconds
Finding = tuple[str, str]  # OK, NOTE (something optional), FAIL (the core needs it); and a sentence

PROBE = """
import importlib, importlib.metadata, importlib.util, sys
package, module = sys.argv[1:]
if importlib.util.find_spec(module) is None:
    sys.exit(3)
loaded = importlib.import_module(module)
try:
    version = importlib.metadata.version(package)
except importlib.metadata.PackageNotFoundError:
    version = "?"
print("version", getattr(loaded, "__version__", version))
"""

MACHINE = """
import torch
print(f"{torch.get_num_threads()} threads for PyTorch (OMP_NUM_THREADS sets them)")
for index in range(torch.cuda.device_count()):
    gpu = torch.cuda.get_device_properties(index)
    print(f"cuda:{index} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, compute capability {gpu.major}.{gpu.minor}")
if torch.backends.mps.is_available():
    print("mps, the GPU of this Mac")
elif not torch.cuda.is_available():
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "CPU only"
    print(f"no GPU that PyTorch sees (this PyTorch is built for {build})")
import extensions, tools.cli
from extensions import ops
for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
    cloud = torch.rand(2, 64, 3, device=device)
    patches, centres, _ = ops.group(cloud, 8, 4)
    ops.chamfer_distance(patches.flatten(0, 1), cloud[:1].expand(16, -1, -1)).item()
    print(f"operations: grouping and Chamfer distance work on {device}")
status = getattr(extensions, "status", None)  # where native operations are built, their package says which
found = status() if status else "plain PyTorch"
for line in found.items() if isinstance(found, dict) else [found] if isinstance(found, str) else found:
    print("operations:", *(line if isinstance(line, tuple) else [line]))
"""


def check_python() -> Iterator[Finding]:
    fine = sys.version_info[:2] >= OLDEST_PYTHON
    advice = "" if fine else f": too old, use {'.'.join(map(str, OLDEST_PYTHON))} or newer"
    yield "OK" if fine else "FAIL", f"python {platform.python_version()}, {sys.executable}{advice}"


def check_packages() -> Iterator[Finding]:
    """What requirements.txt names, and the least version it asks for."""
    pattern = re.compile(r"^([A-Za-z0-9_-]+)(?:>=([\d.]+))?", re.MULTILINE)
    wanted = pattern.findall(REQUIREMENTS.read_text(encoding="utf-8"))
    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(lambda pair: check_package(*pair), wanted)


def check_package(package: str, least: str = "") -> Finding:
    bad = "NOTE" if package in OPTIONAL else "FAIL"
    needed = f"; only {OPTIONAL[package]} need it" if package in OPTIONAL else ""
    code, lines, error = run_python(PROBE, package, MODULES.get(package, package))
    install = f"pip install '{package}{'>=' + least if least else ''}'"
    if code == 3:
        return bad, f"{package}: not installed{needed}; {install}"
    version = next((line.removeprefix("version ") for line in lines if line.startswith("version ")), "")
    if code or not version:
        return bad, f"{package}: present but broken: {error}{needed}; {advice(package)}"
    if version != "?" and numbers(version) < numbers(least):
        return bad, f"{package} {version}: too old, {least} or newer is needed; {install}"
    return "OK", f"{package} {version}"


def advice(package: str) -> str:
    if package in OPTIONAL:
        return "install a torchvision that belongs to this torch: pip install --force-reinstall torch torchvision"
    return f"pip install --force-reinstall {package}"


def numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:2])


def run_python(code: str, *arguments: str) -> tuple[int, list[str], str]:
    """Exit code, printed lines, and the last line of what went wrong."""
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=ROOT, timeout=IMPORT_LIMIT)
    except subprocess.TimeoutExpired:
        return 1, [], f"did not end within {IMPORT_LIMIT} s"
    errors = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    crash = f"crashed with signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    return done.returncode, done.stdout.splitlines(), crash if done.returncode < 0 or not errors else errors[-1]


def check_machine() -> Iterator[Finding]:
    """Processor, GPUs, and whether the operations and the command line of the project work on them."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield "OK", f"{processor()}, {os.cpu_count()} cores, {usable} for this process"
    failed, lines, error = run_python(MACHINE)
    yield from (("OK", line) for line in lines)
    if failed:
        yield "FAIL", f"the project itself: {error}"


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(errors="replace") if cpuinfo.is_file() else ""
    model = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return model[1] if model else platform.processor() or platform.machine()


def check_data() -> Iterator[Finding]:
    """Where data are looked for, and what lies there."""
    given = os.environ.get("POINT_DATA_ROOT")
    root = Path(given or "data").expanduser()
    where = f"{root.resolve()} ({'POINT_DATA_ROOT' if given else 'default; POINT_DATA_ROOT sets another'})"
    if not root.is_dir():
        yield "NOTE", f"data: no folder {where}; synthetic data need none"
        return
    names = sorted(entry.name + "/" * entry.is_dir() for entry in root.iterdir() if not entry.name.startswith("."))
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    yield "OK" if names else "NOTE", f"data: {where}: {shown or 'empty'}"


def check_disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 2**30
    little = (
        f": little; checkpoints of a run take some, {LITTLE_SPACE} GiB are comfortable" if free < LITTLE_SPACE else ""
    )
    yield "NOTE" if little else "OK", f"{free:.0f} GiB free in {Path.cwd()}{little}"
    folder = Path("experiments")
    place = folder if folder.exists() else Path(".")
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        yield "FAIL", f"{folder.resolve()}: not writable ({error.strerror}); name another folder with --root"
    else:
        yield "OK", f"{folder.resolve()}: {'writable' if folder.exists() else 'not there yet, can be made'}"


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    check_python,
    check_packages,
    check_machine,
    check_data,
    check_disk,
)


def main() -> int:
    failed = 0
    for check in CHECKS:
        for state, text in check():
            print(f"{state:<4} {text}", flush=True)
            failed += state == "FAIL"
    print(f"the core does not work: {failed} problem(s), see FAIL above" if failed else "the core works")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
