"""A run with a section `quantize`: its start, the search if there is one, the size of what comes out."""

from __future__ import annotations

import argparse
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from models.quant.storage import Sizes, is_packed, save_quantized
from tools.experiment import Experiment
from tools.plain_run import PlainRun
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


class QuantizedRun(PlainRun):
    """A finished float model is quantized, then trained further, tested, or searched for bits."""

    from_finished = True

    def __init__(self, config: dict[str, Any], model: nn.Module):
        super().__init__(config, model)
        self.section = Quantization(**config["quantize"])
        self.search_section = Search(**config["search"]) if "search" in config else None
        self.sizes = Sizes(model, self.section.quantizer)  # of the float network: nothing is quantized yet
        self.packed: str | None = None
        self.searches = self.search_section is not None
        self.resumes = not self.searches

    def load(
        self,
        args: argparse.Namespace,
        checkpoint: Mapping[str, Any],
        path: str | None,
        data: DataSplits,
        task: Task,
        device: torch.device,
    ) -> tuple[list[str], Collection[str]]:
        """Load and quantize."""
        path = str(path)
        if self.searches and dist.world_size() > 1:
            raise UserError("search: runs in one process; start it without torchrun")
        self.packed = path if is_packed(path) else None
        searching = self.searches and not args.test
        said = load_quantized(
            self.model, checkpoint, path, self.section, data, task, device, testing=args.test, searching=searching
        )
        return [said], ()

    def work(self, args: argparse.Namespace, runner: Runner, seed: int) -> list[dict]:
        if self.searches and not (args.test or args.svm):
            return self.search(runner, seed, resume=args.resume)
        return self.with_size(super().work(args, runner, seed), runner.experiment)

    def search(self, runner: Runner, seed: int, *, resume: bool) -> list[dict]:
        assert self.search_section is not None
        epochs = self.search_section.tune_epochs
        tune = Tuner(runner, self.config, runner.experiment, epochs, seed) if epochs else None
        return run_search(
            self.search_section,
            self.section,
            self.model,
            runner.task,
            runner.data,
            runner.autocast,
            runner.experiment,
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
