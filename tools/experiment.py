"""The folder of a run: what was asked, on which machine, and what came out. Never silently overwritten."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from utils import dist
from utils.config import dump_config, to_plain
from utils.errors import UserError, first_line

LAST, BEST, LOCK = "ckpt-last.pth", "ckpt-best.pth", ".lock"


class Experiment:
    """`root/<config stem>/<exp_name>/`. Only the first process writes; the others know the paths. One run at a time."""

    def __init__(self, root: str, config_path: str, exp_name: str, *, resume: bool = False, overwrite: bool = False):
        """Looks, and writes nothing yet: a new folder, or with `resume` the one that is there."""
        self.folder = folder = Path(root) / Path(config_path).stem / exp_name
        self.last, self.best = folder / LAST, folder / BEST
        self.taken = folder.is_dir() and any(folder.iterdir())
        self.resume = resume
        if resume and not self.last.is_file():
            raise UserError(f"{folder}: nothing to resume, {LAST} is not there; leave out --resume to start a new run")
        if self.taken and not resume and not overwrite:
            raise UserError(
                f"{folder}: exists already; continue it with --resume, set it aside with --overwrite, "
                "or choose another --exp_name"
            )

    def open(self) -> None:
        """Make the folder; an old one that is not continued is kept under another name."""
        dist.barrier()  # every process has looked before the first one writes
        if dist.is_main():
            if self.taken and not self.resume:
                self._lock()  # its run may be alive
                self.folder.rename(f"{self.folder}.replaced-{time.strftime('%Y%m%d-%H%M%S')}")
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock()
            for unfinished in self.folder.glob(".*.tmp"):  # a killed run was writing them
                unfinished.unlink()
        dist.barrier()

    def _lock(self) -> None:
        """Keep other runs out until this process ends, however it ends."""
        try:
            import fcntl
        except ImportError:  # Windows has no such locks
            return
        self.lock = open(self.folder / LOCK, "a")  # noqa: SIM115  # open, and so locked, as long as the run is
        try:
            fcntl.lockf(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError) as error:
            raise UserError(
                f"{self.folder}: another run is writing there; stop it first, or choose another --exp_name"
            ) from error
        except OSError:  # nor have some file systems
            return

    def record_start(self, config: Mapping[str, Any], seed: int, start: str) -> None:
        """What is needed to run it again: resolved configuration, command line, environment."""
        if not dist.is_main():
            return
        (self.folder / "config.yaml").write_text(dump_config(config), encoding="utf-8")
        with open(self.folder / "command.txt", "a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')}  python {shlex.join(sys.argv)}\n")
        self.write_json(
            "environment.json", environment() | {"seed": seed, "start": start, "config_hash": config_hash(config)}
        )

    def read_json(self, name: str) -> dict[str, Any]:
        path = self.folder / name
        try:
            return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError as error:
            raise UserError(f"{path}: damaged ({first_line(error)}); start a new run with --ckpts") from error

    def write_json(self, name: str, value: Any) -> None:
        if dist.is_main():
            temporary = self.folder / f".{name}.tmp"
            temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
            os.replace(temporary, self.folder / name)


def config_hash(config: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(to_plain(config), sort_keys=True).encode()).hexdigest()[:12]


def environment() -> dict[str, Any]:
    """Versions, machine and commit."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "processes": dist.world_size(),
        "commit": _commit(),
    }


def machine() -> str:
    """The processor, and the GPU where one is in use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        models = [line.split(":")[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        name = models[0] if models else name
    gpu = f" + {torch.cuda.get_device_name()}" if torch.cuda.is_initialized() else ""
    return f"{name}, {os.cpu_count()} cores{gpu}"


def _commit() -> str | None:
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    try:
        return subprocess.run(git, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
