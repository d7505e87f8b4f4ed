"""Log lines to the terminal and to a file, from the first process only."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

NAME = "pointsmith"


class _TerminalHandler(logging.Handler):
    """Writes above a live progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)
        sys.stdout.flush()


def get_logger() -> logging.Logger:
    return logging.getLogger(NAME)


def start_logging(main_process: bool, file: Path | None = None) -> logging.Logger:
    """Terminal lines carry the message, file lines time and level too; other processes stay quiet."""
    logger = get_logger()
    for handler in list(logger.handlers):
        handler.close()
        logger.removeHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO if main_process else logging.ERROR)
    terminal = _TerminalHandler()
    terminal.setFormatter(logging.Formatter("%(message)s" if main_process else "%(levelname)s: %(message)s"))
    logger.addHandler(terminal)
    if main_process and file is not None:
        handler = logging.FileHandler(file, encoding="utf-8")
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
        logger.addHandler(handler)
    return logger
