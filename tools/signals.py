"""Being asked to stop: a signal is noted, the loop looks for it between two steps."""

from __future__ import annotations

import signal


class Stopped(Exception):
    """A signal asked the run to end; everything is saved."""

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class Signals:
    """`with Signals() as signals`: being terminated, interrupted or left by the terminal only sets `signals.noted`.

    A terminal that closes is nothing to a program that nohup started: what is ignored stays so.
    """

    WANTED = ("SIGTERM", "SIGINT", "SIGHUP")  # the last is not known everywhere

    def __init__(self) -> None:
        self.noted: int | None = None

    def __enter__(self) -> Signals:
        known = [getattr(signal, name) for name in self.WANTED if hasattr(signal, name)]
        heard = [number for number in known if signal.getsignal(number) is not signal.SIG_IGN]
        self._old = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _note(self, number: int, _frame: object) -> None:
        self.noted = number
