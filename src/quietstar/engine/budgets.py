"""How much is computed at once, per kind of device: the one place that says how large chunks are.

Results do not depend on it (beyond rounding), time and memory do. On a CPU chunks are small, so that what a chunk works
on stays in the cache; on a GPU they are large, so that few launches do the work. Knows counts and bytes; knows nothing
about what is computed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from quietstar.engine.rows import Prefix


@dataclass(frozen=True)
class Budget:
    """Sizes of chunks on one kind of device.

    Args:
        logit_rows: rows of full-vocabulary logits that are alive at once while thinking and predicting.
        product_rows: rows of one product with the output layer, from which logits are then made `logit_rows` at a time.
        training_logit_rows: rows of logits that are alive at once in the losses of a training step.
        weight_rows: rows of half-precision weights that are converted to fp32 at once, see `exact`.
        fewest_rows, most_rows: bounds of how many rows think together.
        state_bytes: bytes of key/value states of the rows that think together, within these bounds.
        prefix_growth: tokens by which the buffers of a prefix grow, so that a new token rarely moves them.
    """

    logit_rows: int
    product_rows: int
    training_logit_rows: int
    weight_rows: int
    fewest_rows: int
    most_rows: int
    state_bytes: float
    prefix_growth: int


# Tuned on two cores with a 135M model (docs/performance.md).
CPU = Budget(
    logit_rows=32,
    product_rows=128,
    training_logit_rows=256,
    weight_rows=512,
    fewest_rows=32,
    most_rows=256,
    state_bytes=96e6,
    prefix_growth=256,
)
# Not tuned yet: two to four times as much at once, and weights converted in few launches. With a vocabulary of 150,000
# tokens 128 rows of logits take about 0.5 GB while a prediction is made.
CUDA = Budget(
    logit_rows=128,
    product_rows=512,
    training_logit_rows=512,
    weight_rows=8192,
    fewest_rows=32,
    most_rows=512,
    state_bytes=512e6,
    prefix_growth=256,
)
_BY_KIND = {"cuda": CUDA}


def of(device: torch.device) -> Budget:
    """The budget of a device; the CPU's for kinds of devices that have none of their own."""
    return _BY_KIND.get(device.type, CPU)


def rows_at_once(prefix: Prefix, length: int, samples: int) -> int:
    """How many rows with thoughts of `length` tokens think together; a multiple of `samples`, at least one place.

    Bounded by the memory of the rows' own states, not by the text.
    """
    budget = of(prefix.device)
    bytes_per_row = prefix.bytes_per_token * (length + 2)  # the markers are tokens of a row, too
    rows = int(max(budget.fewest_rows, min(budget.most_rows, budget.state_bytes // max(1, bytes_per_row))))
    return max(1, rows // samples) * samples
