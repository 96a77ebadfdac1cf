"""One training step: read the text, think without a graph, then differentiate thoughts and lookahead in chunks of rows.

Thoughts are constants for the gradient, so they are sampled first and without a graph. The text's states then stand as
leaves while rows run over them a chunk at a time; they gather their gradient and pass it on through the text once, at
the end. It is the gradient of the whole batch with the memory of one chunk.

The loss comes out as an ordinary scalar whose `backward` hands every trainable parameter its gradient, so optimizers,
loss scaling, gradient accumulation and distributed wrappers work as with any model.

Shapes: B sequences · N positions · Q places · P samples · R = Q P rows · A lookahead · T thought tokens · E hidden
size · V vocabulary.
"""

from __future__ import annotations

import contextlib
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
from quietstar.training.objective import Block, ObjectiveConfig, Shares

NO_FP16 = (
    "training in fp16 is not supported: gradients are taken inside the step, before a loss scale could keep the small "
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
        share: part of the positions that are thought at, above 0 to 1, for "random" and "entropy".
        donor_reward: reward a thought for what it gains over another place's thought, not over none.
        only_probability: chance that a row predicts from its thought alone (w = 1).
        hide_near: how many of the last visible tokens the end of a thought and its lookahead cannot see.
        filler: put filler tokens in the place of all thoughts: the control for compute.
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
    """What a step saw, in nats per predicted token; all constants.

    Args:
        total: the loss. base, mixed: mean losses without and with thoughts, mixed over all offsets.
        next: mixed loss of the next token alone. gain: base - mixed at the next token, over the places thought at.
        policy, kl: these terms before their weights. reward: mean over rows. mixing_weight: mean w.
        tokens: real tokens read. rows: thoughts thought.
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
    """The loss of one batch, ready for `backward`, and what was seen.

    Args:
        ids, mask: tokens (B, N), real ones first, and True at real tokens.
        seed: of everything random. names: (B,) what stands for each sequence in the random numbers, so that a sequence
            thinks the same in whatever batch it comes.
        thoughts: thought tokens (B, N, P, T) to learn from instead of sampling.
        divide: how many times smaller than stated the rows' memory must be; doubled after running out of memory.
        recompute: build one ordinary graph and run each chunk again in the backward pass, in place of differentiating
            at once. A third slower; for wrappers that shard parameters and must see the backward pass.

    Raises:
        QuietStarError: the text is too short for the lookahead, or the arithmetic is fp16.
    """
    if thoughts is not None:
        config = replace(config, samples=thoughts.shape[2], thought_length=thoughts.shape[3])
    return _Step(model, ids, mask.bool(), config, seed, names, thoughts, divide).loss(recompute)


class _Step:
    def __init__(
        self, model: ThinkingModel, ids: Tensor, mask: Tensor, config: StepConfig, seed: int, names: Tensor | None,
        thoughts: Tensor | None, divide: float,
    ) -> None:  # fmt: skip
        self.model, self.ids, self.mask, self.config = model, ids, mask, config
        self.seed, self.given, self.divide = seed, thoughts, divide
        self.lengths: list[int] = mask.sum(1).tolist()
        self.names = torch.arange(len(ids), device=ids.device) if names is None else names
        self.banned = model.config.marker_ids
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
        return self._recomputed(prefix, base_hidden) if recompute else self._at_once(prefix, base_hidden)

    def _plain(self, base_hidden: Tensor) -> tuple[Tensor, StepReport]:
        """The text's own loss with weight 1: training without thoughts."""
        base = self._base(base_hidden)[0]
        seen = base.item()
        return base, StepReport(seen, seen, seen, seen, 0.0, 0.0, 0.0, 0.0, 0.0, sum(self.lengths), 0)

    def _base(self, base_hidden: Tensor) -> tuple[Tensor, Tensor]:
        """Mean base loss, and each (B, N - 1) as a constant."""
        loss_BN = objective.base_losses(self.model.unembed, base_hidden, self.ids)
        return objective.mean(loss_BN, self.mask[:, 1:]), loss_BN.detach()

    def _at_once(self, prefix: Prefix, base_hidden: Tensor) -> tuple[Tensor, StepReport]:
        """Differentiate chunk by chunk now; the scalar returned only hands the gradients on."""
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        states = prefix.tensors()
        leaves = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in (base_hidden, *states)]
        learning = [tensor for tensor in leaves if tensor.requires_grad]  # none where the text's own pass is frozen
        sums: list[Tensor | None] = [None] * (len(parameters) + len(learning))

        def differentiate(outputs: Any, inputs: list[Tensor], weights: Any = None) -> None:
            found = torch.autograd.grad(outputs, inputs, weights, allow_unused=True)
            for number, gradient in enumerate(found):
                if gradient is None:
                    continue
                have = sums[number]
                if have is None:  # states gather many small parts: add them up in fp32
                    sums[number] = gradient.float() if number >= len(parameters) else gradient
                else:
                    have += gradient

        base, base_loss = self._base(leaves[0])
        if self.config.objective.base_weight and base.requires_grad:
            differentiate(self.config.objective.base_weight * base, [*parameters, *learning])
        twin = prefix.over(leaves[1:])
        thinking = _Thinking(self, twin, leaves[0].detach(), base_loss)
        report = _Sums(thinking, base.item())
        for q in thinking.parts():
            part = thinking.block(q, leaves[0], twin)
            if part.total.requires_grad:
                differentiate(part.total, [*parameters, *learning])
            report.add(part)
            del part
        graph = [tensor for tensor in (base_hidden, *states) if tensor.requires_grad]
        pairs = [
            (tensor, gradient.to(tensor.dtype))
            for tensor, gradient in zip(graph, sums[len(parameters) :], strict=True)
            if gradient is not None
        ]
        if pairs:
            differentiate([tensor for tensor, _ in pairs], parameters, [gradient for _, gradient in pairs])
        finished = report.finish(sum(self.lengths))
        value = torch.tensor(finished.total, device=self.ids.device)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, sums, strict=False)]
        loss: Tensor = _HandOn.apply(value, gradients, *parameters)
        return loss, finished

    def _recomputed(self, prefix: Prefix, base_hidden: Tensor) -> tuple[Tensor, StepReport]:
        """One graph; chunks keep nothing but their inputs and run again in the backward pass."""
        base, base_loss = self._base(base_hidden)
        states = prefix.tensors()
        still = prefix.over([tensor.detach() for tensor in states])
        thinking = _Thinking(self, still, base_hidden.detach(), base_loss)
        report = _Sums(thinking, base.item())
        loss = self.config.objective.base_weight * base
        for q in thinking.parts():

            def run(hidden: Tensor, *tensors: Tensor, q: slice = q) -> tuple[Tensor, ...]:
                return tuple(vars(thinking.block(q, hidden, prefix.over(list(tensors)))).values())

            part = Block(*checkpoint(run, base_hidden, *states, use_reentrant=False))
            report.add(part)
            loss = loss + part.total
        return loss, report.finish(sum(self.lengths))


