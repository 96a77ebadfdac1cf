"""Changing a thought: other thoughts are put at its position, and each is compared with the thought that was there.

Both predictions are computed here, side by side in one batch, so that rounding does not look like an effect. Every try
is recorded as an intervention before it is sent.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from quietstar.errors import QuietStarError
from quietstar.events import Choice, Sample, ThoughtEvent, Trace
from quietstar.record import computed
from quietstar.record.columns import number, plain
from quietstar.record.compared import Compared, changed, unless_alike
from quietstar.record.entries import Intervention
from quietstar.record.store import Store
from quietstar.viewer.recorded import thoughts_tensor, trace_made_by
from quietstar.viewer.worker import Frame, Frames

if TYPE_CHECKING:
    from quietstar.api import QuietStar
    from quietstar.inference.resampling import Resampled

MOST_RESAMPLED, MOST_TOKENS = 64, 512


@dataclass
class Change:
    """Which thought to put there.

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


def change(model: QuietStar, store: Store, run: str, position: int, wanted: Change) -> Frames:
    """Put another thought at a position of a recorded run and send what it does to the next token; records each try.

    Raises:
        QuietStarError: no such run or thought, another model made the run, a wrong change.
    """
    trace, thought = trace_made_by(model, store, run), store.thought(run, position)
    seed = secrets.randbelow(2**31) if wanted.seed is None else wanted.seed
    made = list(_interventions(model, trace, thought, replace(wanted, seed=seed)))
    for one in made:
        one.number = store.intervene(run, one)
    yield Frame("tries", {"position": position, "tries": [one.to_dict() for one in made]})


def _interventions(model: QuietStar, trace: Trace, thought: ThoughtEvent, wanted: Change) -> Iterator[Intervention]:
    found, settings = _changed_thoughts(model, trace, thought, wanted)
    pair = _side_by_side(model, trace, thought, found.thoughts.tolist())
    for row in range(len(found.thoughts)):
        yield _intervention(model, trace, found, pair, row, wanted.kind, settings)


def _changed_thoughts(
    model: QuietStar, trace: Trace, thought: ThoughtEvent, wanted: Change
) -> tuple[Resampled, dict[str, Any]]:
    """The thoughts that a change puts there, and how they were made, as settings of the intervention."""
    from quietstar.evals.thoughts import forced_weight
    from quietstar.inference.controls import Control

    own = thought.samples[0].ids
    count = 1
    options: dict[str, Any] = {"seed": wanted.seed}
    settings: dict[str, Any] = {}
    if wanted.kind == "edited":
        options["thoughts"] = [_edited(model, thought, wanted.text)]
    elif wanted.kind == "resampled":
        if not 1 <= wanted.n <= MOST_RESAMPLED:
            raise QuietStarError(f"n must be from 1 to {MOST_RESAMPLED}, got {wanted.n}")
        count = wanted.n
        options |= {"thought_temperature": 1.0, "thought_length": len(own)}
        settings = {"seed": wanted.seed, "thought_temperature": 1.0}
    elif wanted.kind == "donor":
        donor = _donor(trace, thought, wanted)
        options["thoughts"] = [donor.samples[0].ids]
        settings = {"donor": donor.position}
    else:
        control = Control.parse(wanted.kind)
        if control.keeps_own or control.needs_earlier:
            raise QuietStarError("kind must be edited, resampled, donor, none, filler, shuffled or truncated:J")
        options["thoughts"] = [own]
        if control.thinks:
            options["control"] = control
        settings = {"seed": wanted.seed} if control.seeded else {}
    if "thoughts" in options:
        options["thoughts"] = thoughts_tensor(options["thoughts"])
    text = trace.ids[: thought.position + 1]
    found = model.resample(thought.position, count, of=text, mixing_weight=forced_weight(trace), show=1, **options)
    return found, settings


def _edited(model: QuietStar, thought: ThoughtEvent, text: str) -> list[int]:
    """Token ids of an edited thought; a text that was not changed keeps its tokens."""
    if text == thought.samples[0].text:
        return thought.samples[0].ids
    ids: list[int] = model.tokenizer(plain(text), add_special_tokens=False, verbose=False)["input_ids"] if text else []
    if len(ids) > MOST_TOKENS:
        raise QuietStarError(f"a thought may have at most {MOST_TOKENS} tokens, this text has {len(ids)}")
    return ids


