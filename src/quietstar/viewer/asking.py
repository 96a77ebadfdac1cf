"""What the page asks of the model: an answer to a prompt, another thought in a recorded one's place, and the text
that would have followed. Each is a generator of frames whose every result is recorded before it is shown.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quietstar.errors import QuietStarError
from quietstar.events import Event, Sample, Start, ThoughtEvent, TokenEvent, Trace
from quietstar.record import computed
from quietstar.record.columns import number, plain
from quietstar.record.compared import Compared, changed, otherwise
from quietstar.record.entries import Intervention
from quietstar.record.store import Store
from quietstar.viewer import pages
from quietstar.viewer.worker import Frame, check

if TYPE_CHECKING:
    from torch import Tensor

    from quietstar.api import QuietStar
    from quietstar.inference.generation import GenerationSettings
    from quietstar.inference.resampling import Resampled

Frames = Generator[Frame, None, None]

MOST_RESAMPLED, MOST_FOLLOWING = 64, 512
_SETTINGS = (  # what a question may set; the fields of `generation.GenerationSettings`
    "thought_length", "samples", "trigger", "control", "temperature", "top_p", "thought_temperature", "max_new_tokens",
    "seed", "stop", "stop_ids", "mixing_weight", "show", "speculate",
)  # fmt: skip


@dataclass
class Question:
    """What a person asks: a prompt, a system prompt, whether the chat template is left out, and generation settings."""

    prompt: str
    system: str | None = None
    raw: bool = False
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass
class Change:
    """What to put in a thought's place.

    Args:
        kind: "edited", "resampled", "donor", or another control ("none", "filler", "shuffled", "truncated:0").
        text: of an edited thought. n: how many to resample. seed: of shuffling and resampling, drawn when None.
        donor: the position whose thought to take, another one at random when None.
    """

    kind: str
    text: str = ""
    n: int = 8
    seed: int | None = None
    donor: int | None = None


# -- asking -----------------------------------------------------------------------------------------------------------


def ask(model: QuietStar, store: Store, question: Question) -> Frames:
    """Answer a question: the run's id, then the events of generation as they come, recorded as they come."""
    if foreign := set(question.settings) - set(_SETTINGS):
        raise QuietStarError(f"settings have no {min(foreign)[:40]!r}; there are {', '.join(_SETTINGS)}")
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


# -- changing a thought -----------------------------------------------------------------------------------------------


def change(model: QuietStar, store: Store, run: str, position: int, wanted: Change) -> Frames:
    """Put another thought at a place of a recorded run and tell what it does to the next token; records each try."""
    trace, thought = _place(model, store, run, position)
    seed = secrets.randbelow(2**31) if wanted.seed is None else wanted.seed
    made = list(_tries(model, trace, thought, replace(wanted, seed=seed)))
    for one in made:
        one.number = store.intervene(run, one)
    yield Frame("tries", {"position": position, "tries": [one.to_dict() for one in made]})


def _place(model: QuietStar, store: Store, run: str, position: int) -> tuple[Trace, ThoughtEvent]:
    """A recorded run and its thought, if this is the model that had it."""
    return _made_by(model, store, run), store.thought(run, position)


def _made_by(model: QuietStar, store: Store, run: str) -> Trace:
    """A recorded run, if this is the model that made it."""
    from quietstar.evals.thoughts import check_same

    trace = store.trace(run)
    check_same(model, trace, f"start quietstar view --model {trace.start.model}")
    return trace


def _tries(model: QuietStar, trace: Trace, thought: ThoughtEvent, wanted: Change) -> Iterator[Intervention]:
    """The tries, each compared with the thought that was there: both are computed here and now, side by side."""
    from quietstar.evals.thoughts import forced_weight

    own = thought.samples[0].ids
    tried, about = _tried(model, trace, thought, wanted)
    options: dict[str, Any] = dict(
        of=trace.ids[: thought.position + 1], mixing_weight=forced_weight(trace), show=max(len(thought.base), 1)
    )
    beside = _beside(model, thought.position, own, tried.thoughts.tolist(), options)
    for row in range(len(tried.thoughts)):
        yield _intervention(model, trace, tried, beside, row, wanted.kind, about)


