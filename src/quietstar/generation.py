"""Generation: think where the trigger says so, mix, emit a token, and tell everything as a stream of events.

The prefix states are computed once and grow by one token a step; a position without a thought costs nothing more than
plain decoding. Knows the model, triggers, controls and events; knows nothing about files, terminals or chat templates.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from quietstar import interventions
from quietstar._version import __version__
from quietstar.errors import QuietStarError
from quietstar.identity import identify, versions
from quietstar.interventions import Control
from quietstar.model import UNEMBED_ROWS, Place, ThinkingModel, Thought, chunks
from quietstar.rows import Prefix
from quietstar.sampling import TOKEN, average, ban, choose, entropy, kl_divergence, uniforms
from quietstar.scoring import check_thinking, default_temperature, filler_token
from quietstar.scratchpad.trace import (
    SCHEMA_VERSION,
    Choice,
    End,
    Event,
    Sample,
    Start,
    ThoughtEvent,
    TokenEvent,
)
from quietstar.text import TextStream, pieces
from quietstar.triggers import Moment, Trigger


@dataclass
class GenerationSettings:
    """How to think and speak; recorded whole in the `start` event.

    Args:
        thought_length: T, tokens a thought has (markers not counted); the model's own when None.
        samples: P, thoughts at a position; the mixed prediction is the mean of their probabilities.
        trigger: when to think, see `triggers`.
        control: what stands in the place of the own thought, see `interventions`.
        temperature: of the emitted tokens, 0 is greedy. top_p: nucleus of the emitted tokens, above 0 to 1.
        thought_temperature: of the thought tokens; None is 0 for one sample and 1 for several.
        max_new_tokens: most emitted tokens.
        seed: same seed, same output.
        stop: strings that end the answer; they are not part of it.
        stop_ids: token ids that end the answer; the model's own when None.
        mixing_weight: a fixed w in place of the mixing head's, or None.
        show: how many of the likeliest next tokens a thought event names.
    """

    thought_length: int | None = None
    samples: int = 1
    trigger: str = "always"
    control: str = "own"
    temperature: float = 0.0
    top_p: float = 1.0
    thought_temperature: float | None = None
    max_new_tokens: int = 128
    seed: int = 0
    stop: Sequence[str] = field(default_factory=tuple)
    stop_ids: Sequence[int] | None = None
    mixing_weight: float | None = None
    show: int = 5

    def __post_init__(self) -> None:
        if not math.isfinite(self.temperature) or self.temperature < 0:
            raise QuietStarError(f"temperature must be 0 (greedy) or above, got {self.temperature}")
        if not 0 < self.top_p <= 1:
            raise QuietStarError(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if self.max_new_tokens < 1:
            raise QuietStarError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if self.show < 1:
            raise QuietStarError(f"show must be at least 1, got {self.show}")
        if isinstance(self.stop, str):
            self.stop = (self.stop,)
        if "" in self.stop:
            raise QuietStarError("stop must not be an empty string")
        check_thinking(self.thought_length or 0, self.samples, self.thought_temperature, self.mixing_weight)
        self.trigger = str(Trigger.parse(self.trigger))
        self.control = str(Control.parse(self.control))


class _Speaker:
    """One sequence on its way to text: its ids, what is held back for a stop string, and how it ended."""

    def __init__(self, tokenizer: Any, prompt: list[int], stops: Sequence[str], sequence: int) -> None:
        self.ids, self.prompt_length, self.sequence = list(prompt), len(prompt), sequence
        self.stream = TextStream(tokenizer, prompt) if tokenizer is not None else None
        self.stops = stops
        self.text = ""
        self.held: list[Event] = []
        self.held_text = 0
        self.thoughts = 0
        self.reason: str | None = None

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

    def finish(self) -> str:
        if self.stream is not None and self.reason != "stop_string":
            self.text += self.stream.flush()
        return self.text


def stream_ids(
    model: ThinkingModel,
    prompts: list[list[int]],
    settings: GenerationSettings,
    *,
    texts: list[str] | None = None,
    asked: list[str] | None = None,
    chat: bool = False,
    thoughts: Tensor | None = None,
    phase: str = "answer",
) -> Iterator[Event]:
    """Generate from prompts given as ids and tell all of it as events, see `scratchpad.trace`.

    Args:
        prompts: token ids of each sequence, at least one token each; lengths may differ.
        texts: the prompts as text, for the record; asked: the same without chat template.
        chat: whether they went through a chat template.
        thoughts: token ids (B, positions, P, T) to think at the first, second, ... emitted token instead of sampling.
    """
    run = _Run(model, prompts, settings, thoughts)
    yield Start(
        schema=SCHEMA_VERSION, version=__version__, model=model.config.name_or_path or "quietstar",
        base=model.config.base_name or "", dtype=str(model.decoder_lm.dtype).removeprefix("torch."),
        device=str(model.device), untrained=model.head.untrained and run.forced_weight is None,
        prompts=texts or ["" for _ in prompts], prompt_ids=[list(ids) for ids in prompts], chat=chat,
        settings=_plain(settings) | {"thought_length": run.length, "thought_temperature": run.temperature},
        phase=phase, identity=identify(model), versions=versions(), asked=asked or ["" for _ in prompts],
    )  # fmt: skip
    yield from run.events()


def _plain(settings: GenerationSettings) -> dict[str, Any]:
    """Settings as JSON knows them: lists for tuples, so that what is read back equals what was recorded."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}


