"""Choosing tokens: randomness keyed by place, temperature, nucleus, and the ban on markers.

Every random number is a pure function of (seed, what for, sequence, position, sample, token), so a thought is the same
whether its position is thought about alone, among all positions of a text, or in another chunking or order.
Knows logits; knows nothing about models, attention or text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

_COLDEST = 1e-30  # fp32 would take much smaller temperatures for 0
THOUGHT, TOKEN, TRIGGER, CONTROL = range(4)  # what a random number is for; keeps the streams apart


def uniforms(seed: int, purpose: int, *keys: ArrayLike) -> np.ndarray:
    """Uniform numbers in [0, 1) as float64, one for each element of the broadcast integer `keys`.

    A chain of splitmix64 steps (Steele, Lea, Flood 2014) over the seed, the purpose and the keys.
    """
    with np.errstate(over="ignore"):
        state = _splitmix(np.asarray(seed % 2**64, dtype=np.uint64))
        for key in (purpose, *keys):
            state = _splitmix(
                state ^ (np.asarray(key).astype(np.int64).astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15))
            )
    return (state >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _splitmix(x: np.ndarray) -> np.ndarray:
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def ban(logits: Tensor, banned: Sequence[int]) -> Tensor:
    """Logits in fp32 with the banned token ids at minus infinity; (..., V)."""
    logits = logits.float()
    if banned:
        logits = logits.index_fill(-1, torch.tensor(list(banned), device=logits.device), -torch.inf)
    return logits


def best(values: Tensor) -> Tensor:
    """The index of the largest value over the last axis, (..., V) -> (...); the lowest among equal ones.

    The one place that decides between equals, so that a tie has the same winner wherever it is looked at.
    """
    return values.max(-1).indices  # torch promises the first of several; three times as fast as its argmax


def top(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The `count` largest values over the last axis, largest first and the lowest index among equal ones.

    Args:
        values: (n, V). count: at least 1; all V where it is more.

    Returns:
        values (n, count), indices (n, count).
    """
    count = min(count, values.shape[-1])
    least = values.topk(count).values[:, -1:]
    indices = []
    for row, border in zip(values, least, strict=True):  # topk takes any of those that are equal at its border
        candidates = (row >= border).nonzero()[:, 0]
        order = row[candidates].sort(descending=True, stable=True).indices
        indices.append(candidates[order[:count]])
    index = torch.stack(indices) if indices else values.new_zeros(0, count, dtype=torch.long)
    return values.gather(-1, index), index


def flipped(base: Tensor, mixed: Tensor, floor: float = 0.0) -> Tensor:
    """Whether another token is the likeliest, from log-probabilities (..., V) each; (...) of booleans.

    Both predictions must prefer theirs to the other's by more than `floor` nats, what rounding alone may change: a tie,
    exact or within rounding, is no flip.
    """
    was, is_now = best(base)[..., None], best(mixed)[..., None]
    lost = base.gather(-1, was) - base.gather(-1, is_now)
    won = mixed.gather(-1, is_now) - mixed.gather(-1, was)
    return ((lost > floor) & (won > floor))[..., 0]


