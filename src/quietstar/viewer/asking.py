"""Asking the model from the page: an answer to a prompt, and the measures of a run that need the weights.

Each is a generator of frames; results are recorded before they are sent.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from quietstar.errors import QuietStarError
from quietstar.events import Event, Start
from quietstar.record.store import Store
from quietstar.viewer import pages
from quietstar.viewer.recorded import trace_made_by
from quietstar.viewer.worker import Frame, Frames, check

if TYPE_CHECKING:
    from quietstar.api import QuietStar


@dataclass
class Question:
    """What a person asks.

    Args:
        prompt: the text. system: a system prompt, None for none.
        raw: leave the chat template out. settings: of generation, as in `GenerationSettings`.
    """

    prompt: str
    system: str | None = None
    raw: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


def ask(model: QuietStar, store: Store, question: Question) -> Frames:
    """Answer a question: the id of its run, then the events of generation, each recorded before it is sent.

    Raises:
        QuietStarError: an unknown or wrong setting, an empty prompt, a prompt longer than the context.
    """
    from quietstar.inference.generation import GenerationSettings  # here, so that a page that only shows loads no torch

    known = GenerationSettings.__dataclass_fields__
    if foreign := set(question.settings) - set(known):
        raise QuietStarError(f"settings have no {min(foreign)[:40]!r}; there are {', '.join(known)}")
    events = model.stream(question.prompt, raw=question.raw, system=question.system or None, **question.settings)
    recorder = store.recorder()
    with closing(_generator(recorder.record(events))) as recorded:
        for event in recorded:
            if isinstance(event, Start):
                yield Frame("run", {"id": recorder.runs[0]})
            yield Frame("event", event.to_dict())
    if recorder.problem is not None:
        yield Frame("problem", {"error": f"this run is not fully recorded: {recorder.problem}"})


def _generator(events: Iterator[Event]) -> Generator[Event, None, None]:
    """The same events as something that can be closed."""
    yield from events


def measure(model: QuietStar, store: Store, run: str) -> Frames:
    """Measure what only the weights can tell about the thoughts of a run, store it, and send all its statistics.

    Raises:
        QuietStarError: no such run, or another model made it.
    """
    from quietstar.evals import thoughts

    trace = trace_made_by(model, store, run)
    warning = thoughts.check_computed(model, trace)
    store.measure(run, thoughts.measure(model, trace, check))
    yield Frame("statistics", pages.statistics(store, run) | {"warning": warning})
