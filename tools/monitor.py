"""What a person sees of a run: a live bar or plain lines with the time left, metrics.jsonl, TensorBoard."""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from numpy import ndarray
from tqdm import tqdm

from tools.draw import png_bytes, write_png
from utils import dist
from utils.logging import get_logger

PLAIN_EVERY = 15.0  # seconds between plain progress lines


class Monitor:
    """One per run. Other processes than the first build it too, and it stays quiet there."""

    def __init__(self, folder: Path, epochs: int, steps_per_epoch: int, start_epoch: int = 0):
        self.epochs, self.steps = epochs, steps_per_epoch
        self.log, self.main = get_logger(), dist.is_main()
        self.folder, self.path = folder, folder / "metrics.jsonl"
        self.bar: tqdm | None = None
        self.started, self.steps_done, self.last_line = time.monotonic(), 0, time.monotonic()
        self.start_step = start_epoch * steps_per_epoch
        if self.main:
            _keep_epochs_before(self.path, start_epoch)

    @functools.cached_property
    def board(self) -> Any:
        """TensorBoard's writer, opened when an epoch has something for it; None where there is none."""
        return _open_board(self.folder / "tensorboard", self.start_step) if self.main else None

    def start_epoch(self, epoch: int, step: int) -> None:
        self.epoch = epoch
        if self.main and sys.stderr.isatty():
            label = f"epoch {epoch + 1}/{self.epochs}"
            self.bar = tqdm(total=self.steps, initial=step, desc=label, leave=False, dynamic_ncols=True, unit="batch")

    def step(self, step: int, describe: Any) -> None:
        """After every training step; `describe()` gives the figures to show and is called only when they are shown."""
        self.steps_done += 1
        if self.bar is not None:
            self.bar.update()
            if self.bar.n % 5 == 0 or self.bar.n == self.steps:
                self.bar.set_postfix(describe(), refresh=False)
        elif self.main and time.monotonic() - self.last_line > PLAIN_EVERY:
            self.last_line = time.monotonic()
            figures = "  ".join(f"{key} {value}" for key, value in describe().items())
            self.log.info(
                f"epoch {self.epoch + 1}/{self.epochs}  batch {step}/{self.steps}  {figures}  {self._eta(step)}"
            )

    def end_epoch(self, epoch: int, record: dict[str, Any], note: str = "") -> None:
        """Close the bar, write the epoch's figures everywhere."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if not self.main:
            return
        shown = "  ".join(f"{key} {_short(value)}" for key, value in record.items() if not _is_detail(key))
        self.log.info(f"epoch {epoch + 1}/{self.epochs}  {shown}  {self._eta(self.steps)}{note}")
        self.last_line = time.monotonic()
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.board is not None:
            for key, value in record.items():
                if isinstance(value, int | float) and key not in ("epoch", "step"):
                    self.board.add_scalar(key, value, record["step"])

    def pictures(self, images: dict[str, ndarray], step: int) -> None:
        """The newest of each as a file in the folder of the run, all of them in TensorBoard."""
        for name, image in images.items():
            write_png(self.folder / f"{name}.png", image)
            if self.board is not None:
                _add_image(self.board, name, image, step)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()
        if self.__dict__.get("board") is not None:
            self.board.close()

    def _eta(self, step: int) -> str:
        left = (self.epochs - self.epoch) * self.steps - step
        seconds = (time.monotonic() - self.started) / max(self.steps_done, 1) * left
        return f"{duration(seconds)} left" if left else f"{duration(time.monotonic() - self.started)} in all"


def duration(seconds: float) -> str:
    """85 -> '1 min 25 s'."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _is_detail(key: str) -> bool:
    """In the files alone: "train/weighted/rank", and where the epoch stands."""
    return key.count("/") > 1 or key in ("epoch", "step")


def _add_image(board: Any, name: str, image: ndarray, step: int) -> None:
    """What `add_image` does with Pillow."""
    from tensorboard.compat.proto.summary_pb2 import Summary  # type: ignore[import-untyped]

    picture = Summary.Image(
        height=image.shape[0], width=image.shape[1], colorspace=3, encoded_image_string=png_bytes(image)
    )
    board.file_writer.add_summary(Summary(value=[Summary.Value(tag=name, image=picture)]), step)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _open_board(folder: Path, purge_step: int):
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        get_logger().warning("tensorboard is not installed: curves go to metrics.jsonl only")
        return None
    return SummaryWriter(str(folder), purge_step=purge_step or None)


def _keep_epochs_before(path: Path, epoch: int) -> None:
    """After a resume the epochs that run again must not stand twice."""
    if path.is_file():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines() if _epoch_of(line) < epoch]
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
        os.replace(temporary, path)


def _epoch_of(line: str) -> float:
    try:
        return json.loads(line)["epoch"]
    except (ValueError, KeyError, TypeError):  # a line cut off by a crash: its epoch runs again
        return float("inf")
