"""Rows over a shared prefix: the one primitive under training, scoring, generating, resampling and interventions.

A *prefix* holds the visible text of B sequences as key/value states, computed once. A *row* is one thought at one
position of one sequence: it sees the prefix up to that position and its own earlier tokens, nothing else. One softmax
runs over [prefix up to the position | own tokens so far]; no prefix state is copied per row or per sample.

This module knows token embeddings, hidden states and attention. It knows nothing about thoughts, markers, mixing,
sampling or text. No model file is patched: the attention function is registered with `transformers`, and each call
of the decoder carries a `Pass` through the keyword arguments that `transformers` hands down to the attention.
Which keys a layer may see is decided by the model's own mask definition (causal, sliding window, chunked, ...) at true
positions, so windows are honoured without code for any family here.

One pass of the decoder, top down: `Prefix.extend` or `Rows.extend` makes a `Pass` and runs the decoder under it
(`_run`); each layer calls the registered attention function (`_attention`), which finds the `Pass` among its keyword
arguments and asks `Prefix._attend` or `Rows._attend` for the result; `Rows._attend` keeps the new states and lets
`_attend_rows` do the arithmetic.

Shapes: B sequences · N prefix tokens · R rows · Q = R / B rows of each sequence of a block · L new tokens of this
pass · M own tokens of a row so far, the new ones included · X = N + M keys a row may see · H query heads ·
K key/value heads · G = H / K query heads a key/value head serves · D head size · E hidden size.
"""

from __future__ import annotations

import contextlib
import contextvars
import itertools
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, causal_mask_function
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from quietstar.engine import budgets
from quietstar.errors import QuietStarError, UnsupportedModel

_NAME = "quietstar_rows_over_"
# What attention modules hand to the attention function beside the tensors. `sliding_window` is ignored because the
# model's mask definition already contains it; the others have no effect on the result.
_HARMLESS_KEYWORDS = {
    "sliding_window",
    "is_causal",
    "position_ids",
    "position_embeddings",
    "cache_position",
    "past_key_values",
    "use_cache",
    "output_attentions",
    "output_hidden_states",
    "output_router_logits",
    "return_dict",
    "logits_to_keep",
    "num_items_in_batch",
}


