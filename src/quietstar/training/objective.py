"""The Quiet-STaR objective: losses, rewards and the policy term from the hidden states of base and rows.

Pure functions of tensors: no model is run, nothing is sampled, read or written here. `block` computes the share that
some rows have in the objective of a batch, so that a batch can be processed in parts and the full-vocabulary logits of
all rows are never in memory at once; `objective` computes the whole batch in one call.

Paper: Zelikman et al. 2024, sections 4.2 to 4.4; constants as in its released code (docs/paper.md names each). What
goes beyond the paper is off by default: baselines, signed and normalised advantages, a penalty on leaving the base, a
donor as rival, prediction from the thought only, places thought at with a known chance.

Shapes: B sequences · N positions · Q places (a sequence and a position) · C those of the Q places whose whole lookahead
lies inside the text · P samples · R rows · A lookahead · T thought tokens · E hidden size · V vocabulary. A row is one
sample at one place; its tokens are start marker, T tokens, end marker and A - 1 teacher-forced tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quietstar.engine import budgets
from quietstar.engine.mixing import mix
from quietstar.engine.sampling import ban
from quietstar.errors import QuietStarError
from quietstar.settings import Count, Flag, Positive, Share, Weight, checked

Unembed = Callable[[Tensor], Tensor]


@checked
@dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective; the defaults are the paper's.

    Args:
        lookahead: A, true tokens predicted after each thought.
        base_weight: share of the base loss in the NLL; the mixed loss has the rest.
        policy_weight: factor of the policy term; 0 leaves it out.
        policy_temperature: temperature of the log-probabilities in the policy term.
        baseline: what a reward is compared with: "siblings" (mean over the P samples of the place, itself included;
            the paper's), "leave_one_out" (mean over the other samples) or "no_thought" (nothing: the reward is
            already relative to the prediction without a thought).
        keep_negative: also make thoughts that are worse than the baseline less likely; the paper drops them.
        normalise: divide the advantages of a place by their standard deviation over its samples.
        kl_weight: factor of KL(policy || base) over the thought tokens, in nats per token.
    """

    lookahead: Count = 4
    base_weight: Share = 0.5
    policy_weight: Weight = 1e6
    policy_temperature: Positive = 3.0
    baseline: Literal["siblings", "leave_one_out", "no_thought"] = "siblings"
    keep_negative: Flag = False
    normalise: Flag = False
    kl_weight: Weight = 0.0


@dataclass
class Losses:
    """What one batch gives, in nats per predicted token; only `total` is meant for `backward`.

    Args:
        total: nll + policy_weight x policy.
        nll: base_weight x base + (1 - base_weight) x mean of mixed.
        base: next-token loss without thoughts.
        mixed: (A,) loss with thoughts at offset k = 0 .. A - 1.
        policy: the policy term before its weight.
        reward: (B, rows of positions, P) sum over offsets of base loss - mixed loss; constants.
        mixing_weight: (A,) mean of w at each offset.
    """

    total: Tensor
    nll: Tensor
    base: Tensor
    mixed: Tensor
    policy: Tensor
    reward: Tensor
    mixing_weight: Tensor


@dataclass(frozen=True)
class Batch:
    """The texts of a batch and how the base model reads them.

    Args:
        ids: visible tokens (B, N), real ones first.
        mask: (B, N), True at real tokens.
        hidden: (B, N, E) base hidden states after the final norm.
        losses: (B, N - 1) next-token losses without thoughts, as `base_losses` gives them; constants.
    """

    ids: Tensor
    mask: Tensor
    hidden: Tensor
    losses: Tensor


@dataclass(frozen=True)
class Places:
    """Q places of a batch at which the model thinks.

    Args:
        sequence, position: (Q,) each.
        chance: (Q,) probability with which each place was chosen; its rows are weighted by 1 / chance, which makes a
            mean over the chosen places an unbiased estimate of the mean over all. None weights every place by 1.
    """

    sequence: Tensor
    position: Tensor
    chance: Tensor | None = None

    def __len__(self) -> int:
        return len(self.sequence)

    def __getitem__(self, part: slice | Tensor) -> Places:
        chance = None if self.chance is None else self.chance[part]
        return Places(self.sequence[part], self.position[part], chance)


