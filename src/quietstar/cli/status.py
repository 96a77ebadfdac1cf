"""A line on stderr that says what a command is doing while nothing else is to be seen.

In a terminal it appears at once and vanishes before the output; elsewhere each step that lasts longer than a moment is
one line. Nothing appears for --quiet and --json.
"""

from __future__ import annotations

import sys
import threading
from types import TracebackType

PATIENCE = 3.0  # seconds of silence before a step is told where stderr is no terminal
_CLEAR = "\r\x1b[2K"


class Status:
    """What is being done right now; use it in a `with` block and call it with each step.

    Args:
        quiet: never show anything.
    """

    def __init__(self, quiet: bool = False) -> None:
        self._stream = None if quiet else sys.stderr
        self._terminal = self._stream is not None and self._stream.isatty()
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._shown = False

    def __call__(self, text: str) -> None:
        """Begin a step."""
        self.clear()
        if self._stream is None:
            return
        if self._terminal:
            self._write(text)
            return
        with self._lock:
            self._timer = threading.Timer(PATIENCE, self._write, [text])
            self._timer.daemon = True
            self._timer.start()

    def _write(self, text: str) -> None:
        assert self._stream is not None
        try:
            self._stream.write(f"{_CLEAR}{text} ..." if self._terminal else f"{text} ...\n")
            self._stream.flush()
            self._shown = self._terminal
        except (OSError, ValueError):  # nobody reads it; the work goes on
            self._stream = None

    def clear(self) -> None:
        """End the step: what comes next is output."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        if self._shown and self._stream is not None:
            self._stream.write(_CLEAR)
            self._stream.flush()
            self._shown = False

    def __enter__(self) -> Status:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.clear()