@dataclass(frozen=True)
class Visibility:
    """A layer's own rule for which keys a query sees, taken from the model; passed in place of a mask tensor."""

    rule: Callable[..., Tensor]

    @property
    def causal(self) -> bool:
        """True where the rule is plain causal attention, so that position limits alone decide."""
        return self.rule is causal_mask_function

    def allowed(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """The rule at true positions; the two arguments broadcast against each other. Returns booleans."""
        zero = torch.zeros((), dtype=torch.long, device=query_positions.device)
        return self.rule(zero, zero, query_positions, key_positions)


class States:
    """Growing key/value states of one layer, (B or R, K, capacity, D).

    The first `append` keeps the tensors it is given (so that they stay in the autograd graph), unless `reserve` made
    room before; later ones write into a buffer, or concatenate where a gradient is needed.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    def reserve(self, key: Tensor, value: Tensor, capacity: int) -> None:
        """Allocate room for `capacity` tokens of states like these (B or R, K, L, D); must come before any append."""
        self.key, self.value = (x.new_empty(*x.shape[:2], capacity, x.shape[3]) for x in (key, value))

    def first(self, length: int) -> tuple[Tensor, Tensor]:
        """Key and value states of the first `length` tokens, (B or R, K, length, D) each."""
        assert self.key is not None and self.value is not None
        return self.key[:, :, :length], self.value[:, :, :length]

    def append(self, key: Tensor, value: Tensor, starts: Tensor | int, capacity: int) -> None:
        """Write L new states at `starts` (one length for all, or one per sequence), growing to `capacity`."""
        if self.key is None or self.value is None:
            self.key, self.value = key, value
            return
        if torch.is_grad_enabled() and (key.requires_grad or self.key.requires_grad):
            if not isinstance(starts, int):
                raise RuntimeError("states of unequal length can only be extended without gradient")
            self.key = torch.cat([self.key[:, :, :starts], key], dim=2)
            self.value = torch.cat([self.value[:, :, :starts], value], dim=2)
            return
        self.key = self._write(self.key, key, starts, capacity)
        self.value = self._write(self.value, value, starts, capacity)

    @staticmethod
    def _write(buffer: Tensor, new: Tensor, starts: Tensor | int, capacity: int) -> Tensor:
        if buffer.shape[2] < capacity:
            grown = buffer.new_zeros(buffer.shape[0], buffer.shape[1], capacity, buffer.shape[3])
            grown[:, :, : buffer.shape[2]] = buffer
            buffer = grown
        length = new.shape[2]
        if isinstance(starts, int):
            buffer[:, :, starts : starts + length] = new
        else:
            column_BL = starts[:, None] + torch.arange(length, device=new.device)
            sequence_B1 = torch.arange(len(starts), device=new.device)[:, None]
            buffer[sequence_B1, :, column_BL] = new.transpose(1, 2)
        return buffer


@dataclass
class Pass:
    """One call of the decoder: for a prefix or for rows, and at which positions. Handed to every layer."""

    position_BL: Tensor
    attend: Callable[..., Tensor]
    layers_seen: set[int] = field(default_factory=set)
    masks: dict[tuple[object, str], Any] = field(default_factory=dict)

    def once(self, visibility: Visibility, part: str, make: Callable[[], Any]) -> Any:
        """A mask made once per pass and kind of layer."""
        key = (visibility.rule, part)
        if key not in self.masks:
            self.masks[key] = make()
        return self.masks[key]


_current_pass: contextvars.ContextVar[Pass | None] = contextvars.ContextVar("quietstar_pass", default=None)


class Prefix:
    """The visible text of B sequences as key/value states; real tokens first, padding (if any) after them.

    Args:
        base: a Hugging Face causal LM on which `install` was called.
        batch: number of sequences B.
    """

    def __init__(self, base: PreTrainedModel, batch: int) -> None:
        self.base = base
        self.layers: dict[int, States] = {}
        self.length_B = torch.zeros(batch, dtype=torch.long, device=base.device)
        self._lengths = [0] * batch

    @property
    def batch(self) -> int:
        """B, the number of sequences."""
        return len(self._lengths)

    @property
    def device(self) -> torch.device:
        """Where the states are."""
        return self.length_B.device

    @property
    def bytes_per_token(self) -> int:
        """Bytes of the key and value states of one token in all layers, estimated from those of the first layer."""
        key = next(iter(self.layers.values())).key
        assert key is not None
        return 2 * len(self.layers) * key.shape[1] * key.shape[3] * key.element_size()

    def extend(self, embeds_BLE: Tensor, counts: list[int] | None = None) -> Tensor:
        """Append L tokens to every sequence and return their hidden states after the final norm, (B, L, E).

        Args:
            embeds_BLE: input embeddings of the new tokens; sequence b uses its first `counts[b]`, the rest is padding.
            counts: real new tokens of each sequence, 0 to L; all L when left out.
        """
        batch, length, _ = embeds_BLE.shape
        counts = [length] * batch if counts is None else counts
        position_BL = self.length_B[:, None] + torch.arange(length, device=embeds_BLE.device)
        hidden_BLE = _run(self.base, embeds_BLE, Pass(position_BL, self._attend))
        self._lengths = [old + new for old, new in zip(self._lengths, counts, strict=True)]
        self.length_B = torch.tensor(self._lengths, device=embeds_BLE.device)
        return hidden_BLE

    def over(self, tensors: list[Tensor]) -> Prefix:
        """The same prefix with other tensors as its states, in the order of `tensors`; e.g. ones cut from the graph.

        Rows over a prefix whose states are leaves can be run and differentiated in parts; the gradient that the
        leaves gather then goes on through the states of `self`.
        """
        twin = Prefix(self.base, self.batch)
        twin.length_B, twin._lengths = self.length_B, list(self._lengths)
        for number, layer in enumerate(self.layers):
            twin.layers[layer] = States()
            twin.layers[layer].key, twin.layers[layer].value = tensors[2 * number : 2 * number + 2]
        return twin

    def tensors(self) -> list[Tensor]:
        """Key and value states of each layer, (B, K, N, D) each."""
        pairs = [(states.key, states.value) for states in self.layers.values()]
        return [tensor for pair in pairs for tensor in pair if tensor is not None]

    def truncate(self, lengths: list[int]) -> None:
        """Drop every sequence's tokens after its first `lengths[b]`; later tokens overwrite them.

        No state moves: a window is a mask over true positions here, and what lies after a length is masked as future.
        """
        if len(lengths) != self.batch or any(not 0 <= n <= old for n, old in zip(lengths, self._lengths, strict=True)):
            raise ValueError(f"lengths must be from 0 to {self._lengths}, got {lengths}")
        self._lengths = list(lengths)
        self.length_B = torch.tensor(self._lengths, device=self.length_B.device)

    @property
    def lengths(self) -> list[int]:
        """How many tokens each sequence has."""
        return list(self._lengths)

    def _attend(self, call: Pass, layer: int, q: Tensor, k: Tensor, v: Tensor, sees: Visibility, how: _How) -> Tensor:
        """One layer's attention of new tokens over their own sequence; keeps their states.

        Args:
            q: queries (B, H, L, D). k, v: new key and value states (B, K, L, D).
            sees: the layer's visibility rule. how: its scaling, soft-cap and sinks.

        Returns:
            (B, H, L, D).
        """
        # 1. Append the new states to those of each sequence.
        states = self.layers.setdefault(layer, States())
        length = k.shape[2]
        uniform = len(set(self._lengths)) == 1
        starts: Tensor | int = self._lengths[0] if uniform else self.length_B
        stop = max(self._lengths) + length
        growth = budgets.of(k.device).prefix_growth
        capacity = stop if states.key is None else math.ceil(stop / growth) * growth
        states.append(k, v, starts, capacity)
        key_BKND, value_BKND = states.first(stop)

        # 2. Which of them each query sees: nothing is masked for one token after equally long texts.
        def visible() -> Tensor | None:
            if sees.causal and uniform and length == 1:
                return None
            return sees.allowed(call.position_BL[:, None, :, None], torch.arange(stop, device=q.device))

        whole_text = sees.causal and stop == length  # a plain causal triangle, for which kernels need no mask
        visible_B1LN = None if how.plain and whole_text else call.once(sees, "prefix", visible)

        # 3. Attend: transformers' own kernel where softmax(q k) v is all there is, else step by step.
        if how.plain:
            return F.scaled_dot_product_attention(
                q,
                key_BKND,
                value_BKND,
                attn_mask=visible_B1LN,
                is_causal=whole_text and length > 1,
                scale=how.scaling,
                dropout_p=how.dropout,
                enable_gqa=q.shape[1] != key_BKND.shape[1],
            )
        heads = key_BKND.shape[1]
        q_BKGLD = q.unflatten(1, (heads, q.shape[1] // heads))
        scores_BKGLN = how.cap(q_BKGLD @ key_BKND[:, :, None].transpose(-1, -2) * how.scaling)
        if visible_B1LN is not None:
            scores_BKGLN = scores_BKGLN.masked_fill(~visible_B1LN[:, :, None], -torch.inf)
        weights_BKGLN = how.normalise(scores_BKGLN, q.dtype)
        return (weights_BKGLN @ value_BKND[:, :, None]).flatten(1, 2)


@dataclass(frozen=True)
class _Block:
    """Rows that are computed together because each of their sequences has equally many of them.

    Args:
        sequences: which sequences of the prefix. rows: which rows.
        fewest, most: the smallest and the largest number of prefix tokens that a row of the block sees.
    """

    sequences: slice
    rows: slice
    fewest: int
    most: int


def _blocks(batch: int, sequence: Tensor, visible: Tensor) -> list[_Block]:
    """All sequences in one block where they have equally many rows, else a block for each that has any."""
    counts = torch.bincount(sequence.cpu(), minlength=batch).tolist()
    if len(set(counts)) == 1:
        slices = [(slice(0, batch), slice(0, len(sequence)))]
    else:
        stops = itertools.accumulate(counts)
        slices = [
            (slice(b, b + 1), slice(stop - count, stop))
            for b, (count, stop) in enumerate(zip(counts, stops, strict=True))
            if count
        ]
    blocks = []
    for sequences, rows in slices:
        seen = visible[rows].tolist()
        blocks.append(_Block(sequences, rows, min(seen), max(seen)))
    return blocks


class Rows:
    """R rows over a prefix, each seeing the first `visible_R` tokens of its sequence and its own tokens.

    Args:
        prefix: the shared visible text.
        sequence: which sequence each row belongs to, ascending (rows of one sequence lie together).
        visible: how many prefix tokens each row sees; its own token j then stands at position visible + j.
        capacity: how many own tokens are expected in all (a size hint, so that states are allocated once).
        blind: (j, n): own tokens from the j-th on do not see the last n prefix tokens their row could see.
    """

    def __init__(
        self, prefix: Prefix, sequence: Tensor, visible: Tensor, capacity: int = 0, blind: tuple[int, int] | None = None
    ) -> None:
        if bool((sequence[1:] < sequence[:-1]).any()):
            raise ValueError("rows must be ordered by sequence")
        self.prefix = prefix
        self.sequence_R, self.visible_R = sequence, visible
        self.capacity = capacity
        self.blind = blind
        self.length = 0
        self.layers: dict[int, States] = {}
        self.blocks = _blocks(prefix.batch, sequence, visible)

    def extend(self, embeds_RLE: Tensor) -> Tensor:
        """Append L own tokens to every row and return their hidden states after the final norm, (R, L, E)."""
        length = embeds_RLE.shape[1]
        own_L = torch.arange(self.length, self.length + length, device=embeds_RLE.device)
        call = Pass(self.visible_R[:, None] + own_L, self._attend)
        hidden_RLE = _run(self.prefix.base, embeds_RLE, call)
        self.length += length
        return hidden_RLE

    def select(self, index: Tensor) -> Rows:
        """New rows that go on from these, row r from row `index[r]` (in ascending order); own states are copied."""
        rows = Rows(self.prefix, self.sequence_R[index], self.visible_R[index], self.capacity, self.blind)
        rows.length = self.length
        for layer, states in self.layers.items():
            assert states.key is not None and states.value is not None
            rows.layers[layer] = States()
            rows.layers[layer].key, rows.layers[layer].value = states.key[index], states.value[index]
        return rows

    def _attend(self, call: Pass, layer: int, q: Tensor, k: Tensor, v: Tensor, sees: Visibility, how: _How) -> Tensor:
        """One layer's attention of the rows' new tokens over [prefix | own tokens]; keeps their states.

        Args:
            q: queries (R, H, L, D). k, v: new key and value states (R, K, L, D).
            sees: the layer's visibility rule. how: its scaling, soft-cap and sinks.

        Returns:
            (R, H, L, D).
        """
        # 1. Append the new states to those of the own tokens so far; allocate once where the final length is known.
        states = self.layers.setdefault(layer, States())
        if states.key is None and self.capacity > k.shape[2] and not k.requires_grad:
            states.reserve(k, v, self.capacity)
        own = self.length + k.shape[2]
        states.append(k, v, self.length, max(own, self.capacity))
        own_key_RKMD, own_value_RKMD = states.first(own)

        # 2. Each block of rows attends over the states of its sequences, which are shared, and over its own.
        prefix_states = self.prefix.layers[layer]
        outputs = []
        for number, block in enumerate(self.blocks):
            key_BKND, value_BKND = prefix_states.first(block.most)
            make_bias = partial(self._bias, call, sees, block, own, q.dtype)
            outputs.append(
                _attend_rows(
                    q[block.rows],
                    key_BKND[block.sequences],
                    value_BKND[block.sequences],
                    own_key_RKMD[block.rows],
                    own_value_RKMD[block.rows],
                    call.once(sees, f"rows {number}", make_bias),
                    how,
                )
            )
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    def _bias(self, call: Pass, sees: Visibility, block: _Block, own: int, dtype: torch.dtype) -> Tensor | None:
        """What to add to the scores of one block: 0 where a query sees a key, minus infinity where it does not.

        Returns:
            (rows, L, X') for the last X' columns of [prefix | own]; the columns before these are visible to all
            queries. None where there is nothing to hide.
        """
        position_RL1 = call.position_BL[block.rows, :, None]
        length = position_RL1.shape[1]
        if sees.causal and self.blind is None and block.fewest == block.most and length == 1:
            return None
        device = position_RL1.device
        visible_R11 = self.visible_R[block.rows, None, None]
        seen_by_all = block.fewest if sees.causal and self.blind is None else 0
        column_N = torch.arange(seen_by_all, block.most, device=device)
        own_M = torch.arange(own, device=device)
        new_L = own_M[own - length :]

        # a row sees its first `visible` prefix tokens and its own tokens up to the one that asks ...
        prefix_RLN = (column_N < visible_R11).expand(-1, length, -1)
        own_RLM = (own_M <= new_L[:, None]).expand(len(visible_R11), -1, -1)
        # ... as far as the layer's rule (a window) reaches at true positions ...
        if not sees.causal:
            prefix_RLN = prefix_RLN & sees.allowed(position_RL1, column_N)
            own_RLM = own_RLM & sees.allowed(position_RL1, visible_R11 + own_M)
        # ... and own tokens from the j-th on not the last n prefix tokens, where the rows are blind to these
        if self.blind is not None:
            first_blind, hidden = self.blind
            blind_L1 = (new_L >= first_blind)[:, None]
            prefix_RLN = prefix_RLN & ~(blind_L1 & (column_N >= visible_R11 - hidden))

        seen_RLX = torch.cat([prefix_RLN, own_RLM], dim=-1)
        return torch.zeros(seen_RLX.shape, dtype=dtype, device=device).masked_fill_(~seen_RLX, -torch.inf)


@dataclass(frozen=True)
class _How:
    """How a layer turns products into weights: the family's scaling, soft-cap and attention sinks."""

    scaling: float
    softcap: float | None
    sinks: Tensor | None
    dropout: float

    @property
    def plain(self) -> bool:
        """Whether attention is softmax(q k) v with a scaling and nothing else."""
        return self.softcap is None and self.sinks is None

    def cap(self, scores: Tensor) -> Tensor:
        """Scores with the family's soft-cap, if it has one."""
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap

    def normalise(self, scores: Tensor, dtype: torch.dtype) -> Tensor:
        """Softmax over the last axis (fp32 inside, whatever the dtype); a sink takes its share and is dropped.

        `scores` has the K key/value heads at axis 1 and the G query heads of each at axis -3.
        """
        if self.sinks is not None:
            heads, group = scores.shape[1], scores.shape[-3]
            sink = self.sinks.to(scores.dtype).view(heads, *[1] * (scores.dim() - 5), group, 1, 1)
            scores = torch.cat([scores, sink.expand(*scores.shape[:-1], 1)], dim=-1)
        weights = torch.softmax(scores, dim=-1).to(dtype)
        if self.sinks is not None:
            weights = weights[..., :-1]
        return F.dropout(weights, self.dropout) if self.dropout else weights


def _attend_rows(
    q: Tensor, key: Tensor, value: Tensor, own_key: Tensor, own_value: Tensor, bias: Tensor | None, how: _How
) -> Tensor:
    """Attention of rows over [prefix | own]; portable (matrix products and one softmax), differentiable.

    The prefix states are never copied per row: all rows of a sequence are the queries of one product against them.

    Args:
        q: (R, H, L, D), rows of each of the B sequences together and equally many, Q.
        key, value: prefix states (B, K, N, D).
        own_key, own_value: own states (R, K, M, D).
        bias: what to add to the scores of the last keys of [prefix | own], (R, L, columns), or None.

    Returns:
        (R, H, L, D).
    """
    batch, heads, seen, _ = key.shape
    rows, query_heads, length, size = q.shape
    each, group, own = rows // batch, query_heads // heads, own_key.shape[2]
    q_RHLD = q * how.scaling

    # 1. Scores against the prefix: one product a sequence and key/value head, with Q G L queries.
    q_BKQGLD = q_RHLD.view(batch, each, heads, group, length, size).transpose(1, 2)
    prefix_scores = q_BKQGLD.reshape(batch, heads, each * group * length, size) @ key.transpose(-1, -2)
    prefix_scores_BKQGLN = prefix_scores.view(batch, heads, each, group, length, seen)

    # 2. Scores against the own tokens: one small product a row and key/value head, with G L queries.
    own_scores = q_RHLD.reshape(rows, heads, group * length, size) @ own_key.transpose(-1, -2)
    own_scores_BKQGLM = own_scores.view(batch, each, heads, group, length, own).transpose(1, 2)

    # 3. One softmax over both.
    scores_BKQGLX = how.cap(torch.cat([prefix_scores_BKQGLN, own_scores_BKQGLM], dim=-1))
    if bias is not None:
        scores_BKQGLX[..., -bias.shape[-1] :] += bias.view(batch, 1, each, 1, length, -1)
    weights_BKQGLX = how.normalise(scores_BKQGLX, q.dtype)

    # 4. The weighted sums of values, by the same two products, added up.
    prefix_weights = weights_BKQGLX[..., :seen].reshape(batch, heads, each * group * length, seen)
    from_prefix_BKQGLD = (prefix_weights @ value).view(batch, heads, each, group, length, size)
    own_weights = weights_BKQGLX[..., seen:].transpose(1, 2).reshape(rows, heads, group * length, own)
    from_own_RHLD = (own_weights @ own_value).view(rows, query_heads, length, size)
    return from_prefix_BKQGLD.transpose(1, 2).reshape(rows, query_heads, length, size) + from_own_RHLD


def _run(base: PreTrainedModel, embeds: Tensor, call: Pass) -> Tensor:
    """One call of the decoder under `call`; hidden states after the final norm, (B, L, E)."""
    if torch.is_grad_enabled() and base.training and getattr(base.get_decoder(), "gradient_checkpointing", False):
        raise QuietStarError(
            "gradient checkpointing of the base model runs its layers twice, which rows cannot follow; switch it off "
            "with gradient_checkpointing_disable()"
        )
    ones = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
    token = _current_pass.set(call)
    try:
        out = base.get_decoder()(
            inputs_embeds=embeds,
            position_ids=call.position_BL,
            attention_mask=ones,
            use_cache=False,
            quietstar_pass=call,
        )
    finally:
        _current_pass.reset(token)
    if not call.layers_seen:
        raise UnsupportedModel(
            f"model type {base.config.model_type!r} is not supported: its decoder does not hand keyword arguments "
            "down to the attention function"
        )
    hidden: Tensor | None = getattr(out, "last_hidden_state", None)
    if hidden is None:
        raise UnsupportedModel(
            f"model type {base.config.model_type!r} is not supported: its decoder does not return hidden states"
        )
    return hidden


def _attention(native: str) -> Callable[..., tuple[Tensor, Tensor | None]]:
    """The attention function registered over the implementation `native`, which serves all calls without a `Pass`."""

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor | None]:
        call: Pass | None = keywords.pop("quietstar_pass", None)
        if call is None:
            eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
            original = ALL_ATTENTION_FUNCTIONS.get_interface(native, eager)
            result: tuple[Tensor, Tensor | None] = original(module, query, key, value, attention_mask, **keywords)
            return result
        family = getattr(getattr(module, "config", None), "model_type", type(module).__name__)
        if not isinstance(attention_mask, Visibility):
            raise UnsupportedModel(
                f"model type {family!r} is not supported: it builds its attention mask in a way of its own"
            )
        scaling = keywords.pop("scaling", None)
        how = _How(
            scaling=query.shape[-1] ** -0.5 if scaling is None else scaling,
            softcap=keywords.pop("softcap", None),
            sinks=keywords.pop("s_aux", None),
            dropout=keywords.pop("dropout", 0.0) or 0.0,
        )
        for name, given in keywords.items():
            if given is not None and name not in _HARMLESS_KEYWORDS:
                raise UnsupportedModel(
                    f"model type {family!r} is not supported: its attention uses {name!r}, which rows do not know"
                )
        layer = getattr(module, "layer_idx", None)
        if layer is None:
            raise UnsupportedModel(f"model type {family!r} is not supported: its attention layers carry no number")
        call.layers_seen.add(layer)
        out = call.attend(call, layer, query, key, value, attention_mask, how)
        return out.transpose(1, 2).contiguous(), None

    return attention


def _mask(native: str) -> Callable[..., Any]:
    def mask(*args: Any, **keywords: Any) -> Any:
        if _current_pass.get() is not None:
            return Visibility(keywords["mask_function"])
        return ALL_MASK_ATTENTION_FUNCTIONS[native](*args, **keywords)

    return mask


def install(base: PreTrainedModel) -> None:
    """Let `base` run rows besides its ordinary calls, which keep its attention implementation."""
    native = base.config._attn_implementation or "eager"
    if native.startswith(_NAME):
        return
    name = _NAME + native
    AttentionInterface.register(name, _attention(native))
    AttentionMaskInterface.register(name, _mask(native))
    base.set_attn_implementation(name)


def uninstall(base: PreTrainedModel) -> None:
    """Restore the original attention implementation of `base`."""
    name = base.config._attn_implementation
    if name.startswith(_NAME):
        base.set_attn_implementation(name.removeprefix(_NAME))


@contextlib.contextmanager
def installing(base: PreTrainedModel) -> Iterator[None]:
    """`install`; where the block fails, the attention implementation of every part of `base` is restored."""
    before = [(config, config._attn_implementation_internal) for config in _configs(base)]
    try:
        install(base)
        yield
    except BaseException:
        for config, implementation in before:
            config._attn_implementation_internal = implementation
        raise


def _configs(base: PreTrainedModel) -> list[PreTrainedConfig]:
    """The configuration of `base` and those of its parts, each once."""
    waiting = [part.config for part in base.modules() if isinstance(part, PreTrainedModel)]
    found: dict[int, PreTrainedConfig] = {}
    while waiting:
        config = waiting.pop()
        if isinstance(config, PreTrainedConfig) and id(config) not in found:
            found[id(config)] = config
            waiting += [getattr(config, name, None) for name in config.sub_configs]
    return list(found.values())


@contextlib.contextmanager
def ordinary(base: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """`base` with its original attention, for a comparison with its own code path."""
    uninstall(base)
    try:
        yield base
    finally:
        install(base)
