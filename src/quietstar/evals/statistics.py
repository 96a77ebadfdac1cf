"""Statistics over recorded thoughts: were they used, do they help, do they say something of their own, do they agree.

A statistic is the mean of a measure (`quietstar.evals.measures`) over thoughts with its 95 % bootstrap interval. The
library, `quietstar stats` and the page all show what `over` returns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from quietstar.arguments import checked
from quietstar.errors import QuietStarError
from quietstar.evals.intervals import FEWEST, bootstrap
from quietstar.evals.measures import Measure, measures
from quietstar.events import NoiseFloor, Trace
from quietstar.record.store import Store

STRETCH = 16  # neighbouring thoughts that are resampled together where runs are too few

Measured = Mapping[str, float]


@dataclass
class Statistic:
    """A measure over thoughts: mean over `count` of them, with its 95 % interval where there is enough to resample.

    `over` says what was resampled whole: "runs", or, where these are fewer than 5, "stretches" of 16 neighbours.
    `floor` is the largest noise floor of the runs in the measure's unit, what rounding alone makes of one thought; None
    where the measure has none, or a run was recorded without. `within` is True where the mean is no more than that.
    """

    name: str
    label: str
    unit: str
    formula: str
    source: str
    mean: float
    low: float | None
    high: float | None
    count: int
    over: str
    floor: float | None = None

    @property
    def within(self) -> bool:
        """Whether the mean is within the noise floor, and so no effect."""
        return self.floor is not None and abs(self.mean) <= self.floor

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for JSON."""
        return asdict(self) | {"within": self.within}


@checked
def of_trace(trace: Trace, measured: Mapping[int, Measured] | None = None) -> dict[str, list[float | None]]:
    """Every measure of every thought of a run, in the order of its thoughts; None where a measure has no value.

    Args:
        measured: what `evals.thoughts.measure` found, by position.
    """
    return _columns(measures(), trace, measured or {})


@checked
def over(runs: Iterable[tuple[Trace, Mapping[int, Measured]]]) -> list[Statistic]:
    """Statistics over the thoughts of some runs; measures without a single value are left out.

    Args:
        runs: traces, each with what was measured about its thoughts by position (`Store.measured`).
    """
    known = measures()
    values: dict[str, list[float]] = {name: [] for name in known}
    stretches: dict[str, list[tuple[int, int]]] = {name: [] for name in known}
    noises: list[NoiseFloor | None] = []
    for number, (trace, measured) in enumerate(runs):
        if trace.thoughts:
            noises.append(trace.noise)
        for name, column in _columns(known, trace, measured).items():
            for n, value in enumerate(column):
                if value is not None:
                    values[name].append(value)
                    stretches[name].append((number, n // STRETCH))
    return [_statistic(known[name], found, stretches[name], noises) for name, found in values.items() if found]


@checked
def of_runs(store: Store, *names: str) -> list[Statistic]:
    """Statistics over the thoughts of recorded runs.

    Raises:
        QuietStarError: no run is named, or one does not exist.
    """
    if not names:
        raise QuietStarError("name at least one run")
    return over((store.trace(name), store.measured(name)) for name in names)


@checked
def early_answering(measured: Iterable[Measured]) -> dict[str, list[float]]:
    """The curve behind the area: share of thoughts whose next token is settled after j tokens, j = 0 .. |T|.

    "early" for the mixed prediction, "early_only" for the thought alone; thoughts of the commonest length only.
    Source: Lanham et al. 2023, arXiv 2307.13702.
    """
    curves: dict[str, list[float]] = {}
    every = list(measured)
    for name in ("early", "early_only"):
        rows = [row for one in every if (row := [one[f"{name}:{j}"] for j in range(len(one)) if f"{name}:{j}" in one])]
        if rows:
            lengths = [len(row) for row in rows]
            length = max(set(lengths), key=lengths.count)
            same = np.array([row for row in rows if len(row) == length])
            curves[name] = [*same.mean(axis=0).tolist(), 1.0]
    return curves


def _columns(
    known: Mapping[str, Measure], trace: Trace, measured: Mapping[int, Measured]
) -> dict[str, list[float | None]]:
    return {
        name: [
            _real(one.of(trace, n) if one.of is not None else measured.get(thought.position, {}).get(name))
            for n, thought in enumerate(trace.thoughts)
        ]
        for name, one in known.items()
    }


def _floor(measure: Measure, noises: Iterable[NoiseFloor | None]) -> float | None:
    """The largest noise floor of some runs in a measure's unit; None where it has none, or a run has none recorded."""
    if measure.floor is None:
        return None
    found = [None if one is None else getattr(one, measure.floor) for one in noises]
    known = [floor for floor in found if floor is not None]
    return float(max(known)) if known and len(known) == len(found) else None


def _statistic(
    measure: Measure, values: list[float], stretches: list[tuple[int, int]], noises: list[NoiseFloor | None]
) -> Statistic:
    runs = [run for run, _ in stretches]
    several = len(set(runs)) >= FEWEST
    groups = np.array(runs if several else [run * 2**32 + part for run, part in stretches])
    found = bootstrap(np.array(values), groups)
    return Statistic(
        name=measure.name,
        label=measure.label,
        unit=measure.unit,
        formula=measure.formula,
        source=measure.source,
        mean=found.mean,
        low=found.low,
        high=found.high,
        count=len(values),
        over="runs" if several else "stretches",
        floor=_floor(measure, noises),
    )


def _real(value: float | None) -> float | None:
    """A finite number or None."""
    return value if value is not None and math.isfinite(value) else None
