"""The Quiet-STaR objective: losses, rewards and the policy term from the hidden states of base and rows.

Pure functions of tensors: no model is run, nothing is sampled, read or written here. `block` gives the share that some
rows have in the objective of a batch, so that the whole can be had in parts and full-vocabulary logits of all rows are
never alive at once; `objective` is the whole batch in one call.

Paper: Zelikman et al. 2024, sections 4.2 to 4.4; constants as in its released code (docs/paper.md names each). What
goes beyond the paper is off by default: baselines, signed and normalised advantages, a penalty on leaving the base, a
donor as rival, prediction from the thought only, places thought at with a known chance.

Shapes: B sequences · N positions · Q places (a sequence and a position) · P samples · A lookahead · T thought tokens ·
E hidden size · V vocabulary. A row is one sample at one place; its tokens are start marker, T tokens, end marker and
A - 1 teacher-forced tokens.
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


@dataclass
class Shares:
    """How the rows of a batch add up to means, so that any part of them knows its share.

    Args:
        targets: (A,) how many (row, offset k) with a real target the means over offset k run over.
        policy_rows: how many rows the policy term is a mean over.
        chance: (Q,) chance with which each place was chosen to be thought at; each row counts 1 / chance times, which
            makes a mean over some places an unbiased estimate of the mean over all. None where every place counts once.
    """

    targets: Tensor
    policy_rows: int
    chance: Tensor | None = None


@dataclass
class Block:
    """The share of some places in the objective of their batch.

    Args:
        total: to be added up over the blocks of a batch; the only part with a gradient.
        mixed: (A,) share of the mean mixed loss at each offset. policy, kl: shares of these, before weights.
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
    base_hidden: Tensor,
    base_loss: Tensor,
    row_hidden: Tensor,
    thoughts: Tensor,
    place: tuple[Tensor, Tensor],
    ids: Tensor,
    mask: Tensor,
    weight: Callable[[Tensor, Tensor], Tensor],
    unembed: Unembed,
    shares: Shares,
    banned: Sequence[int] = (),
    config: ObjectiveConfig = ObjectiveConfig(),
    *,
    only: Tensor | None = None,
    rival: Tensor | None = None,
    base_logits: Callable[[], Tensor] | None = None,
    recompute: bool = True,
) -> Block:
    """The share of Q places in the objective; see `objective` for the formula.

    Args:
        base_hidden: (B, N, E) after the final norm. base_loss: (B, N - 1) losses without thoughts, constants.
        row_hidden: (Q, P, T + 1 + A, E). thoughts: (Q, P, T), constants.
        place: sequence (Q,) and position (Q,) of each place.
        ids, mask: visible tokens (B, N), real ones first, and True at real tokens.
        weight: the mixing head, (..., E), (..., E) -> (...). unembed: hidden states to logits, (..., E) -> (..., V).
        shares: how this block counts in its batch.
        banned: token ids that are never sampled (markers), for the policy's normalisation.
        only: (Q, P) True where the prediction is made from the thought alone (w = 1).
        rival: (Q, P, A) losses that a row must beat instead of the base's, e.g. those with a donor's thought.
        base_logits: gives the untouched base's logits (Q, P, T, V) at the thought tokens, for `kl_weight`.
        recompute: make logits again in the backward pass instead of keeping them; spares memory, costs time.
    """
    sequence_Q, position_Q = place
    length, lookahead, thought_length = ids.shape[1], config.lookahead, thoughts.shape[-1]
    if row_hidden.shape[2] != thought_length + 1 + lookahead:
        raise QuietStarError(
            f"row_hidden has {row_hidden.shape[2]} tokens a row, expected T + 1 + A = {thought_length + 1 + lookahead}"
        )
    samples = row_hidden.shape[1]
    offset_A = torch.arange(lookahead, device=ids.device)
    ahead_QA = (position_Q[:, None] + offset_A).clamp_max(length - 2)
    at_QA = sequence_Q[:, None], ahead_QA
    real_QA = real_targets(mask, lookahead)[sequence_Q, position_Q]
    count_Q11 = 1.0 if shares.chance is None else 1 / shares.chance[:, None, None]

    h_QPAE = base_hidden[at_QA][:, None].expand(-1, samples, -1, -1)
    g_QPAE = row_hidden[:, :, thought_length + 1 :]
    w_QPA = weight(h_QPAE, g_QPAE)
    if only is not None:
        w_QPA = torch.where(only[..., None], 1.0, w_QPA)
    target_QPA = ids[sequence_Q[:, None], ahead_QA + 1][:, None].expand(-1, samples, -1)
    loss_QPA = cross_entropy(unembed, mix(h_QPAE, g_QPAE, w_QPA), target_QPA, recompute)
    counted_QPA = loss_QPA * real_QA[:, None] * count_Q11
    mixed_A = counted_QPA.sum((0, 1)) / shares.targets.clamp_min(1)

    gain_QPA = (base_loss[at_QA][:, None] - loss_QPA).detach() * real_QA[:, None]
    won_QPA = gain_QPA if rival is None else (rival - loss_QPA).detach() * real_QA[:, None]
    reward_QP = won_QPA.sum(-1)
    rewarded_Q = position_Q < rewarded_positions(length, lookahead)

    policy = kl = torch.zeros((), device=ids.device)
    if thought_length and (config.policy_weight or config.kl_weight) and bool(rewarded_Q.any()):
        said_QPTE = row_hidden[rewarded_Q][:, :, :thought_length]
        share = 1 / (shares.policy_rows * thought_length)
        times_Q11 = count_Q11 if isinstance(count_Q11, float) else count_Q11[rewarded_Q]
        advantage_QP1 = advantages(reward_QP[rewarded_Q], config)[..., None]
        if config.policy_weight and bool(advantage_QP1.any()):

            def policy_logits(hidden: Tensor) -> Tensor:
                return ban(unembed(hidden), banned) / config.policy_temperature

            surprise_QPT = cross_entropy(policy_logits, said_QPTE, thoughts[rewarded_Q], recompute)
            policy = (advantage_QP1 * surprise_QPT * times_Q11).sum() * share
        if config.kl_weight:
            if base_logits is None:
                raise QuietStarError("kl_weight needs the untouched base's logits at the thought tokens")
            own = torch.log_softmax(ban(unembed(said_QPTE), banned), dim=-1)
            other = torch.log_softmax(ban(base_logits()[rewarded_Q], banned), dim=-1)
            kl_QPT = (own.exp() * (own - other).masked_fill(own.isneginf(), 0.0)).sum(-1)
            kl = (kl_QPT * times_Q11).sum() * share

    nll = (1 - config.base_weight) * mixed_A.mean()
    return Block(
        total=nll + config.policy_weight * policy + config.kl_weight * kl,
        mixed=mixed_A.detach(), policy=policy.detach(), kl=kl.detach(),
        reward=reward_QP, gain=gain_QPA, mixing_weight=w_QPA.detach(),
    )  # fmt: skip


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
    batch, length, samples = row_hidden.shape[:3]
    shares = shares_of_all(mask, samples, config.lookahead)
    base_loss_BN = base_losses(unembed, base_hidden, ids)
    base = mean(base_loss_BN, mask[:, 1:])
    place = torch.meshgrid(*(torch.arange(n, device=ids.device) for n in (batch, length - 1)), indexing="ij")
    whole = block(
        base_hidden, base_loss_BN.detach(), row_hidden[:, :-1].flatten(0, 1), thoughts[:, :-1].flatten(0, 1),
        (place[0].reshape(-1), place[1].reshape(-1)), ids, mask, weight, unembed, shares, banned, config,
    )  # fmt: skip
    real_BNPA = real_targets(mask, config.lookahead)[:, :-1, None].expand(-1, -1, samples, -1)
    weights_BNPA = whole.mixing_weight.view(real_BNPA.shape)
    rewarded = rewarded_positions(length, config.lookahead)
    return Losses(
        total=config.base_weight * base + whole.total,
        nll=(config.base_weight * base + (1 - config.base_weight) * whole.mixed.mean()).detach(),
        base=base.detach(), mixed=whole.mixed, policy=whole.policy,
        reward=whole.reward.view(batch, length - 1, samples)[:, :rewarded],
        mixing_weight=(weights_BNPA * real_BNPA).sum((0, 1, 2)) / real_BNPA.sum((0, 1, 2)).clamp_min(1),
    )  # fmt: skip


def shares_of_all(mask: Tensor, samples: int, lookahead: int) -> Shares:
    """Shares where every position is thought at, or some of them by chance: the means run over all positions.

    Raises:
        QuietStarError: the text is too short for the lookahead.
    """
    batch, length = mask.shape
    if length < lookahead + 2:
        raise QuietStarError(f"a text needs at least lookahead + 2 = {lookahead + 2} tokens, got {length}")
    targets_A = real_targets(mask, lookahead)[:, :-1].sum((0, 1)) * samples
    return Shares(targets_A, batch * rewarded_positions(length, lookahead) * samples)


def cross_entropy(unembed: Unembed, hidden: Tensor, targets: Tensor, recompute: bool = True) -> Tensor:
    """Cross-entropy of `targets` (...) under hidden states (..., E), (...) in fp32 and in nats.

    With `recompute` the logits are made again in the backward pass, a chunk of rows at a time.
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
