"""One sequence as text: its ids, what is held back for a stop string, how it ended.

Knows tokens, text and events; knows nothing about models or how tokens are chosen.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from quietstar.events import End, Event, ThoughtEvent, TokenEvent
from quietstar.text import TextStream


class Speaker:
    """Takes the tokens and thoughts of one sequence and gives the events that may be shown.

    Args:
        tokenizer: a Hugging Face tokenizer, or None where there is no text.
        prompt: ids the sequence starts from. stops: strings that end it. sequence: its number in the batch.
    """

    def __init__(self, tokenizer: Any, prompt: list[int], stops: Sequence[str], sequence: int) -> None:
        self.ids, self.prompt_length, self.sequence = list(prompt), len(prompt), sequence
        self.stream = TextStream(tokenizer, prompt) if tokenizer is not None else None
        self.stops = stops
        self.text = ""
        self.held: list[Event] = []
        self.held_text = 0
        self.thoughts = 0
        self.drafted, self.accepted = 0, 0
        self.reason: str | None = None

    @property
    def emitted(self) -> int:
        """How many tokens were emitted."""
        return len(self.ids) - self.prompt_length

    def think(self, event: ThoughtEvent) -> None:
        """Take a thought; it is shown with the token it helped to predict."""
        self.thoughts += 1
        self.held.append(event)

    def push(self, event: TokenEvent, last: bool) -> list[Event]:
        """Take a token; returns the events that may be shown now."""
        self.ids.append(event.id)
        if self.stream is not None:
            event.text = self.stream.push(event.id) + (self.stream.flush() if last else "")
        self.held.append(event)
        self.text += event.text
        self.held_text += len(event.text)
        found = [at for stop in self.stops if (at := self.text.find(stop)) >= 0]
        if found:
            self._cut(min(found))
            self.reason = "stop_string"
            return self.release()
        return self.release(0 if last else self._open())

    def _open(self) -> int:
        """How many last characters may still become a stop string."""
        return max((n for stop in self.stops for n in range(1, len(stop)) if self.text.endswith(stop[:n])), default=0)

    def _cut(self, at: int) -> None:
        """Drop the text from `at` on, from the events that are still held too."""
        surplus = len(self.text) - at
        self.text = self.text[:at]
        for event in reversed(self.held):
            if isinstance(event, TokenEvent):
                drop = min(surplus, len(event.text))
                event.text = event.text[: len(event.text) - drop]
                surplus -= drop

    def release(self, keep: int = 0) -> list[Event]:
        """Events that can be shown, holding back those that carry the last `keep` characters."""
        out: list[Event] = []
        while self.held:
            size = len(getattr(self.held[0], "text", ""))
            if keep and self.held_text - size < keep:
                break
            self.held_text -= size
            out.append(self.held.pop(0))
        return out

    def end(self, seconds: float) -> End:
        """The last event of the sequence."""
        if self.stream is not None and self.reason != "stop_string":
            self.text += self.stream.flush()
        return End(
            sequence=self.sequence,
            reason=self.reason or "length",
            text=self.text,
            tokens=self.emitted,
            thoughts=self.thoughts,
            seconds=round(seconds, 4),
            drafted=self.drafted,
            accepted=self.accepted,
        )
