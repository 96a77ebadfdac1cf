"""SIGTERM and SIGHUP end a command as Ctrl-C does, so that a run in progress has its end recorded."""

from __future__ import annotations

import signal
import threading
from types import FrameType


class Terminated(KeyboardInterrupt):
    """A signal that ends the process; `code` is the exit code shells expect for it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def end_on_signals() -> None:
    """Raise `Terminated` in the main thread on SIGTERM and SIGHUP; a signal that is ignored (nohup) stays ignored."""
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may set handlers
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
    raise Terminated(number)
