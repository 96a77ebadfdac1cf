"""One training step: read the text, think without a graph, then differentiate thoughts and lookahead in chunks of rows.

Thoughts are constants for the gradient, so they are sampled first and without a graph. The states of the text (its
hidden states, keys and values) are then detached into leaves, and rows run over these one chunk at a time. The leaves
accumulate their gradient, which is propagated through the text once, at the end. This gives the gradient of the whole
batch with the memory of one chunk.

The loss is an ordinary scalar whose `backward` gives every trainable parameter its gradient, so optimizers, loss
scaling, gradient accumulation and distributed wrappers work as with any model.

Shapes: B sequences · N positions · Q places · P samples · R = Q P rows · A lookahead · T thought tokens · E hidden
size · V vocabulary.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quietstar.engine.model import Place, ThinkingModel, chunks
from quietstar.engine.rows import Prefix
from quietstar.engine.sampling import ban, entropy, uniforms
from quietstar.errors import QuietStarError
from quietstar.settings import Count, Flag, Positive, Share, Whole, checked
from quietstar.training import objective
from quietstar.training.objective import Batch, Block, Divisors, ObjectiveConfig, Places, Readout, Thoughts

NO_FP16 = (
    "training in fp16 is not supported: gradients are computed inside the step, before a loss scale could keep small "
    "ones from rounding to 0; use bf16 or fp32"
)
_PLACES, _ONLY, _DONOR = range(100, 103)  # purposes of random numbers, apart from those of `sampling`


@checked
@dataclass(frozen=True)
class StepConfig:
    """How a step thinks and what it learns from.

    Args:
        objective: losses, rewards and policy term.
        thought_length: T, sampled tokens of a thought.
        samples: P, thoughts at each place.
        temperature: of the thoughts' tokens, above 0: greedy samples would all be the same thought.
        positions: where to think: "all", a "random" subset (an unbiased estimate of all), or where the "entropy" of the
            base prediction, which is known before the target, is highest.
        share: share of the positions to think at, above 0 to 1, for "random" and "entropy".
        donor_reward: reward a thought for its gain over the thought of another place, instead of over no thought.
        only_probability: chance that a row predicts from its thought alone (w = 1).
        hide_near: how many of the last visible tokens the end of a thought and its lookahead cannot see.
        filler: replace all thoughts by filler tokens: the control for compute.
        thoughts: False trains on the text alone, without any thought: the control for the data.
        chunk_mb: how much memory the rows of one chunk may take, in MB; an estimate.
    """

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    thought_length: Whole = 8
    samples: Count = 2
    temperature: Positive = 1.0
    positions: Literal["all", "random", "entropy"] = "all"
    share: Annotated[Positive, Field(le=1)] = 1.0
    donor_reward: Flag = False
    only_probability: Share = 0.0
    hide_near: Whole = 0
    filler: Flag = False
    thoughts: Flag = True
    chunk_mb: Positive = 2000.0


@dataclass
class StepReport:
    """Measurements of one step, in nats per predicted token; all constants.

    Args:
        total: the loss.
        base: mean loss without thoughts.
        mixed: mean loss with thoughts, over all offsets.
        next: mean loss with thoughts of the next token (offset 0).
        gain: base - mixed loss of the next token, mean over the rows.
        policy, kl: these terms before their weights.
        reward: mean over rows.
        mixing_weight: mean w of the next token.
        tokens: number of real tokens read.
        rows: number of thoughts.
    """

    total: float
    base: float
    mixed: float
    next: float
    gain: float
    policy: float
    kl: float
    reward: float
    mixing_weight: float
    tokens: int
    rows: int


def training_loss(
    model: ThinkingModel,
    ids: Tensor,
    mask: Tensor,
    config: StepConfig,
    *,
    seed: int = 0,
    names: Tensor | None = None,
    thoughts: Tensor | None = None,
    divide: float = 1.0,
    recompute: bool = False,
) -> tuple[Tensor, StepReport]:
    """The loss of one batch, ready for `backward`, and what was measured.

    Args:
        ids, mask: tokens (B, N), real ones first, and True at real tokens.
        seed: of everything random.
        names: (B,) identifies each sequence in the random numbers, so that a sequence gets the same thoughts in
            whatever batch it comes; its number in the batch by default.
        thoughts: thought tokens (B, N, P, T) to learn from instead of sampling.
        divide: divides the memory that `chunk_mb` allows the rows; the trainer doubles it after running out of memory.
        recompute: build one ordinary graph and run each chunk again in the backward pass, instead of computing the
            gradients inside the step. A third slower; for wrappers that shard parameters and must see the backward
            pass.

    Raises:
        QuietStarError: the text is too short for the lookahead, or the arithmetic is fp16.
    """
    if thoughts is not None:
        config = replace(config, samples=thoughts.shape[2], thought_length=thoughts.shape[3])
    return _Step(model, ids, mask.bool(), config, seed, names, thoughts, divide).loss(recompute)


class _Step:
    """One batch and how to train on it; see `training_loss`."""

    def __init__(
        self,
        model: ThinkingModel,
        ids: Tensor,
        mask: Tensor,
        config: StepConfig,
        seed: int,
        names: Tensor | None,
        thoughts: Tensor | None,
        divide: float,
    ) -> None:
        self.model, self.ids, self.mask, self.config = model, ids, mask, config
        self.seed, self.given, self.divide = seed, thoughts, divide
        self.lengths: list[int] = mask.sum(1).tolist()
        self.names = torch.arange(len(ids), device=ids.device) if names is None else names
        self.readout = Readout(model.weight, model.unembed, model.config.marker_ids)
        kind = ids.device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.decoder_lm.dtype
        if torch.float16 in (low, model.decoder_lm.dtype) and torch.is_grad_enabled():
            raise QuietStarError(NO_FP16)
        ahead = config.objective.lookahead
        if config.thoughts and ids.shape[1] < ahead + 2:
            raise QuietStarError(f"a text needs at least lookahead + 2 = {ahead + 2} tokens, got {ids.shape[1]}")

    # -- the loss -----------------------------------------------------------------------------------------------------

    def loss(self, recompute: bool) -> tuple[Tensor, StepReport]:
        """See `training_loss`."""
        prefix, base_hidden = self.model.read(self.ids, self.lengths)
        if not self.config.thoughts:
            return self._plain(base_hidden)
        return self._one_graph(prefix, base_hidden) if recompute else self._chunk_by_chunk(prefix, base_hidden)

    def _plain(self, base_hidden: Tensor) -> tuple[Tensor, StepReport]:
        """The text's own loss with weight 1: training without thoughts."""
        base = self._base(base_hidden)[0]
        value = base.item()
        return base, StepReport(
            total=value,
            base=value,
            mixed=value,
            next=value,
            gain=0.0,
            policy=0.0,
            kl=0.0,
            reward=0.0,
            mixing_weight=0.0,
            tokens=sum(self.lengths),
            rows=0,
        )

    def _base(self, base_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean base loss, and each (B, N - 1) as a constant."""
        loss_BN = objective.base_losses(self.model.unembed, base_hidden, self.ids)
        return objective.mean(loss_BN, self.mask[:, 1:]), loss_BN.detach()

    def _chunk_by_chunk(self, prefix: Prefix, base_hidden: Tensor) -> tuple[Tensor, StepReport]:
        """Compute the gradients now, chunk by chunk; `backward` of the scalar returned only passes them on."""
        # 1. The states of the text become leaves; where the base is frozen they need no gradient.
        states = [base_hidden, *prefix.tensors()]
        leaves = [state.detach().requires_grad_(state.requires_grad) for state in states]
        base_hidden, prefix = leaves[0], prefix.over(leaves[1:])
        parameters = _Gradients([p for p in self.model.parameters() if p.requires_grad])
        learning = _Gradients([leaf for leaf in leaves if leaf.requires_grad], in_fp32=True)

        def differentiate(loss: Tensor) -> None:
            inputs = [*parameters.tensors, *learning.tensors]
            found = torch.autograd.grad(loss, inputs, allow_unused=True)
            parameters.add(found[: len(parameters.tensors)])
            learning.add(found[len(parameters.tensors) :])

        # 2. The base loss, then the rows, each part's graph freed before the next is built.
        base, base_loss = self._base(base_hidden)
        if self.config.objective.base_weight and base.requires_grad:
            differentiate(self.config.objective.base_weight * base)
        thinking = _Thinking(self, prefix, base_hidden.detach(), base_loss)
        sums = _Sums(thinking, base.item())
        for part in thinking.parts():
            block = thinking.block(part, base_hidden, prefix)
            if block.total.requires_grad:
                differentiate(block.total)
            sums.add(block)
            del block

        # 3. What the leaves accumulated goes through the text, once.
        with_graph = [state for state in states if state.requires_grad]
        reached = [
            (state, gradient.to(state.dtype))
            for state, gradient in zip(with_graph, learning.sums, strict=True)
            if gradient is not None
        ]
        if reached:
            outputs, weights = zip(*reached, strict=True)
            parameters.add(torch.autograd.grad(outputs, parameters.tensors, weights, allow_unused=True))

        report = sums.finish(sum(self.lengths))
        value = torch.tensor(report.total, device=self.ids.device)
        loss: Tensor = _PassOn.apply(value, parameters.or_zeros(), *parameters.tensors)
        return loss, report

    def _one_graph(self, prefix: Prefix, base_hidden: Tensor) -> tuple[Tensor, StepReport]:
        """One ordinary graph; chunks keep nothing but their inputs and run again in the backward pass."""
        base, base_loss = self._base(base_hidden)
        states = prefix.tensors()
        constant = prefix.over([state.detach() for state in states])
        thinking = _Thinking(self, constant, base_hidden.detach(), base_loss)
        sums = _Sums(thinking, base.item())
        loss = self.config.objective.base_weight * base
        for part in thinking.parts():

            def run(hidden: Tensor, *states: Tensor, part: slice = part) -> Block:
                return thinking.block(part, hidden, prefix.over(list(states)))

            block: Block = checkpoint(run, base_hidden, *states, use_reentrant=False)
            sums.add(block)
            loss = loss + block.total
        return loss, sums.finish(sum(self.lengths))


class _Gradients:
    """Gradients of some tensors, added up; with `in_fp32` in fp32, for sums of many small parts."""

    def __init__(self, tensors: list[Tensor], *, in_fp32: bool = False) -> None:
        self.tensors, self.in_fp32 = tensors, in_fp32
        self.sums: list[Tensor | None] = [None] * len(tensors)

    def add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add one gradient a tensor, None where there is none."""
        for number, gradient in enumerate(gradients):
            if gradient is None:
                continue
            total = self.sums[number]
            if total is None:
                self.sums[number] = gradient.float() if self.in_fp32 else gradient
            else:
                total += gradient

    def or_zeros(self) -> list[Tensor]:
        """The sums, zeros where no gradient was added."""
        return [
            torch.zeros_like(t) if total is None else total for t, total in zip(self.tensors, self.sums, strict=True)
        ]


class _PassOn(torch.autograd.Function):
    """A loss whose gradients are known already; `backward` multiplies them by the incoming gradient."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: list[Tensor], *parameters: Tensor) -> Tensor:
        ctx.gradients = gradients
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *outputs: Tensor) -> Any:
        gradients, ctx.gradients = ctx.gradients, None
        return None, None, *(g.mul_(outputs[0].to(g.dtype)) for g in gradients)


# -- where and what to think ------------------------------------------------------------------------------------------


class _Thinking:
    """The thoughts of one batch: where, how they count, and the tokens; sampled without a graph."""

    @torch.no_grad()
    def __init__(self, step: _Step, prefix: Prefix, base_hidden: Tensor, base_loss: Tensor) -> None:
        self.step, self.model, self.config = step, step.model, step.config
        self.base_loss = base_loss
        self.places, self.divisors = self._choose_places(base_hidden)
        self.size = _places_at_once(step, prefix)
        self.tokens = self._think(prefix)
        self.rival: Tensor | None = None
        self.only: Tensor | None = None
        self.base_prefix: Prefix | None = None
        if self.config.donor_reward:
            self.rival = self._losses_with_donors(prefix, base_hidden)
        if self.config.only_probability:
            drawn = uniforms(step.seed, _ONLY, *self._keys())
            self.only = torch.from_numpy(drawn < self.config.only_probability).to(step.ids.device)
        if self.config.objective.kl_weight:
            with self._untouched():
                self.base_prefix = self.model.read(step.ids, step.lengths)[0]

    def __len__(self) -> int:
        return len(self.places)

    def parts(self) -> list[slice]:
        """The places in parts that fit into the memory of a chunk."""
        return list(chunks(len(self), self.size))

    def _keys(self) -> tuple[np.ndarray, ...]:
        """Names of the random numbers of all rows, broadcasting to (Q, P)."""
        named = self.step.names[self.places.sequence].cpu().numpy()
        return named[:, None], self.places.position.cpu().numpy()[:, None], np.arange(self.config.samples)

    def _choose_places(self, base_hidden: Tensor) -> tuple[Places, Divisors]:
        """Where to think (`StepConfig.positions`), ordered by sequence and position, and what means are divided by."""
        step, config = self.step, self.config
        over_all = objective.divisors_of_all(step.mask, config.samples, config.objective.lookahead)
        every = Place.every(step.lengths, 1, step.ids.device)
        if config.positions == "all" or config.share == 1:
            return Places(every.sequence, every.position), over_all
        if config.positions == "entropy":
            order = -self._entropies(base_hidden, every)
        else:
            drawn = uniforms(step.seed, _PLACES, step.names[every.sequence].cpu().numpy(), every.position.cpu().numpy())
            order = torch.from_numpy(drawn.argsort(kind="stable").argsort()).to(step.ids.device)  # ranks
        chosen, chance = [], []
        for b in range(len(step.lengths)):
            mine = (every.sequence == b).nonzero()[:, 0]
            count = max(1, round(config.share * len(mine))) if len(mine) else 0
            chosen.append(mine[order[mine].argsort(stable=True)[:count]].sort().values)
            chance += [count / max(1, len(mine))] * count
        index = torch.cat(chosen)
        sequence, position = every.sequence[index], every.position[index]
        if config.positions == "random":
            return Places(sequence, position, torch.tensor(chance, device=index.device)), over_all
        # Places of high entropy estimate nothing about the others: the means run over the chosen places alone.
        real = objective.real_targets(step.mask, config.objective.lookahead)[sequence, position]
        rewarded = objective.rewarded_positions(step.ids.shape[1], config.objective.lookahead)
        rows = int((position < rewarded).sum()) * config.samples
        return Places(sequence, position), Divisors(real.sum(0) * config.samples, max(1, rows))

    def _entropies(self, base_hidden: Tensor, place: Place) -> Tensor:
        """Entropy of the base prediction at each place, in nats."""
        found = []
        for q in chunks(len(place), 64):
            logits = ban(
                self.model.unembed(base_hidden[place.sequence[q], place.position[q]]), self.step.readout.banned
            )
            found.append(entropy(torch.log_softmax(logits, dim=-1)))
        return torch.cat(found)

    def rows(self, part: slice) -> Place:
        """The rows of some places, the samples of a place together; (R,) each."""
        samples, places = self.config.samples, self.places[part]
        return Place(
            places.sequence.repeat_interleave(samples),
            places.position.repeat_interleave(samples),
            torch.arange(samples, device=self.step.ids.device).repeat(len(places)),
        )

    def _think(self, prefix: Prefix) -> Tensor:
        """Thought tokens (Q, P, T)."""
        config, length = self.config, self.config.thought_length
        if self.step.given is not None:
            return self.step.given[self.places.sequence, self.places.position]
        if config.filler or not length:
            token = self.model.filler_token
            return torch.full((len(self), config.samples, length), token, device=self.step.ids.device)
        found = []
        for part in chunks(len(self), 4 * self.size):  # without a graph many more rows fit
            thought = self.model.think(
                prefix,
                self.rows(part),
                length=length,
                temperature=config.temperature,
                seed=self.step.seed,
                names=self.step.names,
                close=False,
            )
            found.append(thought.tokens.view(-1, config.samples, length))
        if torch.is_autocast_enabled(self.step.ids.device.type):
            torch.clear_autocast_cache()  # weights cast without a graph must not be used with one
        return torch.cat(found)

    def _losses_with_donors(self, prefix: Prefix, base_hidden: Tensor) -> Tensor:
        """Losses (Q, P, A) with the thought of an earlier place of the same text, filler at its first place."""
        lookahead = self.config.objective.lookahead
        tokens = self._donors()
        mixed_only = ObjectiveConfig(lookahead=lookahead, policy_weight=0.0)
        no_means = Divisors(torch.ones(lookahead, device=tokens.device), 1)  # only losses of single rows are used
        found = []
        for part in self.parts():
            thoughts = Thoughts(tokens[part], self._hidden(part, tokens, prefix))
            block = self._block(part, base_hidden, thoughts, no_means, mixed_only)
            found.append(self.base_loss[self._ahead(part)][:, None] - block.gain)
        return torch.cat(found)

    def _donors(self) -> Tensor:
        """For each row the thought of an earlier place of its text, drawn evenly; filler at the first; (Q, P, T)."""
        sequence_Q = self.places.sequence  # in ascending order
        first_Q = torch.searchsorted(sequence_Q, sequence_Q)
        rank_Q1 = (torch.arange(len(self), device=first_Q.device) - first_Q)[:, None]
        drawn_QP = torch.from_numpy(uniforms(self.step.seed, _DONOR, *self._keys()))
        donor_QP = first_Q[:, None] + (drawn_QP * rank_Q1.cpu()).long().to(first_Q.device)
        sample_P = torch.arange(self.config.samples, device=first_Q.device)
        return torch.where((rank_Q1 > 0)[..., None], self.tokens[donor_QP, sample_P], self.model.filler_token)

    def _ahead(self, part: slice) -> tuple[Tensor, Tensor]:
        """Index of base_loss (B, N - 1) at each place and offset of a part, (Q, 1) and (Q, A)."""
        offset_A = torch.arange(self.config.objective.lookahead, device=self.step.ids.device)
        places = self.places[part]
        return places.sequence[:, None], (places.position[:, None] + offset_A).clamp_max(self.base_loss.shape[1] - 1)

    @contextlib.contextmanager
    def _untouched(self) -> Iterator[None]:
        """The base model as it was before training."""
        disable = getattr(self.model.base, "disable_adapter", None)
        if disable is None:
            raise QuietStarError("kl_weight needs an adapter (train: lora), whose base is still there to compare with")
        with torch.no_grad(), disable():
            yield

    def block(self, part: slice, base_hidden: Tensor, prefix: Prefix) -> Block:
        """The share of some places in the objective."""
        thoughts = Thoughts(
            self.tokens[part],
            self._hidden(part, self.tokens, prefix),
            only=None if self.only is None else self.only[part],
            rival=None if self.rival is None else self.rival[part],
            base_logits=(lambda: self._base_logits(part)) if self.config.objective.kl_weight else None,
        )
        return self._block(part, base_hidden, thoughts, self.divisors, self.config.objective)

    def _block(
        self, part: slice, base_hidden: Tensor, thoughts: Thoughts, divisors: Divisors, config: ObjectiveConfig
    ) -> Block:
        batch = Batch(self.step.ids, self.step.mask, base_hidden, self.base_loss)
        return objective.block(batch, self.places[part], thoughts, divisors, self.step.readout, config, recompute=False)

    def _hidden(self, part: slice, tokens: Tensor, prefix: Prefix) -> Tensor:
        """Hidden states (Q, P, T + 1 + A, E) of rows with the given thoughts (all places, P, T)."""
        hidden_RLE = self.model.ahead(
            prefix,
            self.rows(part),
            tokens[part].flatten(0, 1),
            self.step.ids,
            self.config.objective.lookahead,
            self.config.hide_near,
        )
        return hidden_RLE.view(-1, self.config.samples, *hidden_RLE.shape[1:])

    def _base_logits(self, part: slice) -> Tensor:
        """Logits (Q, P, T, V) of the base before training at the thought tokens."""
        assert self.base_prefix is not None
        tokens_RT = self.tokens[part].flatten(0, 1)
        length = tokens_RT.shape[-1]
        with self._untouched():
            hidden = self.model.ahead(self.base_prefix, self.rows(part), tokens_RT, self.step.ids, 1)
            logits = self.model.unembed(hidden[:, :length])
            return logits.view(-1, self.config.samples, length, self.model.vocabulary)


def _places_at_once(step: _Step, prefix: Prefix) -> int:
    """How many places run together: as many as the memory of a chunk holds, by an estimate of what a row keeps."""
    model, config = step.model, step.config
    decoder = model.decoder_lm.config.get_text_config(decoder=True)
    heads = getattr(decoder, "num_attention_heads", 1)
    layers, width = len(prefix.layers), model.config.hidden_size
    inner = getattr(decoder, "intermediate_size", None) or 4 * width
    own = config.thought_length + 1 + config.objective.lookahead
    seen = max(step.lengths) + own
    per_token = layers * (60 * width + 20 * inner + 16 * heads * seen) + 10 * model.vocabulary
    rows = config.chunk_mb * 1e6 / step.divide / (own * per_token)
    return max(1, int(rows / config.samples))


class _Sums:
    """Adds up the blocks of a batch for the report."""

    def __init__(self, thinking: _Thinking, base: float) -> None:
        self.thinking, self.base = thinking, base
        self.mixed: Tensor | float = 0.0
        self.policy = self.kl = self.reward = self.gain = self.mixing_weight = 0.0

    def add(self, part: Block) -> None:
        self.mixed = self.mixed + part.mixed
        self.policy += part.policy.item()
        self.kl += part.kl.item()
        self.reward += part.reward.sum().item()
        self.gain += part.gain[..., 0].sum().item()
        self.mixing_weight += part.mixing_weight[..., 0].sum().item()

    def finish(self, tokens: int) -> StepReport:
        config, rows = self.thinking.config.objective, len(self.thinking) * self.thinking.config.samples
        mixed = torch.as_tensor(self.mixed)
        nll = config.base_weight * self.base + (1 - config.base_weight) * mixed.mean().item()
        return StepReport(
            total=nll + config.policy_weight * self.policy + config.kl_weight * self.kl,
            base=self.base,
            mixed=mixed.mean().item(),
            next=mixed.flatten()[0].item(),
            gain=self.gain / max(1, rows),
            policy=self.policy,
            kl=self.kl,
            reward=self.reward / max(1, rows),
            mixing_weight=self.mixing_weight / max(1, rows),
            tokens=tokens,
            rows=rows,
        )