@dataclass(frozen=True)
class Thoughts:
    """P thoughts at each of Q places: the rows of a block.

    Args:
        tokens: thought tokens (Q, P, T); constants.
        hidden: (Q, P, T + 1 + A, E) hidden states of the rows after the start marker.
        only: (Q, P), True where the prediction is made from the thought alone (w = 1); None for nowhere.
        rival: (Q, P, A) losses that the reward compares with instead of the base's, for example those with a donor's
            thought; constants.
        base_logits: gives the logits (Q, P, T, V) of the base before training at the thought tokens, for `kl_weight`.
    """

    tokens: Tensor
    hidden: Tensor
    only: Tensor | None = None
    rival: Tensor | None = None
    base_logits: Callable[[], Tensor] | None = None


@dataclass(frozen=True)
class Readout:
    """The parts of the model that turn hidden states into predictions.

    Args:
        weight: the mixing head, base and thought hidden states (..., E), (..., E) -> w (...).
        unembed: hidden states to logits, (..., E) -> (..., V).
        banned: token ids that are never sampled (markers), for the policy's normalisation.
    """

    weight: Callable[[Tensor, Tensor], Tensor]
    unembed: Unembed
    banned: Sequence[int] = ()


@dataclass(frozen=True)
class Divisors:
    """What the means of a batch are divided by; every block of the batch gets the same.

    Args:
        targets: (A,) number of (row, offset k) with a real target, for the mean of the mixed loss at each offset.
        policy_rows: number of rows, for the mean of the policy term.
    """

    targets: Tensor
    policy_rows: int


@dataclass(frozen=True)
class Block:
    """The share of some places in the objective of their batch.

    Args:
        total: to be added up over the blocks of a batch; the only part with a gradient.
        mixed: (A,) share of the mean mixed loss at each offset.
        policy, kl: shares of these terms before their weights.
        reward: (Q, P) sum over offsets of the loss saved against the rival, or against the base where there is none.
        gain: (Q, P, A) base loss - mixed loss at each offset; constants.
        mixing_weight: (Q, P, A) w.
    """

    total: Tensor
    mixed: Tensor
    policy: Tensor
    kl: Tensor
    reward: Tensor
    gain: Tensor
    mixing_weight: Tensor


def rewarded_positions(length: int, lookahead: int) -> int:
    """How many first positions of N = `length` have all their A targets inside the text: i = 0 .. N - 2 - A."""
    return length - 1 - lookahead


def real_targets(mask: Tensor, lookahead: int) -> Tensor:
    """(B, N, A): whether x_{i+k+1} is a real token, i.e. whether position i has a target at offset k."""
    padded = torch.nn.functional.pad(mask.bool(), (0, lookahead))
    return torch.stack([padded[:, k + 1 : k + 1 + mask.shape[1]] for k in range(lookahead)], dim=-1)


def base_losses(unembed: Unembed, base_hidden: Tensor, ids: Tensor) -> Tensor:
    """Next-token losses without thoughts, (B, N - 1), from base hidden states (B, N, E)."""
    return cross_entropy(unembed, base_hidden[:, :-1], ids[:, 1:])


