"""Thinking at chosen places under one set of settings: own thoughts, given ones or those of a control.

Top down, for M places with P samples each:

1. `Thinker.think` thinks at all places in parallel, one row a sample, in chunks that fit the budget of the device.
2. `Thinker.predictions` mixes each place's thoughts into its base prediction.
3. `Thinker.event` describes one place: its thoughts, and the likeliest next tokens without, with and from them alone.

Knows the model, controls and events; knows nothing about which places are chosen, or what is emitted.

Shapes: M places · P samples · R = M P rows · T thought tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from quietstar.engine.budgets import rows_at_once
from quietstar.engine.model import Place, ThinkingModel, Thought, chunks
from quietstar.engine.rows import Prefix
from quietstar.engine.sampling import average, entropy, flipped, kl_divergence, top
from quietstar.errors import QuietStarError
from quietstar.events import Choice, NoiseFloor, Sample, ThoughtEvent
from quietstar.inference.controls import Control
from quietstar.text import pieces


@dataclass
class Prediction:
    """What the P thoughts of one place make of the next token: w (P,), log-probabilities mixed and alone (P, V)."""

    weight: Tensor
    mixed: Tensor
    only: Tensor


@dataclass
class Thinker:
    """How to think, and how to describe thoughts in events.

    Args:
        length: T. samples: P thoughts a place. temperature: of thought tokens. seed: of all randomness.
        control: which thoughts to predict with. mixing_weight: a fixed w, or None for the mixing head's.
        forced: thought tokens (B, positions, P, T) for the first emitted tokens, or None.
        show: how many of the likeliest tokens a thought event names.
    """

    model: ThinkingModel
    length: int
    samples: int
    temperature: float
    seed: int
    control: Control
    mixing_weight: float | None = None
    forced: Tensor | None = None
    show: int = 5

    def __post_init__(self) -> None:
        self.control.check(self.length)
        if self.control.needs_earlier and self.forced is not None:
            raise QuietStarError(
                f"thoughts= cannot be combined with the {self.control} control, which samples thoughts of its own"
            )
        self.weight = self.mixing_weight if self.control.weight is None else self.control.weight

    def check(self, ids: list[int]) -> None:
        """Refuse a prompt that no thought can follow.

        Raises:
            QuietStarError: it is empty, too short for the control, or too long for the model's context.
        """
        if not ids:
            raise QuietStarError("the prompt is empty; give at least one token of text")
        if self.control.needs_earlier and len(ids) < 2:
            raise QuietStarError(f"the {self.control} control needs a prompt of two tokens or more")
        self.model.check_fits(len(ids), self.length, "prompt")

    @property
    def passes(self) -> int:
        """How many passes of the model, one after another, a thought takes."""
        known = self.forced is not None or (self.control.thinks and not self.control.needs_own)
        replaced = self.control.needs_own and not self.control.keeps_own
        return 1 if known else max(2, self.length + 1) + replaced

    def think(self, prefix: Prefix, sequence: list[int], position: list[int], step: list[int]) -> Thought:
        """Think P times at each of M places in parallel, all samples of a place together; M * P rows.

        Args:
            sequence, position: (M,) the places, ascending. step: (M,) tokens emitted before each, which chooses
                among the forced thoughts.
        """
        # 1. One row for each sample of each place; the samples of a place lie together.
        table = np.repeat(np.array([sequence, position]), self.samples, axis=1)
        sample = np.tile(np.arange(self.samples), len(position))
        place = Place(*torch.from_numpy(np.concatenate([table, sample[None]])).to(self.model.device))
        step_R = torch.tensor(step, device=self.model.device).repeat_interleave(self.samples)
        # 2. Think in chunks of rows.
        size = rows_at_once(prefix, self.length, self.samples)
        return Thought.joined([self._think(prefix, place[r], step_R[r]) for r in chunks(len(place), size)])

    def _think(self, prefix: Prefix, place: Place, step: Tensor) -> Thought:
        """Think at one chunk of rows; rows with a forced thought and rows without are run separately."""
        if self.forced is None:
            return self._controlled(prefix, place, None)
        is_forced_R = step < self.forced.shape[1]
        forced_rows, free_rows = is_forced_R.nonzero()[:, 0], (~is_forced_R).nonzero()[:, 0]
        parts = []
        if len(free_rows):
            parts.append(self._controlled(prefix, place[free_rows], None))
        if len(forced_rows):
            where = place[forced_rows]
            tokens_RT = self.forced.to(step.device)[where.sequence, step[forced_rows], where.sample]
            parts.append(self._controlled(prefix, where, tokens_RT))
        return Thought.joined(parts)[torch.cat([free_rows, forced_rows]).argsort()]

    def _controlled(self, prefix: Prefix, place: Place, given: Tensor | None) -> Thought:
        """Think at `place` with the control's thoughts, made of the own ones or of the `given` tokens (R, T)."""
        model, control = self.model, self.control

        def think(where: Place, tokens: Tensor | None) -> Thought:
            return model.think(
                prefix, where, length=self.length, temperature=self.temperature, seed=self.seed, tokens=tokens
            )

        if control.keeps_own:
            return think(place, given)
        # 1. The own thoughts that the control starts from, sampled unless they are given or not needed.
        if not control.needs_own:
            own = torch.zeros(len(place), self.length, dtype=torch.long, device=model.device)
        elif given is not None:
            own = given
        else:
            own = think(Place(place.sequence, control.source(place, self.seed), place.sample), None).tokens
        # 2. What the control makes of them, thought at the places themselves.
        return think(place, control.replace(own, place, self.seed, model.filler_token))

    def predictions(
        self, base_ME: Tensor, products_MV: Tensor, thought_RE: Tensor, position: list[int]
    ) -> Iterator[Prediction]:
        """One prediction a place, computed lazily: a caller that stops early saves the rest.

        Args:
            base_ME, products_MV: base states and their products with the output layer. thought_RE: M * P states at the
                ends of the thoughts. position: (M,) where.
        """
        position_M = torch.tensor(position, device=base_ME.device)
        places_at_once = max(1, self.model.budget.logit_rows // self.samples)
        for places in chunks(len(base_ME), places_at_once):
            rows = slice(places.start * self.samples, places.stop * self.samples)
            base_RE, products_RV, position_R = (
                x[places].repeat_interleave(self.samples, 0) for x in (base_ME, products_MV, position_M)
            )
            w_R, mixed_RV, only_RV = self.model.predict(
                base_RE, thought_RE[rows], self.weight, products_RV, position=position_R
            )
            for samples in chunks(len(w_R), self.samples):
                yield Prediction(w_R[samples], mixed_RV[samples], only_RV[samples])

    def event(
        self,
        sequence: int,
        context: list[int],
        trigger: str,
        base_V: Tensor,
        thought: Thought,
        found: Prediction,
        noise: NoiseFloor,
    ) -> tuple[ThoughtEvent, Tensor, Tensor]:
        """Describe one place.

        Args:
            sequence: its number in the batch. context: the token ids up to the place. trigger: the rules that fired.
            base_V: base log-probabilities. thought, found: the P thoughts there and the predictions with them.
            noise: what rounding alone changes; a smaller change of the likeliest token is no flip.

        Returns:
            the event, and the samples' mean predictions as log-probabilities (V,): mixed, and from the thoughts alone.
        """
        mixed_V, only_V = average(found.mixed), average(found.only)
        base, mixed, only = self.choices(torch.stack([base_V, mixed_V, only_V]), context)
        event = ThoughtEvent(
            sequence=sequence,
            position=len(context) - 1,
            trigger=trigger,
            control=str(self.control),
            samples=self._samples(thought, found.weight, context),
            weight=float(found.weight.mean()),
            base=base,
            mixed=mixed,
            only=only,
            flipped=bool(flipped(base_V, mixed_V, noise.logprob)),
            kl=float(kl_divergence(mixed_V, base_V)),
            entropy=float(entropy(base_V)),
        )
        return event, mixed_V, only_V

    def _samples(self, thought: Thought, weight: Tensor, context: list[int]) -> list[Sample]:
        """The P thoughts of one place after `context` with their mixing weights (P,), as they are recorded."""
        samples = []
        for ids, logprobs, w in zip(thought.tokens.tolist(), thought.logprobs.tolist(), weight.tolist(), strict=True):
            parts = self.pieces(ids, context)
            rounded = [round(x, 5) for x in logprobs]
            samples.append(Sample(ids=ids, text="".join(parts), logprobs=rounded, weight=w, pieces=parts))
        return samples

    def pieces(self, ids: list[int], context: list[int]) -> list[str]:
        """One string for each token of `ids` after `context`; no strings without a tokenizer."""
        return [] if self.model.tokenizer is None else pieces(self.model.tokenizer, ids, context)

    def text(self, ids: list[int], context: list[int]) -> str:
        """The text of `ids` after `context`."""
        return "".join(self.pieces(ids, context))

    def choices(self, logprobs: Tensor, context: list[int]) -> list[list[Choice]]:
        """The likeliest next tokens of each distribution (n, V)."""
        values_nK, index_nK = top(logprobs, self.show)
        texts = {token: self.text([token], context) for token in set(index_nK.flatten().tolist())}
        return [
            [Choice(token, texts[token], math.exp(logprob)) for token, logprob in zip(ids, values, strict=True)]
            for ids, values in zip(index_nK.tolist(), values_nK.tolist(), strict=True)
        ]
