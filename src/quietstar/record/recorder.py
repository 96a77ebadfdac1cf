"""Recording a run while it happens: each event is written before it is passed on.

A killed process loses at most the event in flight. While another program locks the file, or the disk is full, events
are kept and written with the next one, so that a temporary failure leaves no gap; what could not be written by the end
is reported in `problem`. A failure to record never stops the run. Knows events and statements; the `write` callable
that it is given knows the file.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timezone

from quietstar.arguments import checked
from quietstar.errors import QuietStarError
from quietstar.events import End, Event, NoiseFloor, Start, ThoughtEvent, TokenEvent
from quietstar.record import columns, schema
from quietstar.record.columns import Statement, insert

Write = Callable[[Sequence[Statement], float], None]
"""Runs statements in one transaction, waiting at most that many seconds for a lock; raises QuietStarError."""

CONTEXT = 40  # characters kept before a thought
_BRIEFLY = 0.2  # seconds to wait for a lock in the middle of a run; the event is tried again with the next one
_LETTERS = "0123456789abcdefghjkmnpqrstvwxyz"  # none that look alike
_LENGTH = 8


def new_id() -> str:
    """A name for a run that a person can type; 40 random bits."""
    return "".join(secrets.choice(_LETTERS) for _ in range(_LENGTH))


def now() -> str:
    """The time as it is kept: UTC, ISO 8601, microseconds, so that text order is time order."""
    return datetime.now(timezone.utc).isoformat(timespec="microseconds").replace("+00:00", "Z")


class RunWriter:
    """The statements that write one run, event by event; touches no file.

    Args:
        run: its id. start, sequence: what is asked, and which sequence of it this run is.
        batch: id of the first run of a batch. continues: id of the run it goes on from. started: when, now if left out.
    """

    def __init__(
        self,
        run: str,
        start: Start,
        sequence: int = 0,
        *,
        batch: str | None = None,
        continues: str | None = None,
        started: str | None = None,
    ) -> None:
        self.run, self.sequence = run, sequence
        self.text, self.tokens, self.thoughts, self.flips = "", 0, 0, 0
        self.ended, self.began = False, time.perf_counter()
        # the text shown before a thought: in a chat the answer alone, without the template
        self.tail = "" if start.chat else start.prompts[sequence][-CONTEXT:]
        row = columns.run_row(start, sequence, run, started or now())
        self.begin = insert("runs", row | {"batch": batch, "continues": continues})

    def add(self, event: Event) -> list[Statement]:
        """What `event` changes in the file."""
        if isinstance(event, ThoughtEvent):
            self.thoughts += 1
            self.flips += event.flipped
            return [
                insert("thoughts", columns.thought_row(self.run, event, self.tail)),
                *(
                    insert("samples", columns.sample_row(self.run, event.position, number, sample))
                    for number, sample in enumerate(event.samples)
                ),
            ]
        if isinstance(event, TokenEvent):
            self.tokens += 1
            self.text += event.text
            self.tail = (self.tail + event.text)[-CONTEXT:]
            return [insert("tokens", columns.token_row(self.run, event))]
        if isinstance(event, NoiseFloor):
            row = columns.noise_row(event)
            change = f"UPDATE runs SET {', '.join(f'{name} = ?' for name in row)} WHERE id = ?"
            return [(change, [*row.values(), self.run])]
        if isinstance(event, End):
            self.ended = True
            change = (
                "UPDATE runs SET reason = ?, text = ?, tokens = ?, thoughts = ?, flips = ?, seconds = ?, drafted = ?, "
                "accepted = ? WHERE id = ?"
            )
            values = [columns.plain(event.reason), columns.plain(event.text), event.tokens, event.thoughts, self.flips]
            return [(change, [*values, event.seconds, event.drafted, event.accepted, self.run])]
        return []

    def cut_off(self) -> list[Statement]:
        """The end of a run that was interrupted."""
        seconds = round(time.perf_counter() - self.began, 4)
        return self.add(End(self.sequence, "interrupted", self.text, self.tokens, self.thoughts, seconds))


@checked
class Recorder:
    """Writes events as they come; `Store.recorder` makes one that writes to its file.

    Args:
        write: runs the statements of each event; see `Write`.

    Example:
        >>> recorder = store.recorder()                                       # doctest: +SKIP
        >>> for event in recorder.record(model.stream("Hello")):              # doctest: +SKIP
        ...     print(event)
        >>> store.trace(recorder.runs[0])                                     # doctest: +SKIP

    Attributes:
        runs: ids of the runs begun, one a sequence, in order.
        problem: one line on what could not be written so far, None if nothing is missing.
    """

    def __init__(self, write: Write) -> None:
        self._write = write
        self._writers: dict[int, RunWriter] = {}
        self._phase = ""
        self._pending: list[Statement] = []
        self.runs: list[str] = []
        self.problem: str | None = None

    def record(self, events: Iterable[Event]) -> Iterator[Event]:
        """Pass events on, each once it is written; a run cut off by Ctrl-C or by its reader ends as "interrupted"."""
        try:
            for event in events:
                self.add(event)
                yield event
        finally:
            self.close()

    def add(self, event: Event) -> None:
        """Write one event down."""
        if isinstance(event, Start):
            self._start(event)
        else:
            for sequence, writer in self._writers.items():
                if getattr(event, "sequence", sequence) == sequence:  # an event without one is of the whole batch
                    self._pending += writer.add(event)
        self._flush(wait_long=isinstance(event, (Start, End)))

    def close(self) -> None:
        """Mark what has not ended as interrupted, and write all that is still to be written."""
        for writer in self._writers.values():
            if not writer.ended:
                self._pending += writer.cut_off()
        self._flush(wait_long=True)

    def _start(self, event: Start) -> None:
        before = {b: writer.run for b, writer in self._writers.items()} if self._phase == "reason" else {}
        ids = [new_id() for _ in event.prompt_ids]
        self._writers = {
            b: RunWriter(run, event, b, batch=ids[0] if len(ids) > 1 else None, continues=before.get(b))
            for b, run in enumerate(ids)
        }
        self._phase = event.phase
        self._pending += [writer.begin for writer in self._writers.values()]
        self.runs += ids

    def _flush(self, wait_long: bool) -> None:
        if not self._pending:
            return
        try:
            self._write(self._pending, schema.BUSY_SECONDS if wait_long else _BRIEFLY)
        except QuietStarError as error:
            self.problem = str(error)
        else:
            self._pending, self.problem = [], None
