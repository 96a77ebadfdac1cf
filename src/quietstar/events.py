"""The event stream of thinking, and the trace collected from it: one producer, many readers (terminal, file, notebook).

Every event is a small dataclass with a `to_dict`; the keys of each frame are pinned by tests/test_trace.py under
`SCHEMA_VERSION`. Knows tokens, texts and numbers; knows nothing about models or how anything is displayed.

Order of events: one `start`, then for each emitted token an optional `thought` and a `token`, then an `end` each; one
`noise` precedes the first thought of a run.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from quietstar.arguments import checked

SCHEMA_VERSION = 4


@dataclass
class Event:
    """Base of all events; `event` names the kind in `to_dict`."""

    event: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON; the first key is the kind of event."""
        return {"event": self.event, **asdict(self)}


@dataclass
class Choice:
    """One candidate for the next token: its id, text and probability."""

    id: int
    text: str
    prob: float


@dataclass
class Sample:
    """One thought as tokens, with the log-probability (nats) of each when sampled, its text, and its own weight w.

    `pieces` is the text token by token (joined it is `text`); "" where a token ends inside a character.
    """

    ids: list[int]
    text: str
    logprobs: list[float]
    weight: float
    pieces: list[str] = field(default_factory=list)


@dataclass
class Identity:
    """Which weights generated; hashes as `quietstar.engine.identity` computes them, "" where there is nothing to hash.

    Args:
        revision, base_revision: commits of the model and of its base on their hub, where they came from one.
        base_hash, head_hash, adapter_hash: of the base, of markers and mixing head, of the adapter.
        adapter: name of the active adapter.
    """

    revision: str | None = None
    base_revision: str | None = None
    base_hash: str = ""
    head_hash: str = ""
    adapter: str = ""
    adapter_hash: str = ""


@dataclass
class Start(Event):
    """The prompts, the model and the settings of a run.

    Args:
        schema: version of these frames. version: of this package. model, base: names; dtype, device: how it runs.
        untrained: True while thoughts cannot change a prediction (the mixing head is at its start).
        prompts, prompt_ids: what each sequence starts from, as text and as ids.
        chat: True where the prompts went through a chat template.
        settings: the generation settings. phase: "reason" or "answer".
        identity: which weights. versions: of the libraries that compute.
        asked: what each sequence was asked, without chat template; "" where token ids were given.
    """

    event: ClassVar[str] = "start"
    schema: int
    version: str
    model: str
    base: str
    dtype: str
    device: str
    untrained: bool
    prompts: list[str]
    prompt_ids: list[list[int]]
    chat: bool
    settings: dict[str, Any]
    phase: str = "answer"
    identity: Identity = field(default_factory=Identity)
    versions: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@dataclass
class ThoughtEvent(Event):
    """One position where the model thought, before the token it helps to predict.

    Args:
        sequence: which prompt of a batch. position: index of the last visible token, counted from the prompt's first.
        trigger: the rules that fired. control: which control the thought is, "own" for the model's own thought.
        samples: the thoughts. weight: mixing weight w, mean over samples.
        base, mixed, only: likeliest next tokens without, with and from only the thought, best first, at temperature 1.
        flipped: whether the likeliest word changed. kl: KL(mixed || base) in nats. entropy: of the base, in nats.
        base_logprob, mixed_logprob, only_logprob: of the emitted token, in nats, without, with and from only the
            thought, at temperature 1; None in records of schema 2 and before.
    """

    event: ClassVar[str] = "thought"
    sequence: int
    position: int
    trigger: str
    control: str
    samples: list[Sample]
    weight: float
    base: list[Choice]
    mixed: list[Choice]
    only: list[Choice]
    flipped: bool
    kl: float
    entropy: float
    base_logprob: float | None = None
    mixed_logprob: float | None = None
    only_logprob: float | None = None

    @property
    def gain(self) -> float | None:
        """Log-probability of the emitted token with the thought minus that without it, in nats."""
        if self.mixed_logprob is None or self.base_logprob is None:
            return None
        return self.mixed_logprob - self.base_logprob

    @property
    def surprise(self) -> float | None:
        """Minus the log-probability of the emitted token with the thought, in nats."""
        return None if self.mixed_logprob is None else -self.mixed_logprob


@dataclass
class NoiseFloor(Event):
    """How much rounding alone changes the numbers of a run: the same places computed in another batch shape.

    Args:
        places: how many places were computed twice.
        kl: nats; largest change of KL(mixed || base) between the two computations.
        logprob: nats; largest change of a log-probability of the likeliest tokens, without, with or from only a
            thought.
        weight: largest change of the mixing weight w.
        gain: nats; largest change of a gain, the log-probability of one of these tokens with the thought minus without,
            both of one reading: far smaller than that of a log-probability. None where it was not measured.
    """

    event: ClassVar[str] = "noise"
    places: int
    kl: float
    logprob: float
    weight: float
    gain: float | None = None


@dataclass
class TokenEvent(Event):
    """One emitted token. `text` is what it completes ("" inside a character); `logprob` under the mixed prediction."""

    event: ClassVar[str] = "token"
    sequence: int
    position: int
    id: int
    text: str
    logprob: float
    thought: bool


@dataclass
class End(Event):
    """Why a sequence ended ("stop", "stop_string", "length", "context", "interrupted") and its whole text.

    Args:
        tokens, thoughts: how many there are. seconds: since the start.
        drafted, accepted: tokens drafted ahead of their thoughts, and how many of them were accepted.
    """

    event: ClassVar[str] = "end"
    sequence: int
    reason: str
    text: str
    tokens: int
    thoughts: int
    seconds: float
    drafted: int = 0
    accepted: int = 0