def block(
    batch: Batch,
    places: Places,
    thoughts: Thoughts,
    divisors: Divisors,
    readout: Readout,
    config: ObjectiveConfig = ObjectiveConfig(),
    *,
    recompute: bool = True,
) -> Block:
    """The share of Q places in the objective of their batch; see `objective` for the formula.

    Args:
        recompute: compute logits again in the backward pass instead of keeping them; saves memory, costs time.

    Raises:
        QuietStarError: the rows have another length than T + 1 + A, or `kl_weight` is set and `base_logits` is missing.
    """
    length, lookahead = batch.ids.shape[1], config.lookahead
    samples, thought_length = thoughts.tokens.shape[1:]
    if thoughts.hidden.shape[2] != thought_length + 1 + lookahead:
        raise QuietStarError(
            f"the rows of hidden states have {thoughts.hidden.shape[2]} tokens each, "
            f"expected T + 1 + A = {thought_length + 1 + lookahead}"
        )

    # 1. Offset k of a row at position i predicts x_{i+k+1}; past the end of the text any index does, `real` is False.
    offset_A = torch.arange(lookahead, device=batch.ids.device)
    sequence_Q1 = places.sequence[:, None]
    ahead_QA = (places.position[:, None] + offset_A).clamp_max(length - 2)
    real_Q1A = real_targets(batch.mask, lookahead)[places.sequence, places.position][:, None]
    target_QPA = batch.ids[sequence_Q1, ahead_QA + 1][:, None].expand(-1, samples, -1)

    # 2. The mixed loss of each row and offset.
    base_QPAE = batch.hidden[sequence_Q1, ahead_QA][:, None].expand(-1, samples, -1, -1)
    thought_QPAE = thoughts.hidden[:, :, thought_length + 1 :]
    weight_QPA = readout.weight(base_QPAE, thought_QPAE)
    if thoughts.only is not None:
        weight_QPA = torch.where(thoughts.only[..., None], 1.0, weight_QPA)
    loss_QPA = cross_entropy(readout.unembed, mix(base_QPAE, thought_QPAE, weight_QPA), target_QPA, recompute)
    mixed_A = _by_chance(loss_QPA * real_Q1A, places).sum((0, 1)) / divisors.targets.clamp_min(1)

    # 3. The reward: the loss that a thought saves over its lookahead.
    base_loss_Q1A = batch.losses[sequence_Q1, ahead_QA][:, None]
    gain_QPA = (base_loss_Q1A - loss_QPA).detach() * real_Q1A
    saved_QPA = gain_QPA if thoughts.rival is None else (thoughts.rival - loss_QPA).detach() * real_Q1A
    reward_QP = saved_QPA.sum(-1)

    # 4. The terms over thought tokens, at the C places whose whole lookahead lies inside the text.
    policy = kl = torch.zeros((), device=batch.ids.device)
    inside_Q = places.position < rewarded_positions(length, lookahead)
    if thought_length and (config.policy_weight or config.kl_weight) and bool(inside_Q.any()):
        hidden_CPTE = thoughts.hidden[inside_Q][:, :, :thought_length]
        places_C = places[inside_Q]
        share = 1 / (divisors.policy_rows * thought_length)
        advantage_CP = advantages(reward_QP[inside_Q], config)
        if config.policy_weight and bool(advantage_CP.any()):
            surprise_CPT = _policy_surprise(readout, hidden_CPTE, thoughts.tokens[inside_Q], config, recompute)
            policy = _by_chance(advantage_CP[..., None] * surprise_CPT, places_C).sum() * share
        if config.kl_weight:
            if thoughts.base_logits is None:
                raise QuietStarError("kl_weight needs the untouched base's logits at the thought tokens")
            kl_CPT = _kl(readout, hidden_CPTE, thoughts.base_logits()[inside_Q])
            kl = _by_chance(kl_CPT, places_C).sum() * share

    nll = (1 - config.base_weight) * mixed_A.mean()
    return Block(
        total=nll + config.policy_weight * policy + config.kl_weight * kl,
        mixed=mixed_A.detach(),
        policy=policy.detach(),
        kl=kl.detach(),
        reward=reward_QP,
        gain=gain_QPA,
        mixing_weight=weight_QPA.detach(),
    )


def _by_chance(values: Tensor, places: Places) -> Tensor:
    """Values (Q, P, ...) of rows weighted by 1 / the chance of their place (inverse probability weighting)."""
    return values if places.chance is None else values * (1 / places.chance[:, None, None])


def _policy_surprise(
    readout: Readout, hidden_CPTE: Tensor, tokens_CPT: Tensor, config: ObjectiveConfig, recompute: bool
) -> Tensor:
    """- log-probability of thought tokens at the policy's temperature, (C, P, T) in nats."""

    def logits(hidden: Tensor) -> Tensor:
        return ban(readout.unembed(hidden), readout.banned) / config.policy_temperature

    return cross_entropy(logits, hidden_CPTE, tokens_CPT, recompute)


def _kl(readout: Readout, hidden_CPTE: Tensor, base_logits_CPTV: Tensor) -> Tensor:
    """KL(policy || base) of the distributions over each thought token, (C, P, T) in nats."""
    policy_CPTV = torch.log_softmax(ban(readout.unembed(hidden_CPTE), readout.banned), dim=-1)
    base_CPTV = torch.log_softmax(ban(base_logits_CPTV, readout.banned), dim=-1)
    difference_CPTV = (policy_CPTV - base_CPTV).masked_fill(policy_CPTV.isneginf(), 0.0)
    return (policy_CPTV.exp() * difference_CPTV).sum(-1)


def advantages(reward: Tensor, config: ObjectiveConfig) -> Tensor:
    """Advantages (Q, P) from rewards (Q, P): baseline, normalisation, and the paper's cut at zero; constants."""
    samples = reward.shape[1]
    if samples > 1 and config.baseline != "no_thought":
        baseline = reward.mean(1, keepdim=True)
        if config.baseline == "leave_one_out":
            baseline = (reward.sum(1, keepdim=True) - reward) / (samples - 1)
        advantage = reward - baseline
    else:
        advantage = reward
    if config.normalise and samples > 1:
        advantage = advantage / (reward.std(1, keepdim=True) + 1e-4)
    return advantage if config.keep_negative else advantage.clamp_min(0)


