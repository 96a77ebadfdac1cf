"""The model behind the page: one call at a time, in a thread of its own, that ends when its client has disconnected.

Several clients wait in a queue. A job is a generator of frames; it is closed at the first frame after its client has
disconnected or stopped it, so that a recorder around it marks the run as interrupted. Work that takes long without a
frame calls `check` between its parts. Knows threads and frames; the jobs know what is asked of the model.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import traceback
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, NamedTuple

from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.api import QuietStar


class Frame(NamedTuple):
    """One server-sent event: its kind and its data."""

    kind: str
    data: dict[str, Any]


Frames = Generator[Frame, None, None]
Work = Callable[["QuietStar"], Frames]


class _Stopped(Exception):
    """The client has disconnected or stopped the job."""


_running: ContextVar[Job | None] = ContextVar("quietstar_job", default=None)


def check() -> None:
    """Between two parts of long work: end it here where its client has disconnected."""
    job = _running.get()
    if job is not None and job.stopped.is_set():
        raise _Stopped


class Job:
    """One call of the model, queued or running; iterate over it for its frames."""

    def __init__(self, ahead: int) -> None:
        self.stopped = threading.Event()
        self._loop = asyncio.get_running_loop()
        self._frames: asyncio.Queue[Frame | None] = asyncio.Queue()
        if ahead:
            self.put(Frame("waiting", {"ahead": ahead}))

    def stop(self) -> None:
        """End it at its next frame."""
        self.stopped.set()

    def put(self, frame: Frame | None) -> None:
        """Hand over a frame from any thread; None ends the job."""
        try:
            self._loop.call_soon_threadsafe(self._frames.put_nowait, frame)
        except RuntimeError:  # the server has ended meanwhile
            self.stop()

    async def __aiter__(self) -> AsyncIterator[Frame]:
        """Frames as they come, to the end."""
        while (frame := await self._frames.get()) is not None:
            yield frame


class ModelWorker:
    """A model that is loaded when it is first needed.

    Args:
        name: as the user gave it. load: loads it.
    """

    def __init__(self, name: str, load: Callable[[], QuietStar]) -> None:
        self.name, self._load = name, load
        self._model: QuietStar | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._jobs: list[Job] = []

    def start(self, work: Work) -> Job:
        """Queue a call."""
        job = Job(len(self._jobs))
        self._jobs.append(job)
        self._thread.submit(self._run, work, job)
        return job

    def close(self) -> None:
        """End the running job and drop those that wait."""
        for job in list(self._jobs):
            job.stop()
        self._thread.shutdown(wait=True, cancel_futures=True)

    def _run(self, work: Work, job: Job) -> None:
        token = _running.set(job)
        try:
            if job.stopped.is_set():
                return
            if self._model is None:
                job.put(Frame("loading", {"model": self.name}))
                self._model = self._load()
            frames = work(self._model)
            try:
                for frame in frames:
                    job.put(frame)
                    if job.stopped.is_set():
                        break
            finally:
                frames.close()
        except _Stopped:
            pass
        except QuietStarError as error:
            job.put(Frame("problem", {"error": str(error)}))
        except Exception as error:  # the server continues; the page gets one line, the terminal the traceback
            traceback.print_exc(file=sys.stderr)
            job.put(Frame("problem", {"error": f"{type(error).__name__}: {error}"}))
        finally:
            _running.reset(token)
            self._jobs.remove(job)
            job.put(None)