def _tried(
    model: QuietStar, trace: Trace, thought: ThoughtEvent, wanted: Change
) -> tuple[Resampled, dict[str, Any]]:  # fmt: skip
    """The thoughts that a change puts there, and how they were made."""
    from quietstar.evals.thoughts import forced_weight
    from quietstar.inference.controls import Control

    own = thought.samples[0].ids
    options: dict[str, Any] = {"seed": wanted.seed}
    about: dict[str, Any] = {}
    count = 1
    if wanted.kind == "edited":
        options["thoughts"] = [_edited(model, thought, wanted.text)]
    elif wanted.kind == "resampled":
        if not 1 <= wanted.n <= MOST_RESAMPLED:
            raise QuietStarError(f"n must be from 1 to {MOST_RESAMPLED}, got {wanted.n}")
        count, about = wanted.n, {"seed": wanted.seed, "thought_temperature": 1.0}
        options |= {"thought_temperature": 1.0, "thought_length": len(own)}
    elif wanted.kind == "donor":
        donor = _donor(trace, thought, wanted)
        about = {"donor": donor.position}
        options["thoughts"] = [donor.samples[0].ids]
    else:
        control = Control.parse(wanted.kind)
        if control.name in ("own", "only", "donor"):
            raise QuietStarError("kind must be edited, resampled, donor, none, filler, shuffled or truncated:J")
        options["thoughts"] = [own]
        if control.name == "truncated" and not control.keep:  # the markers with nothing between them
            options["thoughts"] = [[]]
        elif control.name != "none":
            options["control"] = control
        about = {"seed": wanted.seed} if control.name == "shuffled" else {}
    if "thoughts" in options:
        options["thoughts"] = _rows(options["thoughts"])
    found = model.resample(
        thought.position, count, of=trace.ids[: thought.position + 1], mixing_weight=forced_weight(trace), show=1,
        **options,
    )  # fmt: skip
    return found, about


def _rows(thoughts: list[list[int]]) -> Tensor:
    """Thoughts of one length as a tensor (n, T)."""
    import torch

    return torch.tensor(thoughts, dtype=torch.long).view(len(thoughts), -1)


def _beside(
    model: QuietStar, position: int, own: list[int], tried: list[list[int]], options: dict[str, Any]
) -> tuple[Resampled, Resampled, int]:
    """The own thought and the tries, predicted with in one batch; (own, tries, row of the first try).

    A thought of another length cannot be a row of the same batch: it is read in one of as many rows behind that text.
    """
    count = len(tried) + 1
    if len(own) == len(tried[0]):
        together = model.resample(position, count, thoughts=_rows([own, *tried]), **options)
        return together, together, 1
    original = model.resample(position, count, thoughts=_rows([own] * count), **options)
    return original, model.resample(position, count, thoughts=_rows([*tried, tried[-1]]), **options), 0


def _edited(model: QuietStar, thought: ThoughtEvent, text: str) -> list[int]:
    """Token ids of an edited thought; what a person left as it was keeps its tokens."""
    if text == thought.samples[0].text:
        return thought.samples[0].ids
    ids: list[int] = model.tokenizer(plain(text), add_special_tokens=False, verbose=False)["input_ids"] if text else []
    if len(ids) > 512:
        raise QuietStarError(f"a thought may have at most 512 tokens, this text has {len(ids)}")
    return ids


def _donor(trace: Trace, thought: ThoughtEvent, wanted: Change) -> ThoughtEvent:
    """The thought to borrow: the one asked for, or an earlier one at random.

    Drawn from earlier places only, because later thoughts have read the token that is to be predicted.
    """
    having = {one.position: one for one in trace.thoughts if one.position != thought.position and one.samples}
    if wanted.donor is not None:
        if wanted.donor not in having:
            raise QuietStarError(f"there is no other thought at position {wanted.donor} of this run to borrow")
        return having[wanted.donor]
    earlier = [position for position in having if position < thought.position]
    if not earlier:
        raise QuietStarError("no earlier thought of this run can be borrowed; name the position of another one")
    return having[earlier[(wanted.seed or 0) % len(earlier)]]


def _intervention(
    model: QuietStar, trace: Trace, tried: Resampled, beside: tuple[Resampled, Resampled, int], row: int, kind: str,
    about: dict[str, Any],
) -> Intervention:  # fmt: skip
    from quietstar.evals.thoughts import here
    from quietstar.text import pieces

    original, found, first = beside
    none = kind == "none"  # without a thought the prediction is the base prediction
    ids = [] if none else tried.thoughts[row].tolist()
    parts = pieces(model.tokenizer, ids, trace.ids[: found.position + 1])
    at = first + row
    sample = Sample(
        ids=ids, text="".join(parts), pieces=parts, weight=0.0 if none else float(found.mixing_weight[at]),
        logprobs=[] if none else [round(x, 5) for x in tried.token_logprobs[row].tolist()],
    )  # fmt: skip
    mixed = found.base if none else found.mixed[at]
    noise, by = original.noise, here(model)
    compared = Compared(
        mixed=original.mixed[0], kl=float(original.kl[0]),
        floor=None if noise is None else {"kl": noise.kl, "logprob": noise.logprob},
        changed=changed(original.mixed[0], mixed, 0.0 if noise is None else noise.logprob), computed=by,
        recorded=otherwise(by, computed.by(trace.start)),
    )  # fmt: skip
    return Intervention(
        position=found.position, kind=kind, sample=sample, base=found.base, mixed=mixed,
        only=[] if none else found.only[at], kl=0.0 if none else number(float(found.kl[at])),
        flipped=not none and bool(found.flipped[at]), settings=about | compared.to_settings(),
    )  # fmt: skip