class _HandOn(torch.autograd.Function):
    """A loss whose gradient is already known."""

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
        self.sequence, self.position, self.shares = self._places(base_hidden)
        self.size = _places_at_once(step, prefix)
        self.thoughts = self._think(prefix)
        self.rival: Tensor | None = None
        self.only: Tensor | None = None
        self.base_prefix: Prefix | None = None
        if self.config.donor_reward:
            self.rival = self._against_donors(prefix, base_hidden)
        if self.config.only_probability:
            drawn = uniforms(step.seed, _ONLY, *self._keys())
            self.only = torch.from_numpy(drawn < self.config.only_probability).to(step.ids.device)
        if self.config.objective.kl_weight:
            with self._untouched():
                self.base_prefix = self.model.read(step.ids, step.lengths)[0]

    def __len__(self) -> int:
        return len(self.sequence)

    def parts(self) -> list[slice]:
        return list(chunks(len(self), self.size))

    def _keys(self) -> tuple[np.ndarray, ...]:
        """Names of the random numbers of all rows, broadcasting to (Q, P)."""
        named = self.step.names[self.sequence].cpu().numpy()
        return named[:, None], self.position.cpu().numpy()[:, None], np.arange(self.config.samples)

    def _places(self, base_hidden: Tensor) -> tuple[Tensor, Tensor, Shares]:
        step, config = self.step, self.config
        shares = objective.shares_of_all(step.mask, config.samples, config.objective.lookahead)
        every = Place.every(step.lengths, 1, step.ids.device)
        if config.positions == "all" or config.share == 1:
            return every.sequence, every.position, shares
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
            shares.chance = torch.tensor(chance, device=index.device)
        else:  # a choice, no estimate: the means run over the chosen places
            real = objective.real_targets(step.mask, config.objective.lookahead)[sequence, position]
            rewarded = objective.rewarded_positions(step.ids.shape[1], config.objective.lookahead)
            rows = int((position < rewarded).sum()) * config.samples
            shares = Shares(real.sum(0) * config.samples, max(1, rows))
        return sequence, position, shares

    def _entropies(self, base_hidden: Tensor, place: Place) -> Tensor:
        found = []
        for q in chunks(len(place), 64):
            logits = ban(self.model.unembed(base_hidden[place.sequence[q], place.position[q]]), self.step.banned)
            found.append(entropy(torch.log_softmax(logits, dim=-1)))
        return torch.cat(found)

    def rows(self, q: slice) -> Place:
        """The rows of some places, samples of a place together."""
        samples, device = self.config.samples, self.step.ids.device
        count = len(self.sequence[q])
        return Place(
            self.sequence[q].repeat_interleave(samples), self.position[q].repeat_interleave(samples),
            torch.arange(samples, device=device).repeat(count),
        )  # fmt: skip

    def _think(self, prefix: Prefix) -> Tensor:
        """Thought tokens (Q, P, T)."""
        config, length = self.config, self.config.thought_length
        if self.step.given is not None:
            return self.step.given[self.sequence, self.position]
        if config.filler or not length:
            token = self.model.filler_token
            return torch.full((len(self), config.samples, length), token, device=self.step.ids.device)
        found = []
        for q in chunks(len(self), 4 * self.size):  # without a graph many more rows fit
            thought = self.model.think(
                prefix, self.rows(q), length=length, temperature=config.temperature, seed=self.step.seed,
                names=self.step.names, close=False,
            )  # fmt: skip
            found.append(thought.tokens.view(-1, config.samples, length))
        if torch.is_autocast_enabled(self.step.ids.device.type):
            torch.clear_autocast_cache()  # weights cast without a graph must not be used with one
        return torch.cat(found)

    def _against_donors(self, prefix: Prefix, base_hidden: Tensor) -> Tensor:
        """Losses (Q, P, A) with the thought of an earlier place of the same text, filler at its first place."""
        step, lookahead = self.step, self.config.objective.lookahead
        first = torch.searchsorted(self.sequence, self.sequence)  # places are ordered by sequence
        rank_Q1 = (torch.arange(len(self), device=first.device) - first)[:, None]
        drawn = torch.from_numpy(uniforms(step.seed, _DONOR, *self._keys()))
        donor_QP = first[:, None] + (drawn * rank_Q1.cpu()).long().to(first.device)
        sample_P = torch.arange(self.config.samples, device=first.device)
        tokens = torch.where((rank_Q1 > 0)[..., None], self.thoughts[donor_QP, sample_P], self.model.filler_token)
        shares, found = Shares(torch.ones(lookahead, device=first.device), 1), []
        for q in self.parts():
            part = self._block(q, base_hidden, prefix, tokens, shares, self._plain_objective)
            found.append(self.base_loss[self._ahead(q)][:, None] - part.gain)
        return torch.cat(found)

    def _ahead(self, q: slice) -> tuple[Tensor, Tensor]:
        """Index of base_loss (B, N - 1) at each place and offset of a part, (Q, A) each."""
        offset_A = torch.arange(self.config.objective.lookahead, device=self.position.device)
        return self.sequence[q, None], (self.position[q, None] + offset_A).clamp_max(self.base_loss.shape[1] - 1)

    @property
    def _plain_objective(self) -> ObjectiveConfig:
        return ObjectiveConfig(lookahead=self.config.objective.lookahead, policy_weight=0.0)

    @contextlib.contextmanager
    def _untouched(self) -> Any:
        """The base model as it was before training."""
        disable = getattr(self.model.base, "disable_adapter", None)
        if disable is None:
            raise QuietStarError("kl_weight needs an adapter (train: lora), whose base is still there to compare with")
        with torch.no_grad(), disable():
            yield

    def block(self, q: slice, base_hidden: Tensor, prefix: Prefix) -> Block:
        """The share of some places in the objective."""
        return self._block(q, base_hidden, prefix, self.thoughts, self.shares, self.config.objective)

    def _block(
        self, q: slice, base_hidden: Tensor, prefix: Prefix, tokens: Tensor, shares: Shares, config: ObjectiveConfig
    ) -> Block:
        step, samples = self.step, self.config.samples
        place, length = self.rows(q), tokens.shape[-1]
        rows_RLE = self.model.ahead(
            prefix, place, tokens[q].reshape(-1, length), step.ids, config.lookahead, self.config.hide_near
        )

        def base_logits() -> Tensor:
            assert self.base_prefix is not None
            with self._untouched():
                hidden = self.model.ahead(self.base_prefix, place, tokens[q].reshape(-1, length), step.ids, 1)
                return self.model.unembed(hidden[:, :length]).view(-1, samples, length, self.model.vocabulary)

        chance = None if shares.chance is None else shares.chance[q]
        own = tokens is self.thoughts
        return objective.block(
            base_hidden, self.base_loss, rows_RLE.view(-1, samples, *rows_RLE.shape[1:]), tokens[q],
            (self.sequence[q], self.position[q]), step.ids, step.mask, self.model.weight, self.model.unembed,
            Shares(shares.targets, shares.policy_rows, chance), step.banned, config,
            only=None if self.only is None or not own else self.only[q],
            rival=None if self.rival is None or not own else self.rival[q],
            base_logits=base_logits if own and config.kl_weight else None, recompute=False,
        )  # fmt: skip


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
    """Adds up what the blocks of a batch tell."""

    def __init__(self, thinking: _Thinking, base: float) -> None:
        self.thinking, self.base = thinking, base
        self.mixed: Tensor | float = 0.0
        self.policy = self.kl = self.reward = self.gain = self.weight = 0.0

    def add(self, part: Block) -> None:
        self.mixed = self.mixed + part.mixed
        self.policy += part.policy.item()
        self.kl += part.kl.item()
        self.reward += part.reward.sum().item()
        self.gain += part.gain[..., 0].sum().item()
        self.weight += part.mixing_weight[..., 0].sum().item()

    def finish(self, tokens: int) -> StepReport:
        config, rows = self.thinking.config.objective, len(self.thinking) * self.thinking.config.samples
        mixed = torch.as_tensor(self.mixed)
        nll = config.base_weight * self.base + (1 - config.base_weight) * mixed.mean().item()
        return StepReport(
            total=nll + config.policy_weight * self.policy + config.kl_weight * self.kl,
            base=self.base, mixed=mixed.mean().item(), next=mixed.flatten()[0].item(), gain=self.gain / max(1, rows),
            policy=self.policy, kl=self.kl, reward=self.reward / max(1, rows),
            mixing_weight=self.weight / max(1, rows), tokens=tokens, rows=rows,
        )  # fmt: skip
