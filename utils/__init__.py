"""General machinery: configuration, registry, checkpoints, logging. Knows nothing of points."""

import os

# Has to stand before torch is loaded: threads that wait in a loop for a core that another program uses make a step up
# to twenty times slower; threads that sleep cost nothing measurable on a quiet machine.
if os.environ.get("POINTSMITH_TUNE") != "0":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
