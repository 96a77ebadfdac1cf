"""Means with 95 % percentile bootstrap intervals over whole groups: documents, runs, stretches of one text.

Values of one group are not independent, so groups are resampled whole. Knows numbers; knows nothing about what they are
of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from quietstar.arguments import any_whole, checked
from quietstar.errors import QuietStarError

RESAMPLES = 2000
FEWEST = 5  # groups; a bootstrap over fewer says nothing


@dataclass
class Interval:
    """A mean with its 95 % bootstrap interval; None where groups are too few for one."""

    mean: float
    low: float | None
    high: float | None


@checked
def bootstrap(
    values: np.ndarray, groups: np.ndarray, where: np.ndarray | None = None, seed: Annotated[int, any_whole()] = 0
) -> Interval:
    """Mean of `values` with a 95 % percentile bootstrap interval over whole groups, if there are enough."""
    if values.shape != groups.shape or values.ndim != 1 or not len(values):
        raise QuietStarError(f"values and groups must be of one length, got {values.shape} and {groups.shape}")
    from scipy import stats  # the import takes half a second, which commands without intervals need not wait for

    if where is not None:
        values, groups = values[where], groups[where]
    kinds, index = np.unique(groups, return_inverse=True)
    sums, counts = np.bincount(index, weights=values), np.bincount(index)
    mean = float(values.mean())
    if len(kinds) < FEWEST:
        return Interval(mean, None, None)
    found = stats.bootstrap(
        (sums, counts),
        lambda s, c, axis: s.sum(axis) / c.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        random_state=np.random.default_rng(seed % 2**64),
        batch=200,
    ).confidence_interval
    return Interval(mean, float(found.low), float(found.high))
