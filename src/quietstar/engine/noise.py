"""The noise floor: how much predictions change when the same places are computed again in another batch shape.

In another shape sums are added in another order, and in bf16 each result is rounded; a deep model amplifies this to
visible differences. A change by a thought that is smaller cannot be distinguished from no change. Given thoughts are
used, so that it costs four passes over few rows and no sampling, and is the same however the same text is run.
Knows the model; knows nothing about the order of events, or how they are displayed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from quietstar.engine.model import ThinkingModel
from quietstar.engine.rows import Prefix, Rows
from quietstar.engine.sampling import kl_divergence, top
from quietstar.events import NoiseFloor

PLACES = 8  # most places read twice
_TEXT = 4  # tokens of the text that are read again before a place
_TOP = 5  # likeliest tokens whose log-probabilities count


def spread(lengths: list[int]) -> tuple[list[int], list[int]]:
    """At most `PLACES` places, sequence and position of each, evenly over texts of so many tokens, their last ones too.

    Where a text is long enough, there are `_TEXT` tokens after its first token up to each place.
    """
    sequence: list[int] = []
    position: list[int] = []
    for b, length in enumerate(lengths[:PLACES]):
        first, last = min(_TEXT, length - 1), length - 1
        count = min(max(1, PLACES // len(lengths)), last - first + 1)
        found = {last - (last - first) * n // max(1, count - 1) for n in range(count)} if length else set()
        position += sorted(found)
        sequence += [b] * len(found)
    return sequence, position


@torch.no_grad()
def measure(
    model: ThinkingModel,
    prefix: Prefix,
    places: tuple[list[int], list[int]],
    ids: Tensor,
    hidden: Tensor,
    length: int,
    weight: float | None = None,
) -> NoiseFloor:
    """Compute places twice, with the tokens before each as its thought; the largest differences.

    Args:
        prefix: the visible text, read. places: which, as `spread` gives them.
        ids: (B, N) its tokens. hidden: (B, N, E) their hidden states as they were read.
        length: T, tokens of a thought. weight: w in place of the mixing head's.
    """
    sequence_Q, position_Q = (torch.tensor(column, device=ids.device) for column in places)
    base_QE = hidden[sequence_Q, position_Q]
    count = len(sequence_Q)
    before_QT = position_Q[:, None] + torch.arange(1 - length, 1, device=ids.device)
    tokens_QT = ids[sequence_Q[:, None], before_QT.clamp_min(0)]
    thought_QE = Rows(prefix, sequence_Q, position_Q + 1).extend(model.wrapped(tokens_QT))[:, -1]
    again_QE, thought_again_QE = _again(model, prefix, sequence_Q, position_Q, ids, tokens_QT)
    states = [base_QE, thought_QE, again_QE, thought_again_QE]
    products = model.products(torch.cat(states), position_Q.repeat(4)).split(count)
    readings = []
    for n in (0, 2):
        w_Q, mixed_QV, only_QV = model.predict(states[n], states[n + 1], weight, products[n], products[n + 1])
        readings.append((w_Q, model.logprobs(products[n]), mixed_QV, only_QV))
    one, other = readings
    changes = []
    for before, after in zip(one[1:], other[1:], strict=True):
        values, index = top(before, _TOP)
        seen = values > -torch.inf
        changes.append((values - after.gather(-1, index))[seen].abs())
    likely = torch.cat([top(predictions, _TOP)[1] for predictions in one[1:3]], dim=-1)  # without and with the thought
    gains = [(mixed - base).gather(-1, likely) for _, base, mixed, _ in readings]
    changed = (gains[0] - gains[1]).abs()
    return NoiseFloor(
        places=count,
        kl=float((kl_divergence(one[2], one[1]) - kl_divergence(other[2], other[1])).abs().max()),
        logprob=float(torch.cat(changes).max()),
        weight=float((one[0] - other[0]).abs().max()),
        gain=float(changed[changed.isfinite()].max()),
    )


def _again(
    model: ThinkingModel, prefix: Prefix, sequence: Tensor, position: Tensor, ids: Tensor, tokens: Tensor
) -> tuple[Tensor, Tensor]:
    """Hidden states (Q, E) at the places and at the end of their thoughts, read in other pieces.

    The last tokens of the text are run again for each place over the states of those before them, and then the thought
    in two passes.
    """
    seen = min(_TEXT, int(position.min()) + 1)
    rows = Rows(prefix, sequence, position + 1 - seen, capacity=seen + tokens.shape[1] + 2)
    text_QS = position[:, None] + torch.arange(1 - seen, 1, device=ids.device)
    base_QE = rows.extend(model.embed(ids[sequence[:, None], text_QS]))[:, -1]
    wrapped_QLE = model.wrapped(tokens)
    rows.extend(wrapped_QLE[:, :1])
    return base_QE, rows.extend(wrapped_QLE[:, 1:])[:, -1]
