"""What the live page asks of the model: an answer to a prompt, another thought in a recorded one's place, and the text
that would have followed. Each is a generator of frames whose every result is recorded before it is shown.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from quietstar.errors import QuietStarError
from quietstar.scratchpad.columns import number, plain
from quietstar.scratchpad.entries import Intervention
from quietstar.scratchpad.store import Store
from quietstar.scratchpad.trace import Event, Sample, Start, ThoughtEvent, TokenEvent, Trace
from quietstar.viewer import pages
from quietstar.viewer.live import Frame, check

if TYPE_CHECKING:
    from quietstar.api import QuietStar
    from quietstar.generation import GenerationSettings
    from quietstar.resampling import Resampled

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
    check_same(model, trace, f"start `quietstar view --model {trace.start.model}`")
    return trace


def _tries(model: QuietStar, trace: Trace, thought: ThoughtEvent, wanted: Change) -> Iterator[Intervention]:
    from quietstar.evals.thoughts import forced_weight
    from quietstar.interventions import Control

    own = thought.samples[0].ids
    options: dict[str, Any] = {"seed": wanted.seed}
    about: dict[str, Any] = {}
    count = 1
    if wanted.kind == "edited":
        ids = _edited(model, thought, wanted.text)
        options["thoughts"] = [ids]
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
    found = model.resample(
        thought.position, count, of=trace.ids[: thought.position + 1], mixing_weight=forced_weight(trace),
        show=max(len(thought.base), 1), **_tensors(options),
    )  # fmt: skip
    for row in range(count):
        yield _intervention(model, trace, found, row, wanted.kind, about)


def _tensors(options: dict[str, Any]) -> dict[str, Any]:
    import torch

    if "thoughts" in options:
        options["thoughts"] = torch.tensor(options["thoughts"], dtype=torch.long).view(1, -1)
    return options


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
    model: QuietStar, trace: Trace, found: Resampled, row: int, kind: str, about: dict[str, Any]
) -> Intervention:
    from quietstar.text import pieces

    none = kind == "none"  # without a thought the prediction is the base prediction
    ids = [] if none else found.thoughts[row].tolist()
    parts = pieces(model.tokenizer, ids, trace.ids[: found.position + 1])
    sample = Sample(
        ids=ids, text="".join(parts), pieces=parts, weight=0.0 if none else float(found.mixing_weight[row]),
        logprobs=[] if none else [round(x, 5) for x in found.token_logprobs[row].tolist()],
    )  # fmt: skip
    return Intervention(
        position=found.position, kind=kind, sample=sample, base=found.base,
        mixed=found.base if none else found.mixed[row], only=[] if none else found.only[row],
        kl=0.0 if none else number(float(found.kl[row])), flipped=not none and bool(found.flipped[row]),
        settings=about,
    )  # fmt: skip


# -- statistics -------------------------------------------------------------------------------------------------------


def measure(model: QuietStar, store: Store, run: str) -> Frames:
    """Measure what only the weights can tell about a run's thoughts, keep it, and tell all its statistics."""
    from quietstar.evals import thoughts

    store.measure(run, thoughts.measure(model, _made_by(model, store, run), check))
    yield Frame("statistics", pages.statistics(store, run))


# -- what would have followed -----------------------------------------------------------------------------------------


def follow(model: QuietStar, store: Store, run: str, number: int, most: int | None = None) -> Frames:
    """The text that follows with an intervention's thought in place, thinking on as the run did; kept with it.

    As many tokens as the run said from there, or `most`. What was said before a stop is kept too.
    """
    entry = store.run(run)
    made = next((one for one in store.interventions(run) if one.number == number), None)
    if made is None:
        raise QuietStarError(f"run {entry.id} has no intervention {number}")
    trace, _ = _place(model, store, run, made.position)
    said = len([token for token in trace.tokens if token.position > made.position])
    most = max(1, min(MOST_FOLLOWING, said if most is None else most))
    text = ""
    try:
        for event in _following(model, trace, made, most):
            text += event.text
            yield Frame("event", event.to_dict())
    finally:
        store.continued_with(number, text)
    yield Frame("followed", {"number": number, "text": text})


def _following(model: QuietStar, trace: Trace, made: Intervention, most: int) -> Iterator[TokenEvent]:
    """One token with the given thought, then on as the run's settings say; texts joined over the seam.

    A thought is private to the token it helps to predict. Where that token is the one that was said, what follows is
    what was said, and is taken from the record: computing it anew could only add differences of rounding.
    """
    import torch

    from quietstar.evals.thoughts import forced_weight
    from quietstar.text import TextStream

    before = trace.ids[: made.position + 1]
    settings = _settings(trace)
    stream = TextStream(model.tokenizer, before)  # where stop strings cut the text, the pieces stay as they were cut
    only = made.kind == "none"
    thoughts = None if only else torch.tensor(made.sample.ids, dtype=torch.long).view(1, 1, 1, -1)
    # its own tokens stand there whatever the run put in place of thoughts; a forced weight stays forced
    first = replace(settings, max_new_tokens=1, trigger="always", samples=1, thought_temperature=None,
                    control="none" if only else "own", mixing_weight=forced_weight(trace), speculate=0)  # fmt: skip
    ids = list(before)
    for event in model.stream([ids], settings=first, thoughts=thoughts):
        if isinstance(event, TokenEvent):
            ids.append(event.id)
            yield event if settings.stop else replace(event, text=stream.push(event.id))
    said = [token for token in trace.tokens if token.position > made.position]
    if len(ids) > len(before) and said and said[0].id == ids[-1]:
        yield from said[1:most]
        return
    if len(ids) == len(before) or most == 1:  # the first token ended the answer, or was all that was asked for
        return
    for event in model.stream([ids], settings=replace(settings, max_new_tokens=most - 1)):
        if isinstance(event, TokenEvent):
            yield event if settings.stop else replace(event, text=stream.push(event.id))


def _settings(trace: Trace) -> GenerationSettings:
    """The settings a run was made with."""
    from quietstar.generation import GenerationSettings

    known = GenerationSettings.__dataclass_fields__
    kept = {name: value for name, value in trace.start.settings.items() if name in known}
    return GenerationSettings(**kept)