class _Run:
    """The loop over emitted tokens for B sequences at once."""

    def __init__(
        self, model: ThinkingModel, prompts: list[list[int]], settings: GenerationSettings, forced: Tensor | None
    ) -> None:
        self.model, self.settings, self.forced = model, settings, forced
        self.length = model.config.thought_length if settings.thought_length is None else settings.thought_length
        if forced is not None:
            if forced.dim() != 4 or forced.shape[0] != len(prompts) or forced.shape[2] != settings.samples:
                raise QuietStarError(
                    f"thoughts must have shape (batch, positions, samples, T) = ({len(prompts)}, ..., "
                    f"{settings.samples}, ...), got {tuple(forced.shape)}"
                )
            self.length = forced.shape[3]
        self.temperature = default_temperature(settings.thought_temperature, settings.samples)
        self.trigger, self.control = Trigger.parse(settings.trigger), Control.parse(settings.control)
        if self.trigger.needs_marker and not model.config.marker_ids:
            raise QuietStarError(
                "trigger 'marker' needs a vocabulary with a start marker, as published Quiet-STaR checkpoints have; "
                "use always, random(p), weight(t), entropy(t) or every(k) with this model"
            )
        if self.control.name == "truncated" and (self.control.keep or 0) > self.length:
            raise QuietStarError(
                f"control truncated:{self.control.keep} keeps more than the thought's {self.length} tokens"
            )
        for ids in prompts:
            if not ids:
                raise QuietStarError("the prompt is empty; give at least one token of text")
            if self.control.name == "donor" and len(ids) < 2:
                raise QuietStarError("the donor control needs a prompt of two tokens or more")
            if self.control.name == "donor" and forced is not None:
                raise QuietStarError(
                    "thoughts= and the donor control exclude each other: the donor's thought is sampled"
                )
            model.check_fits(len(ids), self.length, "prompt")
        self.forced_weight = settings.mixing_weight if self.control.weight is None else self.control.weight
        self.device = model.device
        self.stop_ids = frozenset(model_stop_ids(model) if settings.stop_ids is None else settings.stop_ids)
        self.speakers = [_Speaker(model.tokenizer, list(ids), tuple(settings.stop), b) for b, ids in enumerate(prompts)]

    @torch.inference_mode()
    def _prefill(self) -> tuple[Prefix, Tensor]:
        lengths = [len(speaker.ids) for speaker in self.speakers]
        ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device=self.device)
        for b, speaker in enumerate(self.speakers):
            ids[b, : lengths[b]] = torch.tensor(speaker.ids, device=self.device)
        prefix, hidden = self.model.read(ids, lengths)
        last = torch.tensor(lengths, device=self.device) - 1
        return prefix, hidden[torch.arange(len(lengths), device=self.device), last]

    def events(self) -> Iterator[Event]:
        """Thought and token events as they come, then the ends."""
        began = time.perf_counter()
        prefix, hidden_BE = self._prefill()
        limit = self.model.context_limit or math.inf
        for step in range(self.settings.max_new_tokens):
            out: list[Event] = []
            with torch.inference_mode():
                next_ids = self._step(step, prefix, hidden_BE, out)
            yield from out
            active = [speaker.reason is None for speaker in self.speakers]
            for speaker in self.speakers:
                if speaker.reason is None and len(speaker.ids) + self.length + 2 > limit:
                    speaker.reason, active[speaker.sequence] = "context", False
            if step == self.settings.max_new_tokens - 1 or not any(active):
                break
            with torch.inference_mode():
                embeds = self.model.embed(torch.tensor(next_ids, device=self.device)[:, None])
                hidden_BE = prefix.extend(embeds, [int(a) for a in active])[:, 0]
        for speaker in self.speakers:
            yield from speaker.release()
            yield End(
                sequence=speaker.sequence, reason=speaker.reason or "length", text=speaker.finish(),
                tokens=len(speaker.ids) - speaker.prompt_length, thoughts=speaker.thoughts,
                seconds=round(time.perf_counter() - began, 4),
            )  # fmt: skip

    def _step(self, step: int, prefix: Prefix, hidden_BE: Tensor, out: list[Event]) -> list[int]:
        """One emitted token for each sequence that still speaks; appends its events to `out`."""
        model, settings = self.model, self.settings
        raw_BV = model.unembed(hidden_BE).float()
        base_BV = torch.log_softmax(ban(raw_BV, model.config.marker_ids), dim=-1)
        mixed_BV = base_BV
        speaking = [s for s in self.speakers if s.reason is None]
        asked = self.trigger.decide(
            Moment(
                logits=raw_BV, weight=lambda: model.weight(hidden_BE, hidden_BE), step=step,
                sequence=[s.sequence for s in self.speakers], position=[len(s.ids) - 1 for s in self.speakers],
                seed=settings.seed, marker_id=model.config.marker_ids[0] if model.config.marker_ids else None,
            )
        )  # fmt: skip
        thinking = [s for s in speaking if asked[s.sequence] is not None and self.control.name != "none"]
        if thinking:
            mixed_BV = base_BV.clone()
            place = self._place(thinking)
            thought = self._thought(prefix, place, step)
            for n, speaker in enumerate(thinking):
                rows = slice(n * settings.samples, (n + 1) * settings.samples)
                event, mixed_V = self._look(
                    speaker, asked[speaker.sequence] or "", hidden_BE[speaker.sequence], base_BV[speaker.sequence],
                    Thought(thought.tokens[rows], thought.logprobs[rows], thought.hidden[rows]),
                )  # fmt: skip
                mixed_BV[speaker.sequence] = mixed_V
                speaker.thoughts += 1
                speaker.held.append(event)
        next_ids = self._pick(mixed_BV)
        last = step == settings.max_new_tokens - 1
        for speaker in speaking:
            token = next_ids[speaker.sequence]
            if token in self.stop_ids:
                speaker.reason = "stop"
                out.extend(speaker.release())
                continue
            event_ = TokenEvent(
                sequence=speaker.sequence, position=len(speaker.ids), id=token, text="",
                logprob=float(mixed_BV[speaker.sequence, token]), thought=speaker in thinking,
            )  # fmt: skip
            out.extend(speaker.push(event_, last))
        return next_ids

    def _place(self, thinking: list[_Speaker]) -> Place:
        samples = self.settings.samples
        table = np.array([(s.sequence, len(s.ids) - 1, p) for s in thinking for p in range(samples)])
        return Place(*torch.from_numpy(table.T.copy()).to(self.device))

    def _thought(self, prefix: Prefix, place: Place, step: int) -> Thought:
        """Think at `place`, or put there what the control says."""
        model, control = self.model, self.control
        settings = dict(length=self.length, temperature=self.temperature, seed=self.settings.seed)
        given = None
        if self.forced is not None and step < self.forced.shape[1]:
            given = self.forced[:, step].to(self.device)[place.sequence, place.sample]
        if control.name not in ("own", "only"):
            where = place
            if control.name == "donor":  # a thought the model has at some earlier position of the same text
                earlier = interventions.donor_positions(self.settings.seed, place.sequence, place.position)
                where = Place(place.sequence, earlier.clamp_min(0), place.sample)
            if control.name == "filler":
                given = torch.zeros(len(place), self.length, dtype=torch.long, device=self.device)
            elif given is None:
                given = model.think(prefix, where, **settings).tokens  # type: ignore[arg-type]
            given = interventions.replace(
                control, given, self.settings.seed, place.sequence, place.position, place.sample, filler_token(model)
            )
        return model.think(prefix, place, tokens=given, **settings)  # type: ignore[arg-type]

    def _look(
        self, speaker: _Speaker, trigger: str, base_E: Tensor, base_V: Tensor, thought: Thought
    ) -> tuple[ThoughtEvent, Tensor]:
        """The thought event of one sequence and its mixed log-probabilities (V,)."""
        model, settings = self.model, self.settings
        base_PE = base_E.expand(settings.samples, -1)
        w_P, mixed_PV, only_PV = model.predict(base_PE, thought.hidden, self.forced_weight)
        mixed_V, only_V = average(mixed_PV), average(only_PV)
        context = speaker.ids
        base, mixed, only = self._choices(torch.stack([base_V, mixed_V, only_V]), context)
        event = ThoughtEvent(
            sequence=speaker.sequence, position=len(context) - 1, trigger=trigger, control=str(self.control),
            samples=[
                Sample(
                    ids=tokens.tolist(), text="".join(parts), logprobs=[round(x, 5) for x in logprobs.tolist()],
                    weight=float(w), pieces=parts,
                )
                for tokens, logprobs, w in zip(thought.tokens, thought.logprobs, w_P, strict=True)
                for parts in [self._pieces(tokens.tolist(), context)]
            ],
            weight=float(w_P.mean()), base=base, mixed=mixed,
            only=only, flipped=bool(base_V.argmax() != mixed_V.argmax()),
            kl=float(kl_divergence(mixed_V, base_V)), entropy=float(entropy(base_V)),
        )  # fmt: skip
        return event, mixed_V

    def _pieces(self, ids: list[int], context: list[int]) -> list[str]:
        return [] if self.model.tokenizer is None else pieces(self.model.tokenizer, ids, context)

    def _text(self, ids: list[int], context: list[int]) -> str:
        return "".join(self._pieces(ids, context))

    def _choices(self, logprobs: Tensor, context: list[int]) -> list[list[Choice]]:
        """The likeliest next tokens of each distribution (n, V)."""
        best = logprobs.topk(min(self.settings.show, logprobs.shape[-1]))
        texts = {token: self._text([token], context) for token in set(best.indices.flatten().tolist())}
        return [
            [Choice(token, texts[token], math.exp(logprob)) for token, logprob in zip(ids, values, strict=True)]
            for ids, values in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]

    def _pick(self, logprobs_BV: Tensor) -> list[int]:
        """Emitted tokens, one a sequence."""
        settings = self.settings
        if settings.temperature == 0:
            return logprobs_BV.argmax(-1).tolist()  # type: ignore[no-any-return]
        keys = [s.sequence for s in self.speakers], [len(s.ids) - 1 for s in self.speakers]
        uniform_B = torch.from_numpy(uniforms(settings.seed, TOKEN, *keys)).to(self.device)
        token_B, _ = choose(logprobs_BV, uniform_B, settings.temperature, settings.top_p)
        return token_B.tolist()  # type: ignore[no-any-return]