@checked
@dataclass
class Trace:
    """Everything recorded about one generated text.

    Args:
        start: the settings. sequence: which prompt of the batch this is.
        thoughts: where the model thought. tokens: what was emitted. end: how it ended, None while running.
        noise: what rounding alone changes in this run; None without thoughts, and in records of schema 3 and before.
    """

    start: Start
    sequence: int = 0
    thoughts: list[ThoughtEvent] = field(default_factory=list)
    tokens: list[TokenEvent] = field(default_factory=list)
    end: End | None = None
    noise: NoiseFloor | None = None

    def add(self, event: Event) -> None:
        """Take in one event of this sequence; others are ignored."""
        if getattr(event, "sequence", self.sequence) != self.sequence:
            return
        self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, ThoughtEvent):
            self.thoughts.append(event)
        elif isinstance(event, TokenEvent):
            self.tokens.append(event)
        elif isinstance(event, End):
            self.end = event
        elif isinstance(event, NoiseFloor):
            self.noise = event

    @classmethod
    def collect(cls, events: Iterable[Event]) -> list[Trace]:
        """One trace a prompt from a stream of events."""
        traces: list[Trace] = []
        for event in events:
            if isinstance(event, Start):
                traces = [cls(event, b) for b in range(len(event.prompt_ids))]
            sequence: int | None = getattr(event, "sequence", None)  # an event without one is of the whole batch
            for trace in traces if sequence is None else traces[sequence : sequence + 1]:
                trace._take(event)
        return traces

    @property
    def events(self) -> Iterator[Event]:
        """The stream it was collected from: each thought before the token it helped to predict."""
        yield self.start
        thoughts_and_tokens: list[ThoughtEvent | TokenEvent] = [*self.thoughts, *self.tokens]
        noise = self.noise
        for event in sorted(
            thoughts_and_tokens, key=lambda e: (e.position + 1, 0) if isinstance(e, ThoughtEvent) else (e.position, 1)
        ):
            if noise is not None and isinstance(event, ThoughtEvent):
                yield noise
                noise = None
            yield event
        if noise is not None:  # cut off before its first thought, or measured for another text of the batch
            yield noise
        if self.end is not None:
            yield self.end

    @property
    def text(self) -> str:
        """The emitted text."""
        return self.end.text if self.end is not None else "".join(token.text for token in self.tokens)

    @property
    def prompt_ids(self) -> list[int]:
        """Token ids of this sequence's prompt."""
        return self.start.prompt_ids[self.sequence]

    @property
    def ids(self) -> list[int]:
        """Prompt and emitted tokens."""
        return [*self.prompt_ids, *(token.id for token in self.tokens)]

    def context(self, position: int, width: int = 40) -> str:
        """The last `width` characters of visible text before the thought at `position`."""
        text = self.said(position)
        if len(text) < width:
            text = self.start.prompts[self.sequence] + text
        return text[-width:]

    def said(self, position: int) -> str:
        """The emitted text up to `position`, the prompt left out."""
        return "".join(token.text for token in self.tokens if token.position <= position)

    def most_influential(self, count: int | None = None) -> list[ThoughtEvent]:
        """Thoughts by how much they changed the prediction: KL(mixed || base), largest first.

        Those for which `above_noise` is False come last: their order is that of rounding.
        """
        ordered = sorted(
            self.thoughts, key=lambda t: (not self.above_noise(t), math.inf if math.isnan(t.kl) else -t.kl)
        )
        return ordered if count is None else ordered[:count]

    def above_noise(self, thought: ThoughtEvent) -> bool:
        """Whether a thought changed the prediction by more than rounding does; True where no noise floor is known."""
        return self.noise is None or thought.kl > self.noise.kl

    def changed(self, thought: ThoughtEvent) -> bool:
        """Whether the likeliest word changed, by more than rounding."""
        return thought.flipped and self.above_noise(thought)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return {
            "start": self.start.to_dict(),
            "sequence": self.sequence,
            "text": self.text,
            "ids": self.ids,
            "noise": None if self.noise is None else self.noise.to_dict(),
            "thoughts": [thought.to_dict() for thought in self.thoughts],
            "tokens": [token.to_dict() for token in self.tokens],
            "end": None if self.end is None else self.end.to_dict(),
        }

    def to_pandas(self) -> Any:
        """A data frame with one row a thought."""
        import pandas as pd

        return pd.DataFrame(
            {
                "position": t.position,
                "context": self.context(t.position),
                "thought": t.samples[0].text,
                "trigger": t.trigger,
                "control": t.control,
                "weight": t.weight,
                "without": t.base[0].text,
                "with": t.mixed[0].text,
                "only": t.only[0].text,
                "flipped": t.flipped,
                "kl": t.kl,
                "entropy": t.entropy,
                "gain": t.gain,
            }
            for t in self.thoughts
        )

    def _repr_html_(self) -> str:
        """What a notebook shows: whatever was registered with `show_in_notebooks`, the plain text without it."""
        return html.escape(self.text) if _in_notebooks is None else _in_notebooks(self)


_in_notebooks: Callable[[Trace], str] | None = None


def show_in_notebooks(display: Callable[[Trace], str]) -> None:
    """Let notebooks show traces by `display`, which gives HTML; the package registers its page."""
    global _in_notebooks
    _in_notebooks = display
