"""The thinking model: a base model with markers and a mixing head; think, predict with, without and from a thought.

Knows rows, mixing and sampling. It knows nothing about text formats, triggers, events or files.

Shapes: B sequences · N positions · P samples · R rows · T thought tokens · A lookahead · L own tokens of a row ·
E hidden size · V vocabulary. Position i is the place after token i; what happens there predicts token i + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from quietstar.engine import budgets, families
from quietstar.engine.budgets import Budget
from quietstar.engine.mixing import Markers, MixingHead, mix
from quietstar.engine.rows import Prefix, Rows
from quietstar.engine.sampling import THOUGHT, ban, choose, uniforms
from quietstar.errors import QuietStarError


class QuietStarConfig(PretrainedConfig):
    """What is kept about a thinking model beside its weights.

    Args:
        base_name: name or path of the base model; None where the base is saved with the rest.
        base_revision: commit of the base on its hub, where it has one.
        base_hash: fingerprint of the base, to notice another one (see `identity.fingerprint`).
        base_hash_rounded: the same of its weights rounded to bf16, for a base loaded in another precision.
        base_dtype: precision of the weights that `base_hash` is of.
        adapter: True where PEFT adapters are saved beside.
        adapters: their "names", which are "active", and whether they are switched "off".
        hidden_size: E of the base.
        thought_length: T, sampled tokens of a thought unless a call says otherwise (markers not counted).
        marker_ids: vocabulary rows reserved for the markers, in checkpoints that reserve some; never sampled or
            predicted, and what the `marker` trigger looks for.
        filler_id: token that the `filler` control repeats.
        weight_floor: w is never below this; 0 is no floor.
    """

    model_type = "quietstar"

    def __init__(
        self,
        base_name: str | None = None,
        base_revision: str | None = None,
        base_hash: str | None = None,
        adapter: bool = False,
        hidden_size: int = 0,
        thought_length: int = 8,
        marker_ids: list[int] | None = None,
        filler_id: int | None = None,
        weight_floor: float = 0.0,
        base_hash_rounded: str | None = None,
        base_dtype: str | None = None,
        adapters: dict[str, Any] | None = None,
        **keywords: Any,
    ) -> None:
        self.base_name = base_name
        self.base_revision = base_revision
        self.base_hash = base_hash
        self.base_hash_rounded = base_hash_rounded
        self.base_dtype = base_dtype
        self.adapter = adapter
        self.adapters = adapters
        self.hidden_size = hidden_size
        self.thought_length = thought_length
        self.marker_ids = list(marker_ids or [])
        self.filler_id = filler_id
        self.weight_floor = weight_floor
        super().__init__(**keywords)


@dataclass
class Place:
    """Where rows stand, one entry a row: sequence, position i and sample number, (R,) each."""

    sequence: Tensor
    position: Tensor
    sample: Tensor

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, rows: slice | Tensor) -> Place:
        return Place(self.sequence[rows], self.position[rows], self.sample[rows])

    @classmethod
    def every(cls, lengths: list[int], samples: int, device: torch.device) -> Place:
        """All positions 0 .. n - 2 of each sequence (those with a known next token) x samples."""
        columns = [
            np.stack([np.full(m, b), np.repeat(np.arange(n - 1), samples), np.tile(np.arange(samples), n - 1)])
            for b, n in enumerate(lengths)
            if (m := (n - 1) * samples) > 0
        ]
        table = torch.from_numpy(np.concatenate(columns, axis=1) if columns else np.zeros((3, 0), dtype=np.int64))
        return cls(*table.long().to(device))


@dataclass
class Thought:
    """Thoughts at R places: tokens (R, T), log-probabilities (R, T) in nats, hidden state at the end marker (R, E)."""

    tokens: Tensor
    logprobs: Tensor
    hidden: Tensor

    def __getitem__(self, rows: slice | Tensor) -> Thought:
        return Thought(self.tokens[rows], self.logprobs[rows], self.hidden[rows])

    @classmethod
    def joined(cls, parts: Sequence[Thought]) -> Thought:
        """The rows of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            torch.cat([part.tokens for part in parts]),
            torch.cat([part.logprobs for part in parts]),
            torch.cat([part.hidden for part in parts]),
        )

    def split(self, counts: list[int]) -> list[Thought]:
        """Parts of so many rows each."""
        columns = self.tokens.split(counts), self.logprobs.split(counts), self.hidden.split(counts)
        return [Thought(*part) for part in zip(*columns, strict=True)]