def model_stop_ids(model: ThinkingModel) -> list[int]:
    """Token ids that end an answer: those of the base's generation config and the tokenizer's end of sequence."""
    found = getattr(getattr(model.decoder_lm, "generation_config", None), "eos_token_id", None)
    ids = [] if found is None else list(found) if isinstance(found, (list, tuple)) else [found]
    end = getattr(model.tokenizer, "eos_token_id", None)
    return [*ids, end] if end is not None and end not in ids else ids


@dataclass
class Resampled:
    """n thoughts at one position and what each does to the next token.

    Args:
        position: the place; thoughts: (n, T) tokens; texts: the same as text; token_logprobs: (n, T).
        mixing_weight: (n,) w. kl: (n,) KL(mixed || base) in nats. flipped: (n,) argmax changed.
        base, mixed, only: likeliest next tokens without a thought, and with / from only each thought.
    """

    position: int
    control: str
    thoughts: Tensor
    texts: list[str]
    token_logprobs: Tensor
    mixing_weight: Tensor
    kl: Tensor
    flipped: Tensor
    base: list[Choice]
    mixed: list[list[Choice]]
    only: list[list[Choice]]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return {name: value.tolist() if isinstance(value, Tensor) else value for name, value in asdict(self).items()}

    def to_pandas(self) -> Any:
        """A data frame with one row a thought."""
        import pandas as pd

        return pd.DataFrame(
            {
                "thought": self.texts, "weight": self.mixing_weight.tolist(), "kl": self.kl.tolist(),
                "flipped": self.flipped.tolist(), "without": self.base[0].text,
                "with": [one[0].text for one in self.mixed], "only": [one[0].text for one in self.only],
            }
        )  # fmt: skip

    def _repr_html_(self) -> str:
        html: str = self.to_pandas().to_html(escape=True, float_format="{:.4f}".format)
        return html


