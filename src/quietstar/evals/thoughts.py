"""Measures of recorded thoughts that need the weights: did their content matter, when was the next token settled, are
they likely as text, do they say what the base would say anyway.

All thoughts of a run are measured together over one prefix. Knows the model and a trace; definitions are in
`quietstar.evals.measures`, statistics over the numbers in `quietstar.evals.statistics`.

Shapes: N positions · R rows (one sample of a thought each) · L tokens of a row · T thought tokens · E hidden size ·
V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from quietstar.arguments import checked
from quietstar.engine import budgets
from quietstar.engine.budgets import rows_at_once
from quietstar.engine.identity import VERSION, identify, versions
from quietstar.engine.model import Place, chunks
from quietstar.engine.rows import Prefix, Rows
from quietstar.engine.sampling import best
from quietstar.errors import QuietStarError
from quietstar.evals.measures import area_over, overlap
from quietstar.events import Trace
from quietstar.inference import controls as interventions
from quietstar.inference.controls import Control
from quietstar.record import computed

if TYPE_CHECKING:
    from quietstar.api import QuietStar

Values = dict[str, float]


@checked
def check_same(model: QuietStar, trace: Trace, advice: str) -> None:
    """Refuse a run that other weights made; the message ends with `advice`, which says what to do.

    Raises:
        QuietStarError: the weights differ.
    """
    was = trace.start.identity
    here = identify(model, version=2 if was.base_hash.startswith(VERSION) else 1)
    if (was.base_hash, was.head_hash, was.adapter_hash) != (here.base_hash, here.head_hash, here.adapter_hash):
        dtype, then = str(model.decoder_lm.dtype).removeprefix("torch."), trace.start.dtype
        other = f"; its weights were in {then}, here they are in {dtype}" if dtype != then else ""
        raise QuietStarError(
            f"this run was made by {trace.start.model}, and this is another model or has other weights{other}; {advice}"
            + (f" --dtype {then}" if other else "")
        )


@checked
def here(model: QuietStar) -> computed.By:
    """Precision, device and versions that compute here, named as `record.computed.by` names those of a run."""
    of = {name: version for name, version in versions().items() if name not in ("python", "quietstar")}
    dtype = str(model.decoder_lm.dtype).removeprefix("torch.")
    return {"dtype": dtype, "device": str(model.device), "quietstar": versions()["quietstar"]} | of


@checked
def check_computed(model: QuietStar, trace: Trace) -> str:
    """Refuse to measure in another precision or on another device; returns what else differs, "" for nothing.

    Measured values are compared with those of the record, and must not differ by rounding alone.

    Raises:
        QuietStarError: dtype or device differ.
    """
    mine, was = here(model), computed.by(trace.start)
    other = computed.different([mine, was])
    if {"dtype", "device"} & set(other):
        raise QuietStarError(
            f"this run was computed in {was['dtype']} on {was['device']}, and the model is here in {mine['dtype']} on "
            f"{mine['device']}; load it with --dtype {was['dtype']} --device {was['device']} to measure the run"
        )
    return f"measured by {computed.in_words(mine)}; the run by {computed.in_words(was)}" if other else ""


@checked
def forced_weight(trace: Trace) -> float | None:
    """The fixed mixing weight of the run, None where the mixing head computed it."""
    settings = trace.start.settings
    forced = Control.parse(settings.get("control") or "own").weight
    fixed: float | None = settings.get("mixing_weight") if forced is None else forced
    return fixed


@torch.inference_mode()
@checked
def measure(model: QuietStar, trace: Trace, between: Callable[[], None] = lambda: None) -> dict[int, Values]:
    """Measure the thoughts of a run, by position; `Store.measure` keeps them.

    `between` is called between chunks of rows, every second or so; it may raise to end the measurement.

    Names: "compute", "content" (only where something was said after the thought), "early_area", "early_area_only",
    "early:J" and "early_only:J" (1 where J tokens of the thought settle the next token), "garble", "greedy". Where a
    place has several samples, each is measured alone and the mean is given.

    Raises:
        QuietStarError: the run is of other weights, another precision or device, or its thoughts are not the model's
            own.
    """
    check_same(model, trace, f"load {trace.start.model}")
    check_computed(model, trace)
    control = Control.parse(trace.start.settings.get("control") or "own")
    if not control.keeps_own:
        raise QuietStarError(
            f"this run has no thoughts of the model's own to measure: they were replaced by the control {control}"
        )
    ids = torch.tensor([trace.ids], device=model.device)
    if not trace.thoughts or not ids.shape[1]:
        return {}
    prefix, hidden_1NE = model.read(ids)
    samples = [
        _Sample(thought.position, number, sample.ids)
        for thought in trace.thoughts
        for number, sample in enumerate(thought.samples)
    ]
    samples.sort(key=lambda sample: (len(sample.tokens), sample))
    found: dict[int, list[Values]] = {}
    for _, group in groupby(samples, key=lambda sample: len(sample.tokens)):
        rows = _Rows(model, prefix, hidden_1NE[0], ids[0], list(group), between)
        for position, values in _measured(rows, forced_weight(trace)):
            found.setdefault(position, []).append(values)
    return {
        position: {name: sum(values[name] for values in each) / len(each) for name in each[0]}
        for position, each in sorted(found.items())
    }


class _Sample(NamedTuple):
    """One sample of a recorded thought."""

    position: int
    number: int
    tokens: list[int]


class _Prediction(NamedTuple):
    """A prediction of the next token after given thoughts, (R,) each.

    `logprob` is the mixed log-probability of the token that was said; `mixed` and `only` are the likeliest tokens of
    the mixed prediction and of the one from the thought alone.
    """

    logprob: Tensor
    mixed: Tensor
    only: Tensor


class _Rows:
    """Thoughts of one length: their places, their tokens, and the text around them."""

    def __init__(
        self,
        model: QuietStar,
        prefix: Prefix,
        base_NE: Tensor,
        ids: Tensor,
        samples: list[_Sample],
        between: Callable[[], None],
    ) -> None:
        self.model, self.prefix, self.between = model, prefix, between
        self.logit_rows = budgets.of(model.device).logit_rows
        self.length = len(samples[0].tokens)
        position = torch.tensor([sample.position for sample in samples], device=ids.device)
        number = torch.tensor([sample.number for sample in samples], device=ids.device)
        self.place = Place(torch.zeros_like(position), position, number)
        tokens = [sample.tokens for sample in samples]
        self.own = torch.tensor(tokens, dtype=torch.long, device=ids.device).view(len(samples), -1)
        self.base_RE = base_NE[position]
        self.said_R = torch.where(position + 1 < len(ids), ids[(position + 1).clamp_max(len(ids) - 1)], -1)

    def predict(self, thoughts: Tensor, weight: float | None) -> _Prediction:
        """The prediction after `thoughts` (R, T), with the mixing weight given or that of the head."""
        parts = []
        for r in chunks(len(self.place), rows_at_once(self.prefix, thoughts.shape[1], 1)):
            self.between()
            thought = self.model.think(self.prefix, self.place[r], length=thoughts.shape[1], tokens=thoughts[r])
            hidden_RE = thought.hidden
            for q in chunks(len(hidden_RE), self.logit_rows):
                _, mixed_RV, only_RV = self.model.predict(self.base_RE[r][q], hidden_RE[q], weight)
                said_R1 = self.said_R[r][q].clamp_min(0)[:, None]
                parts.append(_Prediction(mixed_RV.gather(-1, said_R1)[:, 0], best(mixed_RV), best(only_RV)))
        return _Prediction(*(torch.cat(column) for column in zip(*parts, strict=True)))

    def base(self) -> Tensor:
        """Log-probability of the said token without a thought, (R,)."""
        parts = []
        for r in chunks(len(self.place), self.logit_rows):
            base_RV = torch.log_softmax(self.model.logits(self.base_RE[r]), dim=-1)
            parts.append(base_RV.gather(-1, self.said_R[r].clamp_min(0)[:, None])[:, 0])
        return torch.cat(parts)

    def as_text(self) -> tuple[Tensor, Tensor]:
        """The base's mean log-probability of the thought as text (R,), and its own greedy continuation (R, T)."""
        likely, greedy = [], []
        for r in chunks(len(self.place), rows_at_once(self.prefix, self.length, 1)):
            self.between()
            place, own = self.place[r], self.own[r]
            hidden_RLE = self.base_RE[r][:, None]
            if self.length > 1:
                rows = Rows(self.prefix, place.sequence, place.position + 1)
                hidden_RLE = torch.cat([hidden_RLE, rows.extend(self.model.embed(own[:, :-1]))], dim=1)
            each = [
                torch.log_softmax(self.model.logits(hidden_RLE[q]), -1).gather(-1, own[q][..., None])[..., 0].mean(1)
                for q in chunks(len(own), max(1, self.logit_rows // self.length))
            ]
            likely.append(torch.cat(each))
            greedy.append(self._greedy(place, self.base_RE[r]))
        return torch.cat(likely), torch.cat(greedy)

    def _greedy(self, place: Place, hidden_RE: Tensor) -> Tensor:
        """The base's greedy continuation from each place, as long as the thoughts; (R, T)."""
        rows = Rows(self.prefix, place.sequence, place.position + 1, capacity=self.length)
        chosen = []
        for j in range(self.length):
            self.between()
            chosen.append(
                torch.cat([best(self.model.logits(hidden_RE[q])) for q in chunks(len(hidden_RE), self.logit_rows)])
            )
            if j < self.length - 1:
                hidden_RE = rows.extend(self.model.embed(chosen[-1])[:, None])[:, -1]
        return torch.stack(chosen, dim=1)

    def donated(self) -> Tensor:
        """For each row the thought of an earlier place, drawn evenly; filler at the first, which has none; (R, T)."""
        places = self.place.position.unique()  # in ascending order, places with a thought only
        index_R = torch.searchsorted(places, self.place.position)
        drawn_R = interventions.donor_positions(0, self.place.sequence, index_R)
        row_of = {int(p): r for r, p in reversed(list(enumerate(self.place.position.tolist())))}
        source = [row_of[int(places[d])] if d >= 0 else 0 for d in drawn_R.tolist()]
        return torch.where(drawn_R[:, None] >= 0, self.own[source], self.model.filler_token)


def _measured(rows: _Rows, weight: float | None) -> Iterator[tuple[int, Values]]:
    """The position of each row and what is measured about it."""
    own = rows.predict(rows.own, weight)
    with_filler = rows.predict(interventions.filler(rows.own, rows.model.filler_token), weight)
    with_donor = rows.predict(rows.donated(), weight)
    content_R = own.logprob - with_donor.logprob
    compute_R = with_filler.logprob - rows.base()

    # Early answering: is the likeliest next token the same after the first j tokens of the thought as after all?
    truncated = [rows.predict(rows.own[:, :j], weight) for j in range(rows.length)]
    same_mixed = [shorter.mixed == own.mixed for shorter in truncated]
    same_only = [shorter.only == own.only for shorter in truncated]

    if rows.length:
        likely_R, greedy_RT = rows.as_text()
    for r, position in enumerate(rows.place.position.tolist()):
        values: Values = {}
        if int(rows.said_R[r]) >= 0:
            values |= {"compute": float(compute_R[r]), "content": float(content_R[r])}
        values |= _early("early", "early_area", [float(same_R[r]) for same_R in same_mixed])
        values |= _early("early_only", "early_area_only", [float(same_R[r]) for same_R in same_only])
        if rows.length:
            values["garble"] = -float(likely_R[r])
            values["greedy"] = overlap(rows.own[r].tolist(), greedy_RT[r].tolist()) or 0.0
        yield position, values


def _early(curve: str, area: str, same: list[float]) -> Values:
    """One thought's curve of early answering and the area over it; `same` is 1 where the first j tokens are enough."""
    return {f"{curve}:{j}": value for j, value in enumerate(same)} | {area: area_over([*same, 1.0])}