def objective(
    base_hidden: Tensor,
    row_hidden: Tensor,
    thoughts: Tensor,
    ids: Tensor,
    mask: Tensor,
    weight: Callable[[Tensor, Tensor], Tensor],
    unembed: Unembed,
    banned: Sequence[int] = (),
    config: ObjectiveConfig = ObjectiveConfig(),
) -> Losses:
    """The training objective of one batch with thoughts at every position.

    NLL = base_weight mean CE(base) + (1 - base_weight) / A sum_k mean loss_k, means over real targets only;
    r_i = sum_k (base loss - mixed loss) at real targets; advantage = max(0, r - mean of r over the samples of the
    position), no baseline when P = 1; policy = mean over thought tokens and rows of - advantage x log-probability.

    Args:
        base_hidden: (B, N, E) after the final norm.
        row_hidden: (B, N, P, T + 1 + A, E), as `ThinkingModel.think_ahead` returns it.
        thoughts: the thought tokens (B, N, P, T); constants.
        ids: visible tokens (B, N), real ones first; mask: True at real tokens (B, N).
        weight: the mixing head, (..., E), (..., E) -> (...).
        unembed: hidden states to logits, (..., E) -> (..., V).
        banned: token ids that are never sampled (markers), for the policy's normalisation.

    Raises:
        QuietStarError: the text is too short for the lookahead.
    """
    sequences, length, samples = row_hidden.shape[:3]
    divisors = divisors_of_all(mask, samples, config.lookahead)
    base_loss_BN = base_losses(unembed, base_hidden, ids)
    base = mean(base_loss_BN, mask[:, 1:])
    every = (torch.arange(sequences, device=ids.device), torch.arange(length - 1, device=ids.device))
    sequence, position = torch.meshgrid(*every, indexing="ij")
    whole = block(
        Batch(ids, mask, base_hidden, base_loss_BN.detach()),
        Places(sequence.reshape(-1), position.reshape(-1)),
        Thoughts(thoughts[:, :-1].flatten(0, 1), row_hidden[:, :-1].flatten(0, 1)),
        divisors,
        Readout(weight, unembed, banned),
        config,
    )
    real_BNPA = real_targets(mask, config.lookahead)[:, :-1, None].expand(-1, -1, samples, -1)
    weights_BNPA = whole.mixing_weight.view(real_BNPA.shape)
    rewarded = rewarded_positions(length, config.lookahead)
    return Losses(
        total=config.base_weight * base + whole.total,
        nll=(config.base_weight * base + (1 - config.base_weight) * whole.mixed.mean()).detach(),
        base=base.detach(),
        mixed=whole.mixed,
        policy=whole.policy,
        reward=whole.reward.view(sequences, length - 1, samples)[:, :rewarded],
        mixing_weight=(weights_BNPA * real_BNPA).sum((0, 1, 2)) / real_BNPA.sum((0, 1, 2)).clamp_min(1),
    )


def divisors_of_all(mask: Tensor, samples: int, lookahead: int) -> Divisors:
    """Divisors where the means run over all positions: every position is thought at, or a random part of them.

    Raises:
        QuietStarError: the text is too short for the lookahead.
    """
    batch, length = mask.shape
    if length < lookahead + 2:
        raise QuietStarError(f"a text needs at least lookahead + 2 = {lookahead + 2} tokens, got {length}")
    targets_A = real_targets(mask, lookahead)[:, :-1].sum((0, 1)) * samples
    return Divisors(targets_A, batch * rewarded_positions(length, lookahead) * samples)


def cross_entropy(unembed: Unembed, hidden: Tensor, targets: Tensor, recompute: bool = True) -> Tensor:
    """Cross-entropy of `targets` (...) under hidden states (..., E), (...) in fp32 and in nats.

    With `recompute` the logits are computed again in the backward pass, a chunk of rows at a time.
    """

    def part(hidden_RE: Tensor, target_R: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(unembed(hidden_RE).float(), target_R, reduction="none")

    hidden_RE, target_R = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    size = budgets.of(hidden.device).training_logit_rows
    pairs = zip(hidden_RE.split(size), target_R.split(size), strict=True)
    if recompute and torch.is_grad_enabled():
        losses = [checkpoint(part, h, t, use_reentrant=False) for h, t in pairs]
    else:
        losses = [part(h, t) for h, t in pairs]
    return torch.cat(losses).view(targets.shape)


def mean(values: Tensor, real: Tensor) -> Tensor:
    """Mean over real targets only; 0 where there is none."""
    return (values * real).sum() / real.sum().clamp_min(1)
