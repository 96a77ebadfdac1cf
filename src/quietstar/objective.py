"""The Quiet-STaR objective: losses, rewards and the policy term from the hidden states of base and rows.

Pure functions of tensors: no model is run, nothing is sampled, read or written here. Full-vocabulary logits are made
in chunks of rows and made again in the backward pass, so they are never all alive.

Paper: Zelikman et al. 2024, sections 4.2 to 4.4; constants as in its released code (docs/paper.md names each).

Shapes: B sequences · N positions · P samples · A lookahead · T thought tokens · E hidden size · V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from quietstar.errors import QuietStarError
from quietstar.mixing import mix
from quietstar.sampling import ban

_CHUNK = 256  # rows whose logits are alive at once


@dataclass(frozen=True)
class ObjectiveConfig:
    """Constants of the objective; the defaults are the paper's.

    Args:
        lookahead: A, true tokens predicted after each thought.
        base_weight: share of the base loss in the NLL; the mixed loss has the rest.
        policy_weight: factor of the policy term.
        policy_temperature: temperature of the log-probabilities in the policy term.
    """

    lookahead: int = 4
    base_weight: float = 0.5
    policy_weight: float = 1e6
    policy_temperature: float = 3.0

    def __post_init__(self) -> None:
        if self.lookahead < 1:
            raise QuietStarError(f"lookahead must be at least 1, got {self.lookahead}")
        if self.policy_temperature <= 0:
            raise QuietStarError(f"policy_temperature must be above 0, got {self.policy_temperature}")


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


def objective(
    base_hidden: Tensor,
    row_hidden: Tensor,
    thoughts: Tensor,
    ids: Tensor,
    mask: Tensor,
    weight: Callable[[Tensor, Tensor], Tensor],
    unembed: Callable[[Tensor], Tensor],
    banned: Sequence[int] = (),
    config: ObjectiveConfig = ObjectiveConfig(),
) -> Losses:
    """The training objective of one batch.

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
    batch, length, samples, own, _ = row_hidden.shape
    thought_length, lookahead = thoughts.shape[-1], config.lookahead
    if own != thought_length + 1 + lookahead:
        raise QuietStarError(
            f"row_hidden has {own} tokens a row, expected T + 1 + A = {thought_length + 1 + lookahead}"
        )
    if length < lookahead + 2:
        raise QuietStarError(f"a text needs at least lookahead + 2 = {lookahead + 2} tokens, got {length}")
    real = mask.bool()
    end = thought_length + 1  # index of the end marker in a row

    base_loss_BN = _loss(unembed, base_hidden[:, :-1], ids[:, 1:])
    base = _mean(base_loss_BN, real[:, 1:])

    rewarded = length - 1 - lookahead  # positions with all A targets inside the text: i = 0 .. n - 2 - A
    reward = torch.zeros(batch, rewarded, samples, device=ids.device)
    mixed, weights = [], []
    for k in range(lookahead):
        last = length - 1 - k
        h_BMPE = base_hidden[:, k : k + last, None].expand(-1, -1, samples, -1)
        g_BMPE = row_hidden[:, :last, :, end + k]
        w_BMP = weight(h_BMPE, g_BMPE)
        target_BMP = ids[:, k + 1 :, None].expand(-1, -1, samples)
        real_BMP = real[:, k + 1 :, None].expand(-1, -1, samples)
        loss_BMP = _loss(unembed, mix(h_BMPE, g_BMPE, w_BMP), target_BMP)
        mixed.append(_mean(loss_BMP, real_BMP))
        weights.append(_mean(w_BMP.detach(), real_BMP))
        gain_BMP = (base_loss_BN[:, k : k + last, None] - loss_BMP).detach() * real_BMP
        reward = reward + gain_BMP[:, :rewarded]

    advantage = reward - reward.mean(dim=2, keepdim=True) if samples > 1 else reward
    advantage = advantage.clamp_min(0)
    policy = torch.zeros((), device=ids.device)
    if thought_length and bool(advantage.any()):
        logprob_BMPT = -_loss(
            lambda hidden: ban(unembed(hidden), banned) / config.policy_temperature,
            row_hidden[:, :rewarded, :, :thought_length],
            thoughts[:, :rewarded],
        )
        policy = -(advantage[..., None] * logprob_BMPT).mean()

    mixed_A = torch.stack(mixed)
    nll = config.base_weight * base + (1 - config.base_weight) * mixed_A.mean()
    return Losses(
        total=nll + config.policy_weight * policy,
        nll=nll.detach(), base=base.detach(), mixed=mixed_A.detach(), policy=policy.detach(),
        reward=reward, mixing_weight=torch.stack(weights),
    )  # fmt: skip


def _loss(unembed: Callable[[Tensor], Tensor], hidden: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of `targets` (...) under hidden states (..., E), (...) in fp32 and in nats."""

    def part(hidden_RE: Tensor, target_R: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(unembed(hidden_RE).float(), target_R, reduction="none")

    hidden_RE, target_R = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    losses = [
        checkpoint(part, h, t, use_reentrant=False)
        for h, t in zip(hidden_RE.split(_CHUNK), target_R.split(_CHUNK), strict=True)
    ]
    return torch.cat(losses).view(targets.shape)


def _mean(values: Tensor, real: Tensor) -> Tensor:
    """Mean over real targets only; 0 where there is none."""
    return (values * real).sum() / real.sum().clamp_min(1)
