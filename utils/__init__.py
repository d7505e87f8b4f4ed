"""General machinery: configuration, registry, checkpoints, logging. Knows nothing of points."""

import os

# Has to stand before torch is loaded: threads that wait in a loop for a core that another program uses make a step up
# to twenty times slower; threads that sleep at once wake up late. So they look a thousand times, then sleep.
if os.environ.get("POINTSMITH_TUNE") != "0" and "OMP_WAIT_POLICY" not in os.environ:
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