class ThinkingModel(PreTrainedModel):  # type: ignore[misc]
    """A base model that can think. Build it with `QuietStar.from_base` or `QuietStar.from_pretrained`."""

    config_class = QuietStarConfig
    base_model_prefix = "base"
    main_input_name = "input_ids"
    _supports_attention_backend = True
    _supports_sdpa = True

    def __init__(self, config: QuietStarConfig, base: PreTrainedModel, tokenizer: Any = None) -> None:
        super().__init__(config)
        families.prepare(_unwrapped(base))
        if tokenizer is not None:
            families.check_tokenizer(_unwrapped(base), tokenizer)
        self.base = base
        self.head = MixingHead(config.hidden_size).to(base.device)
        self.markers = Markers(config.hidden_size).to(base.device)
        self.tokenizer = tokenizer
        self.loaded_fingerprint: str | None = None  # of the base when it was loaded
        self.origin: Any = None  # an `origin.Origin`: what it was loaded with, None until that is known
        self.revision: str | None = None  # commit it was loaded from, where it came from a hub

    def _init_weights(self, module: Any) -> None:
        """Nothing: head and markers initialise themselves, the base is already trained."""

    # -- the base model -----------------------------------------------------------------------------------------------

    @property
    def decoder_lm(self) -> PreTrainedModel:
        """The base causal LM itself, adapters (if any) inside it."""
        return _unwrapped(self.base)

    @property
    def budget(self) -> Budget:
        """How much is computed at once on this model's device."""
        return budgets.of(self.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Input embeddings of token ids, (..., E)."""
        embeddings: Tensor = self.decoder_lm.get_input_embeddings()(ids)
        return embeddings

    def unembed(self, hidden: Tensor) -> Tensor:
        """Logits of the base model's own head in fp32, (..., V)."""
        return families.shaped(self.decoder_lm, self.products(hidden))

    def products(self, hidden: Tensor, position: Tensor | None = None) -> Tensor:
        """What the output layer gives in fp32, (..., V), before the family's scaling and soft-cap; see `logprobs`.

        Raises:
            QuietStarError: a product is not finite; the message names its `position` (...).
        """
        found = families.products(self.decoder_lm, hidden)
        self.check_finite(found, "logits", position)
        return found

    def logprobs(self, products: Tensor) -> Tensor:
        """Log-probabilities from products with the output layer, markers banned; (..., V)."""
        return torch.log_softmax(ban(families.shaped(self.decoder_lm, products), self.config.marker_ids), dim=-1)

    def check_finite(self, values: Tensor, what: str, position: Tensor | None = None) -> None:
        """Refuse numbers (..., n) that no prediction can be made from; `position` (...) is theirs, for the message.

        Raises:
            QuietStarError: nan or infinity among them.
        """
        sums = values.detach().sum(-1, dtype=torch.float32)
        if bool(sums.isfinite().all()):
            return
        where = ""
        if position is not None:
            first = int((~values.isfinite().all(-1)).flatten().nonzero()[:1].sum())
            where = f" at position {int(position.expand(sums.shape).reshape(-1)[first])}"
        dtype = str(self.decoder_lm.dtype).removeprefix("torch.")
        hint = "the model's weights are damaged"
        if dtype != "float32":
            hint = f"{dtype} is too narrow for it, or its weights are damaged; try dtype float32"
        raise QuietStarError(f"the model computed {what} that are not finite (nan or infinity){where}: {hint}")

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits a token may be chosen from: fp32, marker ids at minus infinity; (..., V)."""
        return ban(self.unembed(hidden), self.config.marker_ids)

    @property
    def context_limit(self) -> int | None:
        """The largest number of tokens of text and thought together; None where the base model states none."""
        return families.context_limit(self.decoder_lm)

    @property
    def vocabulary(self) -> int:
        """V, the number of rows of the output layer."""
        return int(self.decoder_lm.get_output_embeddings().weight.shape[0])

    @property
    def filler_token(self) -> int:
        """The token that the filler control repeats: configured, or the tokenizer's first token of ".", or id 0."""
        if self.config.filler_id is not None:
            return int(self.config.filler_id)
        if self.tokenizer is not None:
            found = self.tokenizer.encode(".", add_special_tokens=False)
            if found:
                return int(found[-1])
        return 0

    def check_fits(self, tokens: int, thought_length: int, what: str = "text") -> None:
        """Refuse a text that, with a thought and its markers after it, exceeds the base model's context."""
        limit = self.context_limit
        needed = tokens + thought_length + 2
        if limit is not None and needed > limit:
            raise QuietStarError(
                f"the {what} has {tokens} tokens and a thought needs {thought_length + 2} more, but the context "
                f"is {limit} tokens; shorten the {what} by {needed - limit} tokens or think shorter"
            )

    def read(self, ids: Tensor, counts: list[int] | None = None, prefix: Prefix | None = None) -> tuple[Prefix, Tensor]:
        """Run visible tokens (B, N), real ones first; returns the prefix and their hidden states (B, N, E)."""
        prefix = prefix or Prefix(self.decoder_lm, ids.shape[0])
        before = prefix.length_B
        embeds_BNE = self.embed(ids)
        hidden_BNE = prefix.extend(embeds_BNE, counts)
        position_BN = before[:, None] + torch.arange(ids.shape[1], device=ids.device)
        real_BN1 = (position_BN < prefix.length_B[:, None])[..., None]
        # embeddings first: nan in a later token reaches earlier ones, as masked attention multiplies it by zero
        for what, values in (("embeddings", embeds_BNE), ("hidden states", hidden_BNE)):
            self.check_finite(values.detach().masked_fill(~real_BN1, 0), what, position_BN)
        return prefix, hidden_BNE

    # -- thinking -----------------------------------------------------------------------------------------------------

    def think(
        self,
        prefix: Prefix,
        place: Place,
        *,
        length: int,
        temperature: float = 1.0,
        seed: int = 0,
        tokens: Tensor | None = None,
        names: Tensor | None = None,
        close: bool = True,
    ) -> Thought:
        """Think at R places, all in parallel: start marker, T tokens one after another, end marker.

        Args:
            prefix: the visible text; a row at position i sees its tokens 0 .. i.
            place: where to think; rows of one sequence lie together.
            length: T, at least 0.
            temperature: of the thought tokens; 0 is greedy.
            seed: randomness; each draw depends on the seed and its place alone.
            tokens: thought tokens (R, T) to think instead of sampling; then one pass serves the whole thought.
            names: (B,) the key of each sequence in the random numbers; its index in the batch when left out.
            close: False leaves out the end marker, for callers who want the tokens only; `hidden` is then of no use.
        """
        if tokens is not None:
            return self._rethink(prefix, place, tokens)
        # the start marker gives the same states for all samples of a place: run it once for each place and share them
        places_2U, row_of_R = torch.stack([place.sequence, place.position]).unique_consecutive(
            dim=1, return_inverse=True
        )
        rows = Rows(prefix, places_2U[0], places_2U[1] + 1, capacity=length + 2)
        opening_U1E = self.markers.opening(self._dtype).expand(places_2U.shape[1], 1, -1)
        hidden_RE = rows.extend(opening_U1E)[:, -1][row_of_R]
        if len(place) > places_2U.shape[1]:
            rows = rows.select(row_of_R)
        closing_R1E = self.markers.closing(self._dtype).expand(len(place), 1, -1)
        if not length:
            none = torch.zeros(len(place), 0, device=hidden_RE.device)
            return Thought(none.long(), none, rows.extend(closing_R1E)[:, -1])
        chosen: list[Tensor] = []
        logprobs: list[Tensor] = []
        named = place.sequence if names is None else names[place.sequence]
        keys = [x.cpu().numpy() for x in (named, place.position, place.sample)]
        for j in range(length):
            uniform_R = None
            if temperature != 0.0:
                uniform_R = torch.from_numpy(uniforms(seed, THOUGHT, *keys, j))
            token_R, logprob_R = self._choose(hidden_RE, uniform_R, temperature, place.position)
            chosen.append(token_R)
            logprobs.append(logprob_R)
            if j == length - 1 and not close:
                break
            step_RLE = self.embed(token_R)[:, None]
            if j == length - 1:  # no choice between the last token and the end marker: one pass of two
                step_RLE = torch.cat([step_RLE, closing_R1E], dim=1)
            hidden_RE = rows.extend(step_RLE)[:, -1]
        return Thought(torch.stack(chosen, dim=1), torch.stack(logprobs, dim=1), hidden_RE)

    def _rethink(self, prefix: Prefix, place: Place, tokens: Tensor) -> Thought:
        """Given thoughts in one pass over start marker, T tokens and end marker."""
        rows = Rows(prefix, place.sequence, place.position + 1)
        hidden_RLE = rows.extend(self.wrapped(tokens))
        logprobs = torch.zeros(tokens.shape, device=tokens.device)
        for r in chunks(len(place), self.budget.logit_rows // max(1, tokens.shape[1]) + 1):
            if tokens.shape[1]:
                all_logprobs = torch.log_softmax(self.logits(hidden_RLE[r, :-2]), dim=-1)
                logprobs[r] = all_logprobs.gather(-1, tokens[r, :, None])[..., 0]
        return Thought(tokens, logprobs, hidden_RLE[:, -1])

    def wrapped(self, tokens: Tensor) -> Tensor:
        """Input embeddings of start marker, tokens and end marker, (R, T + 2, E)."""
        opening, closing = self.markers.opening(self._dtype), self.markers.closing(self._dtype)
        count = tokens.shape[0]
        return torch.cat([opening.expand(count, 1, -1), self.embed(tokens), closing.expand(count, 1, -1)], dim=1)

    def _choose(
        self, hidden: Tensor, uniform: Tensor | None, temperature: float, position: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Choose a token a row from hidden states (R, E); ids and their log-probabilities, (R,) each."""
        parts = []
        for r in chunks(hidden.shape[0], self.budget.product_rows):  # one product ...
            products_RV = self.products(hidden[r], position[r])
            uniform_R = None if uniform is None else uniform[r]
            for q in chunks(products_RV.shape[0], self.budget.logit_rows):  # ... and the rest in smaller parts
                logits = ban(families.shaped(self.decoder_lm, products_RV[q]), self.config.marker_ids)
                parts.append(choose(logits, None if uniform_R is None else uniform_R[q], temperature))
        return torch.cat([token for token, _ in parts]), torch.cat([logprob for _, logprob in parts])

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.decoder_lm.get_input_embeddings().weight.dtype
        return dtype

    # -- mixing -------------------------------------------------------------------------------------------------------

    def weight(self, base_hidden: Tensor, thought_hidden: Tensor) -> Tensor:
        """The mixing weight w, (...), from hidden states (..., E)."""
        weight: Tensor = self.head(base_hidden, thought_hidden)
        if self.config.weight_floor:  # the gradient passes as if there were no floor, or w could never rise to it
            weight = weight + (self.config.weight_floor - weight).clamp_min(0).detach()
        return weight

    def predict(
        self,
        base_hidden: Tensor,
        thought_hidden: Tensor,
        weight: float | None = None,
        base_products: Tensor | None = None,
        only_products: Tensor | None = None,
        position: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What R thoughts make of the next token, in fp32.

        A product with the output layer is linear, so predictions are mixed after it: w (thought - base) is added to the
        base's products, and a small difference is not lost between two large roundings.

        Args:
            base_hidden: (R, E). thought_hidden: (R, E) at the end marker. weight: w to use in place of the head's.
            base_products, only_products: (R, V) of the two states, where they are known.
            position: (R,) where, for messages.

        Returns:
            w (R,), mixed log-probabilities (R, V), log-probabilities from the thought alone (R, V).
        """
        if weight is None:
            w_R = self.weight(base_hidden, thought_hidden)
            self.check_finite(w_R[:, None], "mixing weights", position)
        else:
            w_R = torch.full(base_hidden.shape[:1], float(weight), device=base_hidden.device)
        if base_products is None:
            base_products = self.products(base_hidden, position)
        only_RV = self.products(thought_hidden, position) if only_products is None else only_products
        if families.quantized(self.decoder_lm):
            mixed_RV = self.products(mix(base_hidden, thought_hidden, w_R), position)
        else:
            mixed_RV = torch.lerp(base_products, only_RV, w_R[:, None])
        return w_R, self.logprobs(mixed_RV), self.logprobs(only_RV)

    # -- training -----------------------------------------------------------------------------------------------------

    def ahead(
        self,
        prefix: Prefix,
        place: Place,
        thoughts: Tensor,
        ids: Tensor,
        lookahead: int,
        hide_near: int = 0,
    ) -> Tensor:
        """Run given thoughts and the true tokens that follow, all in one pass, with gradient.

        Args:
            prefix: the visible text. place: where the R rows stand; thoughts: their tokens (R, T).
            ids: visible tokens (B, N), from which the A - 1 tokens after each position are teacher-forced after the
                end marker (A is `lookahead`).
            hide_near: how many of the last visible tokens the end marker and what follows cannot see.

        Returns:
            Hidden states (R, T + 1 + A, E): at the start marker, the thought tokens, the end marker and the
            teacher-forced tokens. Where i + k passes the text, the last token is repeated and must not be counted.
        """
        ahead_RK = (place.position[:, None] + 1 + torch.arange(lookahead - 1, device=ids.device)).clamp_max(
            ids.shape[1] - 1
        )
        teacher_RKE = self.embed(ids[place.sequence[:, None], ahead_RK])
        blind = (thoughts.shape[1] + 1, hide_near) if hide_near else None
        rows = Rows(prefix, place.sequence, place.position + 1, blind=blind)
        return rows.extend(torch.cat([self.wrapped(thoughts), teacher_RKE], dim=1))

    def think_ahead(self, ids: Tensor, mask: Tensor, thoughts: Tensor, lookahead: int) -> tuple[Tensor, Tensor]:
        """Run given thoughts at every position with the true tokens that follow, with gradient.

        Args:
            ids: visible tokens (B, N), real ones first.
            mask: True at real tokens (B, N).
            thoughts: thought tokens (B, N, P, T).
            lookahead: A; the A - 1 tokens after position i are teacher-forced after the end marker.

        Returns:
            base hidden states (B, N, E) and row hidden states (B, N, P, T + 1 + A, E), see `ahead`.
        """
        batch, length = ids.shape
        samples, thought_length = thoughts.shape[2:]
        prefix, base_hidden = self.read(ids, mask.sum(1).tolist())
        grid = torch.meshgrid(*(torch.arange(n, device=ids.device) for n in (batch, length, samples)), indexing="ij")
        place = Place(*(axis.reshape(-1) for axis in grid))
        hidden = self.ahead(prefix, place, thoughts.reshape(-1, thought_length), ids, lookahead)
        return base_hidden, hidden.view(batch, length, samples, thought_length + 1 + lookahead, -1)


def _unwrapped(base: Any) -> PreTrainedModel:
    """The Hugging Face causal LM inside a PEFT wrapper, or `base` itself."""
    inner = getattr(base, "get_base_model", None)
    model: PreTrainedModel = inner() if callable(inner) else base
    return model


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover range(count)."""
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
