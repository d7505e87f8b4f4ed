"""How OpenMP's threads wait. Settled from the environment as torch is loaded, so this module stands before it."""

import os
import time
from pathlib import Path

LOOKS, PAUSE = 5, 0.002  # seconds
LOAD = Path("/proc/loadavg")  # "0.52 0.58 0.59 3/602 29160": three tasks run


def settle() -> None:
    """Let them sleep, after a thousand looks, where the machine is busy as a process starts.

    Threads that wait in a loop for a core that another program uses make a step up to twenty times slower; threads that
    sleep wake up late, and a small step takes up to twice as long. POINTSMITH_TUNE=0 and OMP_WAIT_POLICY say otherwise.
    """
    if os.environ.get("POINTSMITH_TUNE") == "0" or "OMP_WAIT_POLICY" in os.environ or not LOAD.is_file():
        return
    processors = len(os.sched_getaffinity(0))
    if others() + planned(processors) > processors:
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def others() -> int:
    """Tasks that run beside this one: the fewest seen, as many only run for a moment."""
    counts = []
    for _ in range(LOOKS):
        counts.append(int(LOAD.read_text().split()[3].split("/")[0]) - 1)
        time.sleep(PAUSE)
    return min(counts)


def planned(processors: int) -> int:
    """Threads that this process will have."""
    first = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    return int(first) if first.isdigit() else processors