def pick(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Inverse-CDF draw: the token where the running sum of `probabilities` (R, V) passes `uniform` (R,); returns (R,).

    Two levels (sums of blocks, then within one block), so the vocabulary is read once instead of summed up in order.
    """
    rows, vocabulary = probabilities.shape
    block = 128
    if vocabulary % block:
        probabilities = torch.nn.functional.pad(probabilities, (0, block - vocabulary % block))
    blocks_RCb = probabilities.view(rows, -1, block)
    upto_RC = blocks_RCb.sum(-1).cpu().double().cumsum(-1)  # on the CPU: not every device has doubles
    target_R1 = (uniform.to(upto_RC) * upto_RC[:, -1])[:, None]
    index_R1 = torch.searchsorted(upto_RC, target_R1, right=True).clamp_max(upto_RC.shape[1] - 1)
    before_R1 = torch.where(index_R1 > 0, upto_RC.gather(1, (index_R1 - 1).clamp_min(0)), 0.0)
    at_R = index_R1[:, 0].to(probabilities.device)
    inside_Rb = blocks_RCb[torch.arange(rows, device=probabilities.device), at_R].cpu().double()
    running_Rb = inside_Rb.cumsum(-1) + before_R1
    offset_R1 = torch.searchsorted(running_Rb, target_R1, right=True)
    # rounding may leave the target a hair past the end: take the last token of the block that has any probability
    last_R1 = (block - 1 - best((inside_Rb > 0).flip(-1).int()))[:, None]
    return (index_R1 * block + torch.minimum(offset_R1, last_R1))[:, 0].to(probabilities.device)


def clocks(seed: int, purpose: int, *keys: ArrayLike, vocabulary: int) -> np.ndarray:
    """Exponential waiting times, one for each token of the vocabulary at each place, (R, V) float32; see `race`.

    `keys` as for `uniforms`, (R,) each; the token id is the last key.
    """
    columns = [np.asarray(key)[..., None] for key in keys]
    uniform_RV = uniforms(seed, purpose, *columns, np.arange(vocabulary))
    return np.maximum(-np.log1p(-uniform_RV), np.finfo(np.float32).tiny).astype(np.float32)


def race(probabilities: Tensor, clocks: Tensor) -> Tensor:
    """Draw the token whose clock, run at the speed of its probability, rings first; (R, V), (R, V) -> (R,).

    An exponential race, which is the Gumbel-max trick without the logarithm: each token wins with its probability. Two
    distributions p and q raced with the same clocks draw the same token with probability sum over k of
    1 / sum over j of max(p_j / p_k, q_j / q_k), at least (1 - TV) / (1 + TV) in their total variation TV (Daliri,
    Musco, Suresh 2025), where no coupling can do better than 1 - TV. Speculation relies on it.
    Of clocks that ring at the same time the lowest token wins. The times are doubles, on the CPU.
    """
    return best(-(clocks.cpu().double() / probabilities.cpu().double())).to(probabilities.device)


def distribution(logits: Tensor, temperature: float, top_p: float = 1.0) -> Tensor:
    """The probabilities (R, V) that a draw at `temperature` > 0 with nucleus `top_p` follows; logits in fp32."""
    if temperature != 1.0:  # the best logit becomes 0 first, so that a tiny temperature cannot overflow
        logits = (logits - logits.amax(-1, keepdim=True)) / max(temperature, _COLDEST)
    return nucleus(torch.softmax(logits, dim=-1), top_p)


def nucleus(probabilities: Tensor, top_p: float) -> Tensor:
    """Keep the smallest set of likeliest tokens whose mass reaches `top_p`, renormalised; (R, V)."""
    if top_p >= 1.0:
        return probabilities
    ordered, order = probabilities.sort(dim=-1, descending=True, stable=True)  # at the border the lowest ids stay
    keep = ordered.cumsum(-1) - ordered < top_p
    keep[..., 0] = True
    kept = torch.zeros_like(probabilities).scatter(-1, order, ordered * keep)
    return kept / kept.sum(-1, keepdim=True)


def choose(logits: Tensor, uniform: Tensor | None, temperature: float, top_p: float = 1.0) -> tuple[Tensor, Tensor]:
    """Choose one token a row; returns it with its log-probability at temperature 1.

    Args:
        logits: (R, V) in fp32, banned ids at minus infinity.
        uniform: (R,) numbers in [0, 1); not read when `temperature` is 0 (greedy).

    Returns:
        token ids (R,), their log-probabilities in nats (R,).
    """
    if temperature == 0.0:
        token_R = best(logits)
        return token_R, logits.gather(-1, token_R[:, None])[:, 0] - logits.logsumexp(-1)
    assert uniform is not None
    probabilities = distribution(logits, temperature, top_p)
    token_R = pick(probabilities, uniform)
    if temperature == 1.0 and top_p >= 1.0:
        return token_R, probabilities.gather(-1, token_R[:, None])[:, 0].log()
    return token_R, logits.gather(-1, token_R[:, None])[:, 0] - logits.logsumexp(-1)


def average(logprobs: Tensor) -> Tensor:
    """Log of the mean probability over the samples, (..., P, V) -> (..., V)."""
    samples = logprobs.shape[-2]
    return logprobs[..., 0, :] if samples == 1 else logprobs.logsumexp(-2) - math.log(samples)


def entropy(logprobs: Tensor) -> Tensor:
    """Entropy in nats over the last axis; tokens of probability 0 add nothing."""
    return -(logprobs.exp() * logprobs.masked_fill(logprobs.isneginf(), 0.0)).sum(-1)


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """KL(p || q) in nats from log-probabilities over the last axis; tokens of probability 0 under p add nothing."""
    return (p.exp() * (p - q).masked_fill(p.isneginf(), 0.0)).sum(-1).clamp_min(0)