# -- statistics -------------------------------------------------------------------------------------------------------


def measure(model: QuietStar, store: Store, run: str) -> Frames:
    """Measure what only the weights can tell about a run's thoughts, keep it, and tell all its statistics."""
    from quietstar.evals import thoughts

    trace = _made_by(model, store, run)
    told = thoughts.check_computed(model, trace)
    store.measure(run, thoughts.measure(model, trace, check))
    yield Frame("statistics", pages.statistics(store, run) | {"told": told})


# -- what would have followed -----------------------------------------------------------------------------------------


def follow(model: QuietStar, store: Store, run: str, number: int, most: int | None = None) -> Frames:
    """The text that follows with an intervention's thought in place, thinking on as the run did; kept with it.

    As many tokens as the run said from there, or `most`. What was said before a stop is kept too. The last frame has
    beside it what follows the thought that was there: the recorded text where the model here says the same word after
    it and computes as the run did, and text that is computed anew elsewhere.
    """
    entry = store.run(run)
    made = next((one for one in store.interventions(run) if one.number == number), None)
    if made is None:
        raise QuietStarError(f"run {entry.id} has no intervention {number}")
    trace, thought = _place(model, store, run, made.position)
    said = [token for token in trace.tokens if token.position > made.position]
    most = max(1, min(MOST_FOLLOWING, len(said) if most is None else most))
    own = _First(model, trace, made.position, thought.samples[0].ids)
    other = _First(model, trace, made.position, None if made.kind == "none" else made.sample.ids)
    recorded = bool(said) and own.id == said[0].id and _computes_as(model, trace)
    text, original = "", None
    try:
        events = iter(said[:most]) if recorded and other.id == own.id else None
        for event in events or other.going_on(most):
            text += event.text
            yield Frame("event", event.to_dict())
        if not recorded:
            original = text if other.id == own.id else "".join(event.text for event in own.going_on(most))
    finally:
        store.continued_with(number, text, original)
    yield Frame("followed", {"number": number, "text": text, "original": original})


def _computes_as(model: QuietStar, trace: Trace) -> bool:
    """Whether numbers of the run can be laid beside the model's own."""
    from quietstar.evals.thoughts import here

    return not computed.different([here(model), computed.by(trace.start)])


class _First:
    """One token behind a place with a given thought, None for no thought, and the text that goes on from it.

    A thought is private to the token it helps to predict: where that token is the same, so is all that follows.
    """

    def __init__(self, model: QuietStar, trace: Trace, position: int, thought: list[int] | None) -> None:
        from quietstar.evals.thoughts import forced_weight
        from quietstar.text import TextStream

        self.model, self.settings = model, _settings(trace)
        before = trace.ids[: position + 1]
        self.stream = TextStream(model.tokenizer, before)  # stop strings cut the text; its pieces stay as they were cut
        # its own tokens stand there whatever the run put in place of thoughts; a forced weight stays forced
        first = replace(
            self.settings, max_new_tokens=1, trigger="always", samples=1, thought_temperature=None,
            control="none" if thought is None else "own", mixing_weight=forced_weight(trace), speculate=0,
        )  # fmt: skip
        given = None if thought is None else _rows([thought])[None, None]
        self.ids = list(before)
        self.events = [self._joined(event) for event in model.stream([self.ids], settings=first, thoughts=given)
                       if isinstance(event, TokenEvent)]  # fmt: skip
        self.ids += [event.id for event in self.events]

    @property
    def id(self) -> int | None:
        """The token, None where the text ends instead."""
        return self.events[0].id if self.events else None

    def going_on(self, most: int) -> Iterator[TokenEvent]:
        """That token and what follows it, `most` tokens in all, texts joined over the seam."""
        yield from self.events
        if not self.events or most == 1:
            return
        for event in self.model.stream([self.ids], settings=replace(self.settings, max_new_tokens=most - 1)):
            if isinstance(event, TokenEvent):
                yield self._joined(event)

    def _joined(self, event: TokenEvent) -> TokenEvent:
        return event if self.settings.stop else replace(event, text=self.stream.push(event.id))


def _settings(trace: Trace) -> GenerationSettings:
    """The settings a run was made with."""
    from quietstar.inference.generation import GenerationSettings

    known = GenerationSettings.__dataclass_fields__
    kept = {name: value for name, value in trace.start.settings.items() if name in known}
    return GenerationSettings(**kept)
