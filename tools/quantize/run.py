"""A run with a section `quantize`: its start, the search if there is one, the size of what comes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.quant.storage import Sizes, is_packed, save_quantized
from tools.experiment import Experiment
from tools.quantize.search import Search, run_search
from tools.quantize.section import Quantization, load_quantized, size_note
from tools.quantize.tune import Tuner
from tools.runner import Runner
from tools.splits import DataSplits
from tools.tasks.base import Task
from utils import dist
from utils.errors import UserError
from utils.logging import get_logger

FILE = "quantized.safetensors"


class QuantizedRun:
    """What `tools.cli` does besides, where a configuration has the section."""

    def __init__(self, config: dict[str, Any], model: nn.Module):
        self.config, self.model = config, model
        self.section = Quantization(**config["quantize"])
        self.search_section = Search(**config["search"]) if "search" in config else None
        self.sizes = Sizes(model, self.section.quantizer)  # of the float network: nothing is quantized yet
        self.packed: str | None = None

    @property
    def searches(self) -> bool:
        return self.search_section is not None

    def load(
        self,
        checkpoint: Mapping[str, Any],
        path: str,
        data: DataSplits,
        task: Task,
        device: torch.device,
        *,
        testing: bool,
    ) -> str:
        """Load and quantize; says what was done."""
        if self.searches and dist.world_size() > 1:
            raise UserError("search: runs in one process; start it without torchrun")
        self.packed = path if is_packed(path) else None
        searching = self.searches and not testing
        return load_quantized(
            self.model, checkpoint, path, self.section, data, task, device, testing=testing, searching=searching
        )

    def search(self, runner: Runner, experiment: Experiment, seed: int, *, resume: bool) -> list[dict]:
        assert self.search_section is not None
        epochs = self.search_section.tune_epochs
        tune = Tuner(runner, self.config, experiment, epochs, seed) if epochs else None
        return run_search(
            self.search_section,
            self.section,
            self.model,
            runner.task,
            runner.data,
            runner.autocast,
            experiment,
            self.config,
            seed,
            resume=resume,
            tune=tune,
        )

    def with_size(self, rows: list[dict], experiment: Experiment) -> list[dict]:
        """Write the packed file of the weights that count; every row says how large it is."""
        path = experiment.folder / FILE
        if dist.is_main() and self.packed is None:
            save_quantized(path, self.model)
        dist.barrier()
        size, whole = Path(self.packed or path).stat().st_size, self.sizes.float_file()
        note = size_note(size, whole)
        get_logger().info(f"{self.packed or path}: {note} ({whole:,} bytes)")
        for row in rows:
            said = [row[key] for key in ("protocol", "voting") if row.get(key)]
            row |= {"bytes": size, "float_bytes": whole, "protocol": ", ".join([*said, note])}
        return rows
