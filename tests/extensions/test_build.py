"""Building: once for several processes, in any place that can be written, never an error where it cannot be done."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from extensions.library import SCHEMAS

ROOT = Path(__file__).parents[2]
USE = """
import logging, sys, torch
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from extensions import ops, status
for _ in range(2):
    ops.knn(torch.rand(1, 5, 3), torch.rand(1, 6, 3), 2)
print(status()["cpu"])
"""


def environment(**changes: str) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "POINT_OPS": "auto", "POINTSMITH_CXXFLAGS": "-O0", **changes}


def use(**changes: str) -> str:
    command = [sys.executable, "-c", USE]
    return subprocess.run(
        command, cwd=ROOT, env=environment(**changes), capture_output=True, text=True, check=True
    ).stdout


needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="needs g++")


@needs_compiler
def test_processes_that_start_together_build_one_library(tmp_path: Path) -> None:
    command = [sys.executable, "-c", USE]
    env = environment(POINTSMITH_CACHE=str(tmp_path))
    running = [subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert f"compiled ({len(SCHEMAS)} of {len(SCHEMAS)} operations)" in process.communicate()[0]
    assert len(list(tmp_path.glob("*.so"))) == 1 and not list(tmp_path.glob("*.tmp"))


@needs_compiler
def test_a_home_that_cannot_be_written_builds_in_the_temporary_folder(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.touch()  # a folder below a file cannot be made, not even by root
    assert "compiled" in use(POINTSMITH_CACHE=str(blocked / "cache"), TMPDIR=str(tmp_path))
    assert list(tmp_path.glob("pointsmith-*/*.so"))


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_without_a_working_compiler_one_line_says_so(compiler: str, tmp_path: Path) -> None:
    lines = use(CXX=compiler, POINTSMITH_CACHE=str(tmp_path)).splitlines()
    assert len(lines) == 2 and lines[1] == "plain PyTorch"
    assert "plain PyTorch" in lines[0] and compiler in lines[0] and "python -m extensions.build" in lines[0]


def test_native_is_an_error_where_there_is_none(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as error:
        use(CXX="no-such-compiler", POINT_OPS="native", POINTSMITH_CACHE=str(tmp_path))
    assert "POINT_OPS=native: no compiled operations for cpu" in error.value.stderr


@needs_compiler
def test_sanitizers_find_nothing() -> None:
    done = subprocess.run(["bash", "scripts/sanitize.sh"], cwd=ROOT, capture_output=True, text=True)
    if "cannot find -lasan" in done.stderr:
        pytest.skip("the compiler has no sanitizers")
    assert done.returncode == 0 and "every kernel ran" in done.stdout, done.stderr[-2000:]