@torch.inference_mode()
def resample_ids(
    model: ThinkingModel,
    ids: list[int],
    position: int,
    n: int,
    *,
    thought_length: int | None = None,
    thought_temperature: float = 1.0,
    seed: int = 0,
    control: str | Control = "own",
    mixing_weight: float | None = None,
    thoughts: Tensor | None = None,
    prefix: Prefix | None = None,
    hidden: Tensor | None = None,
    show: int = 5,
) -> Resampled:
    """Think n times at one position of a text; see `QuietStar.resample`. `prefix`, `hidden` spare reading it."""
    if not 0 <= position < len(ids):
        raise QuietStarError(
            f"position must be from 0 to {len(ids) - 1} (the text has {len(ids)} tokens), got {position}"
        )
    if n < 1:
        raise QuietStarError(f"n must be at least 1, got {n}")
    settings = GenerationSettings(
        thought_length=thought_length, samples=n, control=str(Control.parse(control)), seed=seed,
        thought_temperature=thought_temperature if n > 1 or thought_temperature else None,
        mixing_weight=mixing_weight, show=show, max_new_tokens=1,
    )  # fmt: skip
    run = _Run(model, [ids[: position + 1]], settings, None if thoughts is None else thoughts[None, None])
    if prefix is None or hidden is None:
        prefix, hidden_1E = run._prefill()
    else:
        hidden_1E = hidden
    base_V = torch.log_softmax(model.logits(hidden_1E), dim=-1)[0]
    speaker = run.speakers[0]
    place = run._place([speaker])
    thought = run._thought(prefix, place, 0) if run.control.name != "none" else None
    if thought is None:
        raise QuietStarError("control 'none' has no thought to resample; the prediction is the base prediction")
    parts = []
    for r in chunks(n, UNEMBED_ROWS):
        base_RE = hidden_1E.expand(len(thought.hidden[r]), -1)
        w_R, mixed_RV, only_RV = model.predict(base_RE, thought.hidden[r], run.forced_weight)
        parts.append(
            (
                w_R, kl_divergence(mixed_RV, base_V.expand_as(mixed_RV)), mixed_RV.argmax(-1) != base_V.argmax(-1),
                run._choices(mixed_RV, speaker.ids), run._choices(only_RV, speaker.ids),
            )
        )  # fmt: skip
    return Resampled(
        position=position, control=str(run.control), thoughts=thought.tokens,
        texts=[run._text(tokens, speaker.ids) for tokens in thought.tokens.tolist()],
        token_logprobs=thought.logprobs,
        mixing_weight=torch.cat([part[0] for part in parts]), kl=torch.cat([part[1] for part in parts]),
        flipped=torch.cat([part[2] for part in parts]), base=run._choices(base_V[None], speaker.ids)[0],
        mixed=[choices for part in parts for choices in part[3]],
        only=[choices for part in parts for choices in part[4]],
    )  # fmt: skip
