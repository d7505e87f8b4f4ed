"""Being asked to stop: a signal is noted, the loop looks for it between two steps."""

from __future__ import annotations

import signal


class Stopped(Exception):
    """A signal asked the run to end; everything is saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class Signals:
    """`with Signals() as signals`: SIGTERM, SIGINT and SIGHUP, a closed terminal, do nothing but set `signals.noted`.

    What nohup started ignores SIGHUP, and goes on ignoring it.
    """

    def __init__(self) -> None:
        self.noted: int | None = None

    def __enter__(self) -> Signals:
        heard = [signal.SIGTERM, signal.SIGINT]
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # Windows has none
            heard.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.noted = number