def _donor(trace: Trace, thought: ThoughtEvent, wanted: Change) -> ThoughtEvent:
    """The thought to take: that of the position given, or of an earlier one at random.

    Drawn from earlier positions only, because later thoughts have read the token that is to be predicted.
    """
    others = {one.position: one for one in trace.thoughts if one.position != thought.position and one.samples}
    if wanted.donor is not None:
        if wanted.donor not in others:
            raise QuietStarError(f"there is no other thought at position {wanted.donor} of this run to take")
        return others[wanted.donor]
    earlier = [position for position in others if position < thought.position]
    if not earlier:
        raise QuietStarError("this run has no earlier thought to take; give the position of another one")
    return others[earlier[(wanted.seed or 0) % len(earlier)]]


@dataclass
class _SideBySide:
    """Predictions with the own thought and with the changed ones; row `first` of `changed` is the first change."""

    own: Resampled
    changed: Resampled
    first: int


def _side_by_side(model: QuietStar, trace: Trace, thought: ThoughtEvent, changed_ids: list[list[int]]) -> _SideBySide:
    """Predict with the own thought and the changed ones in one batch.

    A thought of another length cannot be a row of that batch: it is predicted with in a batch of as many rows.
    """
    from quietstar.evals.thoughts import forced_weight

    def predict(thoughts: list[list[int]]) -> Resampled:
        return model.resample(
            thought.position,
            len(thoughts),
            of=trace.ids[: thought.position + 1],
            thoughts=thoughts_tensor(thoughts),
            mixing_weight=forced_weight(trace),
            show=max(len(thought.base), 1),
        )

    own = thought.samples[0].ids
    if len(own) == len(changed_ids[0]):
        together = predict([own, *changed_ids])
        return _SideBySide(together, together, 1)
    rows = len(changed_ids) + 1
    return _SideBySide(predict([own] * rows), predict([*changed_ids, changed_ids[-1]]), 0)


def _intervention(
    model: QuietStar,
    trace: Trace,
    found: Resampled,
    pair: _SideBySide,
    row: int,
    kind: str,
    settings: dict[str, Any],
) -> Intervention:
    """One changed thought as it is recorded; without a thought the prediction is the base prediction."""
    result, at = pair.changed, pair.first + row
    none = kind == "none"
    mixed = result.base if none else result.mixed[at]
    return Intervention(
        position=result.position,
        kind=kind,
        sample=_sample(model, trace, found, row, 0.0 if none else float(result.mixing_weight[at]), none),
        base=result.base,
        mixed=mixed,
        only=[] if none else result.only[at],
        kl=0.0 if none else number(float(result.kl[at])),
        flipped=not none and bool(result.flipped[at]),
        settings=settings | _compared(model, trace, pair.own, mixed).to_settings(),
    )


def _sample(model: QuietStar, trace: Trace, found: Resampled, row: int, weight: float, none: bool) -> Sample:
    from quietstar.text import pieces

    ids = [] if none else found.thoughts[row].tolist()
    parts = pieces(model.tokenizer, ids, trace.ids[: found.position + 1])
    logprobs = [] if none else [round(x, 5) for x in found.token_logprobs[row].tolist()]
    return Sample(ids=ids, text="".join(parts), pieces=parts, weight=weight, logprobs=logprobs)


def _compared(model: QuietStar, trace: Trace, own: Resampled, mixed: list[Choice]) -> Compared:
    """The prediction with the own thought, and whether the changed one, `mixed`, has another likeliest token."""
    from quietstar.evals.thoughts import here

    noise, by = own.noise, here(model)
    return Compared(
        mixed=own.mixed[0],
        kl=float(own.kl[0]),
        floor=None if noise is None else {"kl": noise.kl, "logprob": noise.logprob},
        changed=changed(own.mixed[0], mixed, 0.0 if noise is None else noise.logprob),
        computed=by,
        recorded=unless_alike(computed.by(trace.start), by),
    )
