"""`pip install ./extensions/emd`: the module `emd`, for code that imports it by that name."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vendor import install  # type: ignore[import-not-found]

install("emd")
