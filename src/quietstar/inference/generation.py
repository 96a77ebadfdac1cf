"""Generation: think where the trigger says so, mix, emit a token, and report everything as a stream of events.

The prefix states are computed once and grow by the emitted tokens; a position without a thought costs nothing more than
plain decoding. Tokens ahead may be drafted and thought about together, see `speculation`; one by one is the same loop
with no drafts. Top down (`_Run`):

1. `_read` runs the prompts; then `_settle` and `_advance` take turns until every sequence has ended.
2. `_settle` emits what can be emitted: sites without a thought at once (`_emit`), and once enough tokens are drafted,
   thinks at all waiting sites in parallel (`_think`) and emits up to the first rejected draft.
3. `_advance` runs the next token of each sequence through the base model, with candidates for its next drafts after it
   (`_next`), and makes a site of each position whose candidate is verified (`_observe`).

Knows the model, triggers and events; knows nothing about files, terminals or chat templates.

Shapes: B sequences · M positions (of any of them) · E hidden size · V vocabulary.
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import Annotated, Any

import torch
from torch import Tensor

from quietstar._version import __version__
from quietstar.arguments import at_least, between, converted, one_or_more, rule
from quietstar.arguments import settings as settings_class
from quietstar.engine import families, memory, noise
from quietstar.engine.identity import identify, versions
from quietstar.engine.model import ThinkingModel, Thought
from quietstar.engine.rows import Prefix
from quietstar.engine.sampling import TOKEN, ban, best, clocks, distribution, race
from quietstar.errors import QuietStarError
from quietstar.events import SCHEMA_VERSION, Event, NoiseFloor, Start, ThoughtEvent, TokenEvent
from quietstar.inference import speculation
from quietstar.inference.controls import Control
from quietstar.inference.scoring import check_thinking, default_temperature
from quietstar.inference.speaking import Speaker
from quietstar.inference.speculation import LONGEST_MATCH, MOST_CANDIDATES, Pace, Site, lookup
from quietstar.inference.suppression import Suppression
from quietstar.inference.thinking import Prediction, Thinker
from quietstar.inference.triggers import Moment, Trigger

MOST_SHOWN = 1000  # candidates a thought event may name


@settings_class
class GenerationSettings:
    """How to think and speak; recorded whole in the `start` event.

    Args:
        thought_length: T, tokens a thought has (markers not counted); the model's own when None.
        samples: P, thoughts at a position; the mixed prediction is the mean of their probabilities.
        trigger: when to think, see `triggers`.
        control: what thoughts to predict with, see `controls`.
        temperature: of the emitted tokens, 0 is greedy. top_p: nucleus of the emitted tokens, above 0 to 1.
        thought_temperature: of the thought tokens; None is 0 for one sample and 1 for several.
        max_new_tokens: most emitted tokens.
        seed: same seed, same output.
        stop: strings that end the answer; they are not part of it.
        stop_ids: token ids that end the answer; the model's own when None.
        mixing_weight: a fixed w in place of the mixing head's, or None.
        show: how many of the likeliest next tokens a thought event names.
        speculate: how many tokens to draft and think about together, "auto", or 0 for one by one. In fp32 the output is
            the same; below, rounding may decide between equally good tokens otherwise. See `speculation`.
    """

    thought_length: Annotated[int, at_least(0)] | None = None
    samples: Annotated[int, at_least(1)] = 1
    trigger: Annotated[str | Trigger, converted(lambda text: str(Trigger.parse(text)), str, Trigger)] = "always"
    control: Annotated[str | Control, converted(lambda text: str(Control.parse(text)), str, Control)] = "own"
    temperature: Annotated[float, rule(lambda x: x >= 0, "be 0 (greedy) or above")] = 0.0
    top_p: Annotated[float, rule(lambda x: 0 < x <= 1, "be above 0 and at most 1")] = 1.0
    thought_temperature: Annotated[float, rule(lambda x: x >= 0, "be 0 (greedy) or above")] | None = None
    max_new_tokens: Annotated[int, at_least(1)] = 128
    seed: int = 0
    stop: Annotated[Sequence[str], rule(lambda texts: "" not in texts, "not be an empty string"), one_or_more()] = ()
    stop_ids: Sequence[int] | None = None
    mixing_weight: float | None = None
    show: Annotated[int, between(1, MOST_SHOWN)] = 5
    speculate: Annotated[int | str, converted(speculation.parse)] = "auto"

    def __post_init__(self) -> None:
        self.stop = tuple(self.stop)
        check_thinking(self.thought_length or 0, self.samples, self.thought_temperature, self.mixing_weight)


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
    """Generate from prompts given as ids and report all of it as events, see `events`.

    Args:
        prompts: token ids of each sequence, at least one token each; lengths may differ.
        texts: the prompts as text, for the record; asked: the same without chat template.
        chat: whether they went through a chat template.
        thoughts: token ids (B, positions, P, T) to think at the first, second, ... emitted token instead of sampling.
    """
    run = _Run(model, prompts, settings, thoughts)
    thinker = run.thinker
    name = model.config.name_or_path or model.config.base_name or "quietstar"
    yield Start(
        schema=SCHEMA_VERSION,
        version=__version__,
        model=name,
        base=model.config.base_name or "",
        dtype=str(model.decoder_lm.dtype).removeprefix("torch."),
        device=str(model.device),
        untrained=model.head.untrained and thinker.weight is None,
        prompts=texts or ["" for _ in prompts],
        prompt_ids=[list(ids) for ids in prompts],
        chat=chat,
        settings=_plain(settings) | {"thought_length": thinker.length, "thought_temperature": thinker.temperature},
        phase=phase,
        identity=identify(model),
        versions=versions(),
        asked=asked or ["" for _ in prompts],
    )
    yield from run.events()


def _plain(settings: GenerationSettings) -> dict[str, Any]:
    """Settings as JSON knows them: lists for tuples, so that what is read back equals what was recorded."""
    return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(settings).items()}


class _Run:
    """The loop over emitted tokens for B sequences at once.

    A sequence has *sites*: positions whose base prediction is known and whose token is not emitted yet. The first site
    stands at the last emitted token, each further one at the draft of the site before it.
    """

    def __init__(
        self, model: ThinkingModel, prompts: list[list[int]], settings: GenerationSettings, forced: Tensor | None
    ) -> None:
        self.model, self.settings = model, settings
        length = model.config.thought_length if settings.thought_length is None else settings.thought_length
        if forced is not None:
            if forced.dim() != 4 or forced.shape[0] != len(prompts) or forced.shape[2] != settings.samples:
                raise QuietStarError(
                    f"thoughts must have shape (batch, positions, samples, T) = ({len(prompts)}, ..., "
                    f"{settings.samples}, ...), got {tuple(forced.shape)}"
                )
            length = forced.shape[3]
        self.thinker = Thinker(
            model,
            length=length,
            samples=settings.samples,
            temperature=default_temperature(settings.thought_temperature, settings.samples),
            seed=settings.seed,
            control=Control.parse(settings.control),
            mixing_weight=settings.mixing_weight,
            forced=forced,
            show=settings.show,
        )
        self.trigger = Trigger.parse(settings.trigger)
        if self.trigger.needs_marker and not model.config.marker_ids:
            raise QuietStarError(
                "trigger 'marker' needs a vocabulary with a start marker, as published Quiet-STaR checkpoints have; "
                "use always, random(p), weight(t), entropy(t) or every(k) with this model"
            )
        for ids in prompts:
            self.thinker.check(ids)
        drafts = speculation.MOST_DRAFTS if settings.speculate == speculation.AUTO else int(settings.speculate)
        places = len(prompts) * min(drafts + 1, settings.max_new_tokens)
        memory.thinking(
            model,
            lengths=[len(ids) for ids in prompts],
            rows=places * settings.samples,
            length=length,
            samples=settings.samples,
            advice="give fewer samples, shorter thoughts, or fewer or shorter prompts",
            kept=12 * length,
        )
        self.limit = model.context_limit or math.inf
        self.stop_ids = frozenset(model_stop_ids(model) if settings.stop_ids is None else settings.stop_ids)
        self.suppression = suppression_of(model, self.stop_ids)
        self.speakers = [Speaker(model.tokenizer, list(ids), tuple(settings.stop), b) for b, ids in enumerate(prompts)]
        self.sites: list[list[Site]] = [[] for _ in prompts]
        self.recent: list[deque[list[int]]] = [deque(maxlen=8) for _ in prompts]  # thoughts, to look candidates up in
        self.pace = Pace(settings.speculate, self.thinker.passes, len(prompts), settings.samples)
        self.drafts = self.pace.drafts()
        self.waited = 0  # base passes since the first sequence has a thought to think
        self.prefix = Prefix(model.decoder_lm, len(prompts))

    def events(self) -> Iterator[Event]:
        """Thought and token events as they come, the noise floor before the first thought, and last the ends."""
        floor_sent = False
        for event in self._events():
            if isinstance(event, ThoughtEvent) and not floor_sent:
                yield self.noise
                floor_sent = True
            yield event

    def _events(self) -> Iterator[Event]:
        began = time.perf_counter()
        with torch.inference_mode():
            self._read()
        while True:
            with torch.inference_mode():
                out = self._settle()
            yield from out
            if all(speaker.reason is not None for speaker in self.speakers):
                break
            with torch.inference_mode():
                self._advance()
        for speaker in self.speakers:
            yield from speaker.release()
            yield speaker.end(time.perf_counter() - began)

    @cached_property
    def noise(self) -> NoiseFloor:
        """What rounding alone changes in this run, measured on its prompts when the first thought needs it."""
        ids, places, hidden_BNE = self.read
        return noise.measure(self.model, self.prefix, places, ids, hidden_BNE, self.thinker.length, self.thinker.weight)

    # -- the base model -------------------------------------------------------------------------------------------

    def _read(self) -> None:
        """Run the prompts through the base model; each sequence gets its first site."""
        lengths = [len(speaker.ids) for speaker in self.speakers]
        ids = torch.zeros(len(lengths), max(lengths), dtype=torch.long, device=self.model.device)
        for b, speaker in enumerate(self.speakers):
            ids[b, : lengths[b]] = torch.tensor(speaker.ids, device=self.model.device)
        _, hidden_BNE = self.model.read(ids, lengths, self.prefix)
        self.read = ids, noise.spread(lengths), hidden_BNE
        last = torch.tensor(lengths, device=self.model.device) - 1
        hidden_B1E = hidden_BNE[torch.arange(len(lengths), device=self.model.device), last][:, None]
        self._observe({speaker: speaker.ids[-1:] for speaker in self.speakers}, hidden_B1E)

    def _advance(self) -> None:
        """Run the next token of each sequence that has room, and the candidates after it, through the base model."""
        tokens = {s: self._next(s) for s in self.speakers if s.reason is None and self._room(s)}
        ids = torch.zeros(len(self.speakers), max(map(len, tokens.values())), dtype=torch.long)
        counts = [0] * len(self.speakers)
        for speaker, following in tokens.items():
            ids[speaker.sequence, : len(following)] = torch.tensor(following)
            counts[speaker.sequence] = len(following)
        hidden_BLE = self.prefix.extend(self.model.embed(ids.to(self.model.device)), counts)
        self.waited += any(self.sites)
        self._observe(tokens, hidden_BLE)

    def _next(self, speaker: Speaker) -> list[int]:
        """A sequence's last token, drafted or emitted, and candidates for its next drafts."""
        sites = self.sites[speaker.sequence]
        text = speaker.ids + [site.draft for site in sites]
        most = min(MOST_CANDIDATES, self._room(speaker) - 1, self.limit - max(self.prefix.lengths) - 1)
        candidates = lookup(text, list(reversed(self.recent[speaker.sequence])), int(most))
        return [text[-1], *itertools.takewhile(lambda token: token not in self.stop_ids, candidates)]

    def _observe(self, tokens: dict[Speaker, list[int]], hidden_BLE: Tensor) -> None:
        """Make a site of each position that these tokens lead to: its base prediction, its draft, whether to think.

        Args:
            tokens: for each sequence its next token and the candidates after it, which are verified here.
            hidden_BLE: base hidden states at these tokens.
        """
        model, settings = self.model, self.settings

        # 1. The M positions after all these tokens, and the base prediction at each.
        ahead = [(s, n) for s, following in tokens.items() for n in range(len(following))]
        hidden_ME = hidden_BLE[[s.sequence for s, _ in ahead], [n for _, n in ahead]]
        sequence = [s.sequence for s, _ in ahead]
        position = [len(s.ids) - 1 + len(self.sites[s.sequence]) + n for s, n in ahead]
        products_MV = model.products(hidden_ME, torch.tensor(position, device=model.device))
        raw_MV = families.shaped(model.decoder_lm, products_MV)

        # 2. The draft at each: the token that the base prediction alone would emit.
        clocks_MV = None
        if settings.temperature > 0:
            drawn = clocks(settings.seed, TOKEN, sequence, position, vocabulary=raw_MV.shape[-1])
            clocks_MV = torch.from_numpy(drawn)
        free_MV = ban(raw_MV, model.config.marker_ids)
        if self.suppression:
            texts = [s.ids + [x.draft for x in self.sites[s.sequence]] + tokens[s][1 : n + 1] for s, n in ahead]
            free_MV = self.suppression.apply(
                free_MV, texts, [len(text) - s.prompt_length for text, (s, _) in zip(texts, ahead, strict=True)]
            )
        draft = self._pick(free_MV, clocks_MV)

        # 3. Verify candidates: each must be the draft of the position before it, up to the first that is not.
        verified: list[int] = []
        for m, (speaker, n) in enumerate(ahead):
            is_certain = n == 0  # the sequence's next token itself, no candidate
            behind_verified = verified[-1:] == [m - 1]
            is_draft = draft[m - 1] == tokens[speaker][n]
            if is_certain or (behind_verified and is_draft):
                verified.append(m)
        if len(verified) < len(ahead):
            hidden_ME, raw_MV, products_MV = hidden_ME[verified], raw_MV[verified], products_MV[verified]

        # 4. Whether to think there.
        moment = Moment(
            logits=raw_MV,
            weight=lambda: model.weight(hidden_ME, hidden_ME),
            step=[position[m] + 1 - ahead[m][0].prompt_length for m in verified],
            sequence=[sequence[m] for m in verified],
            position=[position[m] for m in verified],
            seed=settings.seed,
            marker_id=model.config.marker_ids[0] if model.config.marker_ids else None,
        )
        fired = self.trigger.decide(moment)

        for row, m in enumerate(verified):
            trigger = fired[row] if self.thinker.control.thinks else None
            clocks_V = None if clocks_MV is None else clocks_MV[m]
            self.sites[sequence[m]].append(Site(hidden_ME[row], products_MV[row], trigger, draft[m], clocks_V))

    def _pick(self, logits_MV: Tensor, clocks_MV: Tensor | None) -> list[int]:
        """The token of each position under these logits; the same randomness for the draft and for what is emitted."""
        if clocks_MV is None:
            return best(logits_MV).tolist()  # type: ignore[no-any-return]
        probabilities = distribution(logits_MV, self.settings.temperature, self.settings.top_p)
        return race(probabilities, clocks_MV).tolist()  # type: ignore[no-any-return]

    # -- emitting -------------------------------------------------------------------------------------------------

    def _room(self, speaker: Speaker) -> int:
        """How many more sites a sequence may have: until K are drafted, or its text would end."""
        sites = self.sites[speaker.sequence]
        if sites and sites[-1].draft in self.stop_ids:
            return 0
        most = min(
            self.drafts + 1,
            self.settings.max_new_tokens - speaker.emitted,
            self.limit - len(speaker.ids) - self.thinker.length - 1,
        )
        return int(most) - len(sites)

    def _settle(self) -> list[Event]:
        """Emit what can be emitted now: sites before the first thought, and all sites once enough are drafted."""
        out: list[Event] = []
        # 1. Sites before the first thought emit their drafts.
        for speaker in self.speakers:
            sites = self.sites[speaker.sequence]
            free = list(itertools.takewhile(lambda site: not site.thinks, sites))
            self.sites[speaker.sequence] = sites[len(free) :]
            out += self._emit(speaker, free, None)
        # 2. Once enough is drafted, or no sequence can draft more, think at all the other sites and emit.
        waiting = [speaker for speaker in self.speakers if self.sites[speaker.sequence]]
        if waiting and (self.waited >= self.drafts or not any(map(self._room, waiting))):
            self.pace.count_passes(max(len(self.sites[s.sequence]) for s in waiting) - 1, self.waited)
            for speaker, thought in zip(waiting, self._think(waiting), strict=True):
                sites, self.sites[speaker.sequence] = self.sites[speaker.sequence], []
                out += self._emit(speaker, sites, thought)
            self.waited, self.drafts = 0, self.pace.drafts()
        # 3. Drop the states of rejected drafts.
        lengths = self.prefix.lengths
        for speaker in self.speakers:
            if speaker.reason is None:
                lengths[speaker.sequence] = len(speaker.ids) - 1 + len(self.sites[speaker.sequence])
        self.prefix.truncate(lengths)
        return out

    def _think(self, speakers: list[Speaker]) -> list[Thought]:
        """Think at all sites of these sequences that want a thought, in parallel; the thoughts of each sequence."""
        sequence, position, step = [], [], []
        for speaker in speakers:
            for n, site in enumerate(self.sites[speaker.sequence]):
                if site.thinks:
                    sequence.append(speaker.sequence)
                    position.append(len(speaker.ids) - 1 + n)
                    step.append(speaker.emitted + n)
        thought = self.thinker.think(self.prefix, sequence, position, step)
        return thought.split([sequence.count(speaker.sequence) * self.thinker.samples for speaker in speakers])

    def _emit(self, speaker: Speaker, sites: list[Site], thought: Thought | None) -> list[Event]:
        """Emit the tokens of sites in order, until a draft is rejected or the text ends.

        Args:
            thought: the thoughts at those of the sites that want one, P rows each; None where none does.
        """
        thoughts = iter(()) if thought is None else self._predicted(speaker, sites, thought)
        out: list[Event] = []
        emitted = accepted = 0
        for site in sites:
            token, base_V = site.draft, self.model.logprobs(site.products)
            mixed_V = base_V
            if site.trigger is not None:
                own, prediction = next(thoughts)
                event, mixed_V, only_V = self.thinker.event(
                    speaker.sequence, speaker.ids, site.trigger, base_V, own, prediction, self.noise
                )
                speaker.think(event)
                self.recent[speaker.sequence].append(speaker.ids[-LONGEST_MATCH:] + own.tokens[0].tolist())
                token = self._with_thought(speaker, site, mixed_V)
                event.base_logprob, event.mixed_logprob, event.only_logprob = torch.stack(
                    [base_V[token], mixed_V[token], only_V[token]]
                ).tolist()
            out += self._speak(speaker, token, mixed_V, site.thinks)
            emitted += 1
            accepted += token == site.draft
            if speaker.reason is not None:
                self.sites[speaker.sequence] = []
                break
            if token != site.draft:
                break
        if thought is not None:
            self.pace.count_accepted(emitted, accepted)
            speaker.drafted += len(sites) - 1
            speaker.accepted += min(accepted, len(sites) - 1)
        return out

    def _predicted(self, speaker: Speaker, sites: list[Site], thought: Thought) -> Iterator[tuple[Thought, Prediction]]:
        """For each site with a thought its P thoughts and the prediction with them, computed lazily."""
        samples = self.thinker.samples
        thinking = [(len(speaker.ids) - 1 + n, site) for n, site in enumerate(sites) if site.thinks]
        predictions = self.thinker.predictions(
            torch.stack([site.hidden for _, site in thinking]),
            torch.stack([site.products for _, site in thinking]),
            thought.hidden,
            [position for position, _ in thinking],
        )
        return (
            (thought[number * samples : (number + 1) * samples], prediction)
            for number, prediction in enumerate(predictions)
        )

    def _with_thought(self, speaker: Speaker, site: Site, mixed_V: Tensor) -> int:
        """The token to emit under a mixed prediction; chosen with the randomness that chose the site's draft."""
        allowed_1V = mixed_V[None]
        if self.suppression:
            allowed_1V = self.suppression.apply(allowed_1V, [speaker.ids], [speaker.emitted])
        return self._pick(allowed_1V, None if site.clocks is None else site.clocks[None])[0]

    def _speak(self, speaker: Speaker, token: int, mixed_V: Tensor, thought: bool) -> list[Event]:
        """Emit one token; the sequence may end with it."""
        if token in self.stop_ids:
            speaker.reason = "stop"
            return speaker.release()
        event = TokenEvent(
            sequence=speaker.sequence,
            position=len(speaker.ids),
            id=token,
            text="",
            logprob=float(mixed_V[token]),
            thought=thought,
        )
        last = speaker.emitted + 1 == self.settings.max_new_tokens
        out = speaker.push(event, last)
        if speaker.reason is None and len(speaker.ids) + self.thinker.length + 2 > self.limit:
            speaker.reason = "context"
        elif speaker.reason is None and last:
            speaker.reason = "length"
        return out


def suppression_of(model: ThinkingModel, stop_ids: frozenset[int]) -> Suppression:
    """Tokens that the base's generation config suppresses; its settings that are not used are named in one warning."""
    config = getattr(model.decoder_lm, "generation_config", None)
    found = Suppression.of(config, model.vocabulary, tuple(stop_ids))
    if found.unused:
        warnings.warn(
            f"settings of the model's generation_config.json that quietstar does not use: {', '.join(found.unused)}",
            stacklevel=2,
        )
    return found


def model_stop_ids(model: ThinkingModel) -> list[int]:
    """Token ids that end an answer: those of the base's generation config and the tokenizer's end of sequence."""
    found = getattr(getattr(model.decoder_lm, "generation_config", None), "eos_token_id", None)
    ids = [] if found is None else list(found) if isinstance(found, (list, tuple)) else [found]
    end = getattr(model.tokenizer, "eos_token_id", None)
    return [*ids, end] if end is not None and end not in ids else ids
