"""Scoring a known text: think at every position at once and compare the predictions of the true next tokens.

The rows of many positions run together; work on the vocabulary goes in small chunks, and rows in chunks over the whole
thought, so memory grows with the text and not with text x vocabulary or text x thought.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from quietstar.arguments import checked
from quietstar.engine import memory, noise
from quietstar.engine.budgets import rows_at_once
from quietstar.engine.model import Place, ThinkingModel, Thought, chunks
from quietstar.engine.rows import Prefix
from quietstar.engine.sampling import average, entropy, flipped, kl_divergence
from quietstar.errors import QuietStarError
from quietstar.events import NoiseFloor
from quietstar.inference.controls import Control, Own
from quietstar.text import pieces, text_of, visible

_BY_POSITION = (  # fields of a score with one entry for each position that predicts a token
    "base_logprobs",
    "mixed_logprobs",
    "thought_logprobs",
    "mixing_weight",
    "kl",
    "entropy",
    "flipped",
    "thoughts",
    "token_logprobs",
    "sample_mixed_logprobs",
)


@checked
@dataclass
class Score:
    """Predictions of a text's true next tokens; position i predicts token i + 1. All in nats.

    Where a sequence is padding the numbers are NaN, so that a mean that includes them is NaN, too. With several
    samples the mixed (thought-only) probability is the mean over the samples' probabilities: log-mean-exp.

    Args:
        ids: (B, N) tokens, real ones first. mask: (B, N) True at real tokens.
        base_logprobs: (B, N - 1) log p of the true next token without a thought.
        mixed_logprobs: (B, N - 1) with the thought mixed in.
        thought_logprobs: (B, N - 1) from the thought alone (w = 1).
        mixing_weight: (B, N - 1) w, mean over samples.
        kl: (B, N - 1) KL(mixed || base) over the vocabulary, of the samples' mean prediction.
        entropy: (B, N - 1) entropy of the base prediction.
        flipped: (B, N - 1) True where the mixed prediction (the samples' mean) has another likeliest token than the
            base's, by more than the noise floor in both.
        thoughts: (B, N - 1, P, T) tokens; -1 in padding.
        token_logprobs: (B, N - 1, P, T) log-probability of each thought token when it was thought.
        sample_mixed_logprobs: (B, N - 1, P) as mixed_logprobs, each sample alone.
        control: which control these numbers belong to.
        controls: further controls computed on the same thoughts, by name.
        noise: what rounding alone changes in these numbers; None where nothing was thought.
    """

    ids: Tensor
    mask: Tensor
    base_logprobs: Tensor
    mixed_logprobs: Tensor
    thought_logprobs: Tensor
    mixing_weight: Tensor
    kl: Tensor
    entropy: Tensor
    flipped: Tensor
    thoughts: Tensor
    token_logprobs: Tensor
    sample_mixed_logprobs: Tensor
    control: str = "own"
    controls: dict[str, Score] = field(default_factory=dict)
    noise: NoiseFloor | None = None
    tokenizer: Any = field(default=None, repr=False)

    @property
    def real(self) -> Tensor:
        """(B, N - 1) True where a real token predicts a real token."""
        return self.mask[:, 1:] & self.mask[:, :-1]

    def loss(self, which: Literal["base", "mixed", "thought"] = "mixed") -> float:
        """Mean loss over all real targets in nats: "base", "mixed" or "thought"."""
        values: Tensor = getattr(self, f"{which}_logprobs")
        return float(-values[self.real].mean())

    def thought_text(self, sequence: int, position: int, sample: int = 0) -> str:
        """One thought as text, decoded after the text up to its column."""
        for name, value, count in zip(
            ("sequence", "position", "sample"), (sequence, position, sample), self.thoughts.shape, strict=False
        ):
            if not 0 <= value < count:
                raise QuietStarError(f"{name} must be from 0 to {count - 1}, got {value}")
        ids = self.thoughts[sequence, position, sample]
        context = self.ids[sequence, self._span(sequence).start : position + 1].tolist()
        return text_of(self.tokenizer, ids[ids >= 0].tolist(), context)

    def shifted(self, shifts: list[int]) -> Score:
        """The same score with sequence b moved to the right by `shifts[b]` columns of padding."""
        if len(shifts) != len(self.ids):
            raise QuietStarError(
                f"shifts must have one number for each of {len(self.ids)} sequences, got {len(shifts)}"
            )
        if any(shifts):
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    moved = torch.stack([row.roll(n, 0) for row, n in zip(value, shifts, strict=True)])
                    setattr(self, name, moved)
            for score in self.controls.values():
                score.shifted(shifts)
        return self

    def _span(self, sequence: int) -> slice:
        """The columns of a sequence's real tokens."""
        columns = self.mask[sequence].nonzero()[:, 0].tolist()
        return slice(columns[0], columns[-1] + 1) if columns else slice(0, 0)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python: one list a sequence, padding left out."""
        noise = None if self.noise is None else self.noise.to_dict()
        out: dict[str, Any] = {"control": self.control, "noise": noise, "sequences": []}
        for b in range(self.ids.shape[0]):
            span = self._span(b)
            row: dict[str, Any] = {"ids": self.ids[b, span].tolist()}
            for name in _BY_POSITION:
                row[name] = getattr(self, name)[b, span.start : max(span.start, span.stop - 1)].tolist()
            out["sequences"].append(row)
        if self.controls:
            out["controls"] = {name: score.to_dict() for name, score in self.controls.items()}
        return out

    def to_pandas(self) -> Any:
        """A data frame with one row a position: texts, losses, w, KL and a `mixed_<control>` column per control."""
        import pandas as pd

        records = []
        for b in range(self.ids.shape[0]):
            span = self._span(b)
            ids = self.ids[b, span].tolist()
            texts = pieces(self.tokenizer, ids) if self.tokenizer is not None else [str(i) for i in ids]
            for i in range(span.start, span.stop - 1):
                record = {
                    "sequence": b,
                    "position": i - span.start,
                    "token": texts[i - span.start],
                    "next_token": texts[i - span.start + 1],
                    "base": float(self.base_logprobs[b, i]),
                    "mixed": float(self.mixed_logprobs[b, i]),
                    "thought_only": float(self.thought_logprobs[b, i]),
                    "weight": float(self.mixing_weight[b, i]),
                    "kl": float(self.kl[b, i]),
                    "entropy": float(self.entropy[b, i]),
                    "flipped": bool(self.flipped[b, i]),
                }
                if self.tokenizer is not None and self.thoughts.shape[2]:
                    record["thought"] = self.thought_text(b, i)
                for name, score in self.controls.items():
                    record[f"mixed_{name}"] = float(score.mixed_logprobs[b, i])
                records.append(record)
        return pd.DataFrame(records)

    def _repr_html_(self) -> str:
        """A notebook shows the table of positions; every text in it is escaped."""
        frame = self.to_pandas()
        for column in frame.select_dtypes(include=["object", "string"]):
            frame[column] = frame[column].map(visible)
        html: str = frame.to_html(max_rows=40, float_format="{:.4f}".format, escape=True)
        return html


@torch.no_grad()
def score_ids(
    model: ThinkingModel,
    ids: Tensor,
    mask: Tensor | None = None,
    *,
    thought_length: int | None = None,
    samples: int = 1,
    thought_temperature: float | None = None,
    seed: int = 0,
    thoughts: Tensor | None = None,
    control: str | Control = "own",
    controls: Sequence[str | Control] = (),
    mixing_weight: float | None = None,
) -> Score:
    """Score token ids (B, N); see `QuietStar.score` for the arguments."""
    mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask.bool()
    lengths = mask.sum(1).tolist()
    length = model.config.thought_length if thought_length is None else thought_length
    if thoughts is not None:
        samples, length = thoughts.shape[2], thoughts.shape[3]
    check_thinking(length, samples, thought_temperature, mixing_weight)
    temperature = default_temperature(thought_temperature, samples)
    model.check_fits(max(lengths), length)
    memory.thinking(
        model,
        lengths=lengths,
        rows=samples * sum(lengths),
        length=length,
        samples=samples,
        advice="give fewer samples, shorter thoughts or less text at once",
        kept=(1 + len(controls)) * (12 * length + 40),
    )
    wanted = list(dict.fromkeys(Control.parse(c) for c in (control, *controls)))
    for one in wanted:
        one.check(length)
    prefix, base_BNE = model.read(ids, lengths)
    place = Place.every(lengths, samples, ids.device)

    floors: dict[float | None, NoiseFloor] = {}

    def run(one: Control, tokens: Tensor | None) -> Score:
        weight = mixing_weight if one.weight is None else one.weight
        floor = None
        if one.thinks and len(place):
            if weight not in floors:
                floors[weight] = noise.measure(model, prefix, noise.spread(lengths), ids, base_BNE, length, weight)
            floor = floors[weight]
        width = length if tokens is None else tokens.shape[1]
        table = _Table(model, prefix, base_BNE, ids, mask, samples, width, floor)
        for r in chunks(len(place), rows_at_once(prefix, length, samples)):
            thought = None
            if one.thinks:
                thought = model.think(
                    prefix,
                    place[r],
                    length=length,
                    temperature=temperature,
                    seed=seed,
                    tokens=None if tokens is None else tokens[r],
                )
            table.fill(place[r], thought, weight)
        return table.score(str(one))

    own_BNPT = None if thoughts is None else thoughts.to(ids.device)
    results: list[Score] = []
    sampled: Score | None = None
    if own_BNPT is None and any(one.needs_own for one in wanted):
        sampled = run(Own(), None)
        own_BNPT = sampled.thoughts
    for one in wanted:
        if one == Own() and sampled is not None:
            results.append(sampled)
            continue
        if own_BNPT is None:  # no control needs the model's own thoughts
            own = torch.zeros(len(place), length, dtype=torch.long, device=ids.device)
        else:
            own = own_BNPT[place.sequence, one.source(place, seed), place.sample]
        results.append(run(one, one.replace(own, place, seed, model.filler_token)))
    first = results[0]
    first.controls = {score.control: score for score in results[1:]}
    for score in results:
        score.tokenizer = model.tokenizer
    return first


def check_thinking(length: int, samples: int, temperature: float | None, mixing_weight: float | None = None) -> None:
    """Refuse impossible thought settings, naming the argument."""
    if length < 0:
        raise QuietStarError(f"thought_length must be at least 0, got {length}")
    if samples < 1:
        raise QuietStarError(f"samples must be at least 1, got {samples}")
    if temperature is not None and (not np.isfinite(temperature) or temperature < 0):
        raise QuietStarError(f"thought_temperature must be 0 (greedy) or above, got {temperature}")
    if mixing_weight is not None and not abs(mixing_weight) < torch.finfo(torch.float32).max:
        raise QuietStarError(f"mixing_weight must be a finite number, got {mixing_weight}")
    if temperature == 0 and samples > 1:
        raise QuietStarError(
            f"samples must be 1 when thought_temperature is 0: {samples} greedy thoughts would be the same thought"
        )


def default_temperature(temperature: float | None, samples: int) -> float:
    """Greedy for one thought, as the paper evaluates; 1 for several."""
    if temperature is not None:
        return temperature
    return 0.0 if samples == 1 else 1.0


class _Table:
    """Collects the numbers of one control, row by row, into (B, N - 1, P) tables."""

    def __init__(
        self,
        model: ThinkingModel,
        prefix: Prefix,
        base: Tensor,
        ids: Tensor,
        mask: Tensor,
        samples: int,
        length: int,
        noise: NoiseFloor | None,
    ) -> None:
        self.noise = noise
        self.model, self.base, self.ids, self.mask = model, base, ids, mask
        shape = (ids.shape[0], max(0, ids.shape[1] - 1))

        def nan(*more: int) -> Tensor:
            return torch.full((*shape, *more), torch.nan, device=ids.device)

        self.base_logprobs, self.entropy = nan(), nan()
        self.kl = nan()
        self.mixed, self.only, self.weight = (nan(samples) for _ in range(3))
        self.flips = torch.zeros(*shape, dtype=torch.bool, device=ids.device)
        self.thoughts = torch.full((*shape, samples, length), -1, device=ids.device)
        self.token_logprobs = nan(samples, length)
        self.samples = samples

    def fill(self, place: Place, thought: Thought | None, weight: float | None) -> None:
        """Add the rows at `place`; `weight` overrides the mixing head."""
        if thought is not None:
            where = (place.sequence, place.position, place.sample)
            self.thoughts[where] = thought.tokens
            self.token_logprobs[where] = thought.logprobs
        step = max(1, self.model.budget.logit_rows // self.samples) * self.samples  # all samples of a position together
        for r in chunks(len(place), step):
            self._fill(place[r], None if thought is None else thought.hidden[r], weight)

    def _fill(self, place: Place, hidden_RE: Tensor | None, weight: float | None) -> None:
        model, p = self.model, self.samples
        first = slice(None, None, p)  # base numbers once a position
        b, i = place.sequence[first], place.position[first]
        target_Q = self.ids[b, i + 1]
        base_QE = self.base[b, i]
        states = [base_QE] if hidden_RE is None else [base_QE, hidden_RE]  # one product: the weights are read once
        where_S = i if hidden_RE is None else torch.cat([i, place.position])
        products_QV, *others = model.products(torch.cat(states), where_S).split([len(part) for part in states])
        base_QV = model.logprobs(products_QV)
        self.base_logprobs[b, i] = base_QV.gather(-1, target_Q[:, None])[:, 0]
        self.entropy[b, i] = entropy(base_QV)
        if hidden_RE is None:
            self.mixed[b, i] = self.base_logprobs[b, i, None]
            self.weight[b, i], self.kl[b, i] = 0.0, 0.0
            return
        if p > 1:
            base_QE, products_QV = base_QE.repeat_interleave(p, 0), products_QV.repeat_interleave(p, 0)
        w_R, mixed_RV, only_RV = model.predict(base_QE, hidden_RE, weight, products_QV, others[0], place.position)
        target_R1 = target_Q.repeat_interleave(p)[:, None]
        where = (place.sequence, place.position, place.sample)
        self.weight[where] = w_R
        self.mixed[where] = mixed_RV.gather(-1, target_R1)[:, 0]
        self.only[where] = only_RV.gather(-1, target_R1)[:, 0]
        together_QV = average(mixed_RV.view(-1, p, mixed_RV.shape[-1]))
        self.kl[b, i] = kl_divergence(together_QV, base_QV)
        self.flips[b, i] = flipped(base_QV, together_QV, 0.0 if self.noise is None else self.noise.logprob)

    def score(self, control: str) -> Score:
        """The score made of these tables."""
        together, only = (average(values[..., None])[..., 0] for values in (self.mixed, self.only))
        return Score(
            ids=self.ids,
            mask=self.mask,
            base_logprobs=self.base_logprobs,
            mixed_logprobs=together,
            thought_logprobs=only,
            mixing_weight=self.weight.mean(-1),
            kl=self.kl,
            entropy=self.entropy,
            flipped=self.flips,
            thoughts=self.thoughts,
            token_logprobs=self.token_logprobs,
            sample_mixed_logprobs=self.mixed,
            control=control,
            noise=self.noise,
        )
