"""How waiting threads are set, on a machine with a load that the test makes up."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from utils import threads

NAMES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "OMP_NUM_THREADS", "POINTSMITH_TUNE")


@pytest.fixture
def settled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The policy where `running` tasks run on 4 processors."""

    def policy(running: int, **environment: str) -> str | None:
        load = tmp_path / "loadavg"
        load.write_text(f"0.52 0.58 0.59 {running}/602 29160\n")
        monkeypatch.setattr(threads, "LOAD", load)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
        monkeypatch.setattr(os, "environ", environment)
        threads.settle()
        return environment.get("OMP_WAIT_POLICY")

    return policy


def test_threads_sleep_only_where_not_all_find_a_processor(settled):
    assert settled(1) is None
    assert settled(2) == "PASSIVE"
    assert settled(2, OMP_NUM_THREADS="3") is None
    assert settled(3, OMP_NUM_THREADS="3,2") == "PASSIVE"
    assert settled(0) is None  # some containers count none


def test_the_users_word_stands(settled):
    assert settled(9, OMP_WAIT_POLICY="ACTIVE") == "ACTIVE"
    assert settled(9, POINTSMITH_TUNE="0") is None
    assert settled(9, GOMP_SPINCOUNT="7") == "PASSIVE"


def test_a_task_that_runs_for_a_moment_does_not_count(settled, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(threads.time, "sleep", lambda _: threads.LOAD.write_text("0 0 0 1/602 29160\n"))
    assert settled(9) is None


@pytest.mark.skipif(not threads.LOAD.is_file(), reason="no /proc/loadavg")
def test_it_is_settled_before_torch_is_loaded():
    script = "import utils, sys, os; print('torch' in sys.modules, os.environ.get('OMP_WAIT_POLICY'))"
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in os.sched_getaffinity(0)]
    environment = {name: value for name, value in os.environ.items() if name not in NAMES}
    try:
        done = subprocess.run(
            [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True
        )
    finally:
        for process in busy:
            process.kill()
            process.wait()
    assert done.stdout.split() == ["False", "PASSIVE"]
