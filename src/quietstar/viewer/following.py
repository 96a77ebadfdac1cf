"""The text that follows a changed thought, beside the text that follows the thought that was there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from quietstar.errors import QuietStarError
from quietstar.events import TokenEvent, Trace
from quietstar.record.store import Store
from quietstar.viewer.recorded import computed_alike, settings_of, thoughts_tensor, trace_made_by
from quietstar.viewer.worker import Frame, Frames

if TYPE_CHECKING:
    from quietstar.api import QuietStar

MOST_TOKENS = 512


def follow(model: QuietStar, store: Store, run: str, number: int, most: int | None = None) -> Frames:
    """Continue the text with the thought of an intervention, thinking as the run did; the text is stored with it.

    As many tokens as the run has from there, or `most`. Text generated before a stop is stored too. The last frame also
    has what follows the thought that was there, as `original`: None where the recorded text is that (the model predicts
    the same token after it and computes as the run did), and newly computed text otherwise.

    Raises:
        QuietStarError: no such run or intervention, or another model made the run.
    """
    entry = store.run(run)
    made = next((one for one in store.interventions(run) if one.number == number), None)
    if made is None:
        raise QuietStarError(f"run {entry.id} has no intervention {number}")
    trace, thought = trace_made_by(model, store, run), store.thought(run, made.position)
    said = [token for token in trace.tokens if token.position > made.position]
    most = max(1, min(MOST_TOKENS, len(said) if most is None else most))

    own = _Continuation(model, trace, made.position, thought.samples[0].ids)
    changed = _Continuation(model, trace, made.position, None if made.kind == "none" else made.sample.ids)
    same_token = changed.first == own.first
    recorded_holds = bool(said) and own.first == said[0].id and computed_alike(model, trace)

    text, original = "", None
    try:
        for event in said[:most] if recorded_holds and same_token else changed.events(most):
            text += event.text
            yield Frame("event", event.to_dict())
        if not recorded_holds:
            original = text if same_token else "".join(event.text for event in own.events(most))
    finally:
        store.continued_with(number, text, original)
    yield Frame("followed", {"number": number, "text": text, "original": original})


class _Continuation:
    """The token after a position with a given thought (None for no thought), and the text that follows it.

    A thought is private to the token it helps to predict: where that token is the same, so is all that follows.
    """

    def __init__(self, model: QuietStar, trace: Trace, position: int, thought: list[int] | None) -> None:
        from quietstar.evals.thoughts import forced_weight
        from quietstar.text import TextStream

        self._model, self._settings = model, settings_of(trace)
        before = trace.ids[: position + 1]
        self._stream = TextStream(model.tokenizer, before)
        # The given thought is used, whatever control the run had; a weight that the run forced stays forced.
        settings = replace(
            self._settings,
            max_new_tokens=1,
            trigger="always",
            samples=1,
            thought_temperature=None,
            control="none" if thought is None else "own",
            mixing_weight=forced_weight(trace),
            speculate=0,
        )
        given = None if thought is None else thoughts_tensor([thought])[None, None]
        events = model.stream([before], settings=settings, thoughts=given)
        self._events = [self._joined(event) for event in events if isinstance(event, TokenEvent)]
        self._ids = before + [event.id for event in self._events]

    @property
    def first(self) -> int | None:
        """The id of that token, None where the text ends instead."""
        return self._events[0].id if self._events else None

    def events(self, most: int) -> Iterator[TokenEvent]:
        """That token and those that follow, `most` in all."""
        yield from self._events
        if not self._events or most == 1:
            return
        for event in self._model.stream([self._ids], settings=replace(self._settings, max_new_tokens=most - 1)):
            if isinstance(event, TokenEvent):
                yield self._joined(event)

    def _joined(self, event: TokenEvent) -> TokenEvent:
        """The event with its text decoded after the text before it; with stop strings, which cut texts, it is kept."""
        return event if self._settings.stop else replace(event, text=self._stream.push(event.id))
