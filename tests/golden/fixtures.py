"""Recorded values of the official implementations: found on disk, read, compared within their own tolerances.

A fixture is NAME.npz (arrays `param/...`, `in/...`, `out/...`) beside NAME.json (configuration, tolerances). Its kind
is the folder and the name.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

GOLDEN = Path(os.environ.get("GOLDEN_DIR") or Path(__file__).parents[2] / "../shared/golden")
ABSENT = f"no fixtures at {GOLDEN}; set GOLDEN_DIR to their folder"

ROUNDING = 16  # units in the last place

KeyMap = Callable[[str], "str | None"]


class Fixture:
    """One recorded case. `unread` tells which recorded outputs nothing was compared with."""

    def __init__(self, path: Path, folder: str):
        self.path, self.folder, self.name = path, folder, path.stem
        self.read: set[str] = set()
        self.noise = 0.0  # share of the largest value, for fixtures whose tolerances are told in words

    @cached_property
    def about(self) -> dict[str, Any]:
        return json.loads(self.path.with_suffix(".json").read_text())

    @property
    def args(self) -> dict[str, Any]:
        """The configuration the values were computed with."""
        return self.about["args"]

    @cached_property
    def arrays(self) -> dict[str, Tensor]:
        """Parameters may be stored in half precision: everything that floats is at least float32 here."""
        with np.load(self.path) as stored:
            tensors = {key: torch.from_numpy(stored[key]) for key in stored.files}
        return {key: value.float() if value.dtype == torch.float16 else value for key, value in tensors.items()}

    def __contains__(self, key: str) -> bool:
        return key in self.arrays

    def __getitem__(self, key: str) -> Tensor:
        self.read.add(key)
        return self.arrays[key]

    def below(self, prefix: str) -> list[str]:
        """Names of the arrays below a prefix, without it."""
        return [key.removeprefix(prefix) for key in self.arrays if key.startswith(prefix)]

    def below_dict(self, prefix: str) -> dict[str, Tensor]:
        return {name: self[prefix + name] for name in self.below(prefix)}

    @property
    def unread(self) -> list[str]:
        return [key for key in self.arrays if key.startswith("out/") and key not in self.read]

    def check(self, actual: Tensor | float, key: str) -> None:
        """Equal to the array `key` within the recorded tolerance and rounding; integers and booleans exactly."""
        expected = self[key]
        actual = actual.detach() if isinstance(actual, Tensor) else torch.tensor(actual, dtype=torch.float64)
        while expected.ndim > actual.ndim and expected.shape[-1] == 1:  # a scalar stored as (1,), a kernel of size 1
            expected = expected.squeeze(-1)
        atol, rtol = self._tolerance(expected)
        torch.testing.assert_close(
            actual.double(),
            expected.double(),
            atol=atol,
            rtol=rtol,
            msg=lambda text: f"{self.folder}/{self.name}: {key}\n{text}",
        )

    def _tolerance(self, expected: Tensor) -> tuple[float, float]:
        """As recorded; besides, sums in another order differ by some units in the last place of their largest term."""
        if not expected.is_floating_point() or not expected.numel():
            return 0, 0
        largest = expected.abs().max().item()
        rounding = (ROUNDING * torch.finfo(expected.dtype).eps + self.noise) * largest
        told = self.about.get("tolerance")
        told = told if isinstance(told, dict) else {"atol": 1e-5, **self.about}
        return told.get("atol", 0) + rounding, told.get("rtol", 0)

    def check_gradients(self, model: nn.Module, prefix: str, key_map: KeyMap) -> None:
        """Every gradient recorded below the prefix, under the official parameter names."""
        parameters = dict(model.named_parameters())
        for key in self.below(prefix):
            gradient = parameters[str(key_map(key))].grad
            assert gradient is not None, f"{key}: no gradient"
            self.check(gradient, prefix + key)


def find_fixtures(root: Path = GOLDEN) -> list[Fixture]:
    """Every NAME.npz with a NAME.json in a folder of the root."""
    paths = sorted(path for path in root.glob("*/**/*.npz") if path.with_suffix(".json").is_file())
    return [Fixture(path, path.relative_to(root).parts[0]) for path in paths]


def resolve(name: str, kinds: Mapping[str, Callable]) -> Callable | None:
    """The entry of this name, else of the longest kind the name goes on from: group_fps_quirk, encoder_2, encoder7."""
    fitting = [kind for kind in kinds if re.fullmatch(rf"{re.escape(kind)}([_\W\d].*)?", name)]
    return kinds[max(fitting, key=len)] if fitting else None
