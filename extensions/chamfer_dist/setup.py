"""`pip install ./extensions/chamfer_dist`: the module `chamfer_dist`, for code that imports it by that name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vendor import install  # type: ignore[import-not-found]

install("chamfer_dist")
