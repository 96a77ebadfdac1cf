"""Statistics over recorded thoughts: were they used, do they help, do they say something of their own, do they agree.

Each measure gives one number a thought; a statistic is their mean with a 95 % bootstrap interval. Most follow from the
record alone; those marked `model` need the weights: `quietstar.evals.thoughts.measure` makes, `Store.measure` keeps
them. The library, `quietstar stats` and the page all show what `over` returns.

Formulas use: x the token that was said after the thought, p0, pm and pt its probability without the thought, with it
(mixed) and from the thought alone; T the thought's tokens. Where a place has several samples, numbers of single samples
are averaged.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from quietstar.arguments import checked
from quietstar.errors import QuietStarError
from quietstar.evals.intervals import FEWEST, bootstrap
from quietstar.events import NoiseFloor, ThoughtEvent, Trace
from quietstar.record.store import Store

STRETCH = 16  # neighbouring thoughts that are resampled together where runs are too few
ALIKE = 0.75  # least similarity of near-duplicates; a thought moved on by one token is one where T is 4 or more
_CERTAIN = -1e-9  # log-probabilities above are taken as this, so that log-odds stay finite

Measured = Mapping[str, float]


@dataclass(frozen=True)
class Measure:
    """What is measured about a thought: a name, a label and unit to show, the formula, where it comes from.

    `model` is True where the weights are needed; `of` computes the rest from a trace and an index into its thoughts,
    None where it has no value there.
    """

    name: str
    label: str
    unit: str
    formula: str
    source: str
    of: Callable[[Trace, int], float | None] | None = None

    @property
    def model(self) -> bool:
        """Whether the weights are needed."""
        return self.of is None


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


# -- single thoughts --------------------------------------------------------------------------------------------------


@checked
def common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the longest common subsequence: tokens of both in the same order, gaps allowed."""
    row = [0] * (len(b) + 1)
    for x in a:
        diagonal = 0
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], diagonal + 1 if x == y else max(row[j], row[j - 1])
    return row[-1]


@checked
def overlap(thought: Sequence[int], text: Sequence[int]) -> float | None:
    """Share of the thought's tokens that stand in `text` in the same order (ROUGE-L recall, Lin 2004), 0 to 1."""
    return common(thought, text) / len(thought) if thought and text else None


@checked
def similarity(a: Sequence[int], b: Sequence[int]) -> float | None:
    """2 common(a, b) / (|a| + |b|), 0 to 1; 1 for equal thoughts."""
    return 2 * common(a, b) / (len(a) + len(b)) if a and b else None


@checked
def repetition(thought: Sequence[int]) -> float | None:
    """Share of tokens that stood in the thought before: 1 - distinct / length."""
    return 1 - len(set(thought)) / len(thought) if thought else None


@checked
def log_odds(logprob: float) -> float:
    """log p - log(1 - p), nats."""
    logprob = min(logprob, _CERTAIN)
    return logprob - math.log(-math.expm1(logprob))


def _samples(score: Callable[[Sequence[int]], float | None], thought: ThoughtEvent) -> float | None:
    found = [value for sample in thought.samples if (value := score(sample.ids)) is not None]
    return sum(found) / len(found) if found else None


def _above(trace: Trace, n: int) -> float | None:
    return None if trace.noise is None else float(trace.above_noise(trace.thoughts[n]))


def _helped(trace: Trace, n: int) -> float | None:
    gain = trace.thoughts[n].gain
    return None if gain is None else float(gain > 0 and trace.above_noise(trace.thoughts[n]))


def _only_gain(trace: Trace, n: int) -> float | None:
    one = trace.thoughts[n]
    return None if one.only_logprob is None or one.base_logprob is None else one.only_logprob - one.base_logprob


def _agreement(trace: Trace, n: int) -> float | None:
    one = trace.thoughts[n]
    if one.only_logprob is None or one.mixed_logprob is None:
        return None
    return log_odds(one.only_logprob) - log_odds(one.mixed_logprob)


def _continuation(trace: Trace, n: int) -> float | None:
    one = trace.thoughts[n]
    ids, at = trace.ids, one.position + 1
    return _samples(lambda thought: overlap(thought, ids[at : at + len(thought)]), one)


def _duplicate(trace: Trace, n: int) -> float | None:
    if n == 0 or trace.thoughts[n - 1].position != trace.thoughts[n].position - 1:
        return None
    before, here = trace.thoughts[n - 1].samples, trace.thoughts[n].samples
    alike = similarity(before[0].ids, here[0].ids) if before and here else None
    return None if alike is None else float(alike >= ALIKE)


_QUIET = "Zelikman et al. 2024, arXiv 2403.09629"
_LANHAM = "Lanham et al. 2023, arXiv 2307.13702"
_HERE = "quietstar"

# Which noise of a run (`NoiseFloor`) a measure has.
FLOORS = {"weight": "weight", "kl": "kl", "gain": "gain"}

MEASURES: dict[str, Measure] = {
    one.name: one
    for one in (
        Measure("weight", "mixing weight", "", "w", _QUIET, lambda t, n: t.thoughts[n].weight),
        Measure("kl", "KL", "nats", "KL(pm ‖ p0) over the next token", _HERE, lambda t, n: t.thoughts[n].kl),
        Measure("above_noise", "above the noise floor", "share", "KL > what rounding alone makes of it", _HERE, _above),
        Measure("flipped", "likeliest word changed", "share", "argmax pm ≠ argmax p0, by more than rounding", _HERE,
                lambda t, n: float(t.changed(t.thoughts[n]))),
        Measure("gain", "information gain", "nats", "log pm(x) − log p0(x)", _QUIET, lambda t, n: t.thoughts[n].gain),
        Measure("helped", "gain above zero", "share", "log pm(x) > log p0(x), KL above the noise floor", _HERE,
                _helped),
        Measure("only_gain", "gain, thought alone", "nats", "log pt(x) − log p0(x)", _HERE, _only_gain),
        Measure("surprise", "surprise", "nats", "−log pm(x)", _HERE, lambda t, n: t.thoughts[n].surprise),
        Measure("compute", "compute effect", "nats", "log p(x | filler in its place) − log p0(x)",
                "Pfau et al. 2024, arXiv 2404.15758"),
        Measure("content", "content effect", "nats", "log pm(x) − log p(x | an earlier place's thought)", _HERE),
        Measure("early_area", "early answering", "area",
                "1 − area under the share of argmax pm(T cut to j tokens) = argmax pm(T) over j / |T|; 0: no token of "
                "the thought is needed", _LANHAM),
        Measure("early_area_only", "early answering, alone", "area", "the same with pt in the place of pm", _LANHAM),
        Measure("garble", "garble", "nats/token", "−1/|T| Σ log p0(T_j | text, T_<j): unlikely as text under the base",
                _HERE),
        Measure("repetition", "repetition", "share", "1 − distinct tokens / |T|", _HERE,
                lambda t, n: _samples(repetition, t.thoughts[n])),
        Measure("continuation", "continues what is said", "share", "LCS(T, next |T| said tokens) / |T|",
                "ROUGE-L recall, Lin 2004", _continuation),
        Measure("greedy", "continues as the base", "share", "LCS(T, base's greedy next |T| tokens) / |T|",
                "ROUGE-L recall, Lin 2004"),
        Measure("duplicate", "near-duplicate", "share",
                f"2 LCS(T, T before) / (|T| + |T before|) ≥ {ALIKE}, neighbours only", _HERE, _duplicate),
        Measure("agreement", "agreement with what is said", "log-odds",
                "logit pt(x) − logit pm(x); below 0: the thought alone speaks for something else", _HERE, _agreement),
    )
}  # fmt: skip


# -- over thoughts ----------------------------------------------------------------------------------------------------


@checked
def of_trace(trace: Trace, measured: Mapping[int, Measured] | None = None) -> dict[str, list[float | None]]:
    """Every measure of every thought of a run, in the order of its thoughts; None where a measure has no value.

    Args:
        measured: what `evals.thoughts.measure` found, by position.
    """
    known = measured or {}
    return {
        name: [
            _real(one.of(trace, n) if one.of is not None else known.get(thought.position, {}).get(name))
            for n, thought in enumerate(trace.thoughts)
        ]
        for name, one in MEASURES.items()
    }


@checked
def over(runs: Iterable[tuple[Trace, Mapping[int, Measured]]]) -> list[Statistic]:
    """Statistics over the thoughts of some runs; measures without a single value are left out.

    Args:
        runs: traces, each with what was measured about its thoughts by position (`Store.measured`).
    """
    values: dict[str, list[float]] = {name: [] for name in MEASURES}
    stretches: dict[str, list[tuple[int, int]]] = {name: [] for name in MEASURES}
    noises: list[NoiseFloor | None] = []
    for number, (trace, measured) in enumerate(runs):
        if trace.thoughts:
            noises.append(trace.noise)
        for name, column in of_trace(trace, measured).items():
            for n, value in enumerate(column):
                if value is not None:
                    values[name].append(value)
                    stretches[name].append((number, n // STRETCH))
    return [_statistic(MEASURES[name], found, stretches[name], noises) for name, found in values.items() if found]


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


@checked
def area_over(same: Sequence[float]) -> float:
    """1 - area under a curve at equal steps from 0 to 1, by trapezoids."""
    if len(same) < 2:
        return 0.0
    return 1.0 - sum((a + b) / 2 for a, b in pairwise(same)) / (len(same) - 1)


@checked
def floor_of(measure: str, noises: Iterable[NoiseFloor | None]) -> float | None:
    """The largest noise floor of some runs in a measure's unit; None where it has none, or a run has none recorded."""
    every = list(noises)
    known = [one for one in every if one is not None]
    if measure not in FLOORS or not known or len(known) < len(every):
        return None
    found = [getattr(one, FLOORS[measure]) for one in known]
    return None if None in found else float(max(found))


def _statistic(
    measure: Measure, values: list[float], stretches: list[tuple[int, int]], noises: list[NoiseFloor | None]
) -> Statistic:
    runs = [run for run, _ in stretches]
    several = len(set(runs)) >= FEWEST
    groups = np.array(runs if several else [run * 2**32 + part for run, part in stretches])
    found = bootstrap(np.array(values), groups)
    return Statistic(
        name=measure.name, label=measure.label, unit=measure.unit, formula=measure.formula, source=measure.source,
        mean=found.mean, low=found.low, high=found.high, count=len(values), over="runs" if several else "stretches",
        floor=floor_of(measure.name, noises),
    )  # fmt: skip


def _real(value: float | None) -> float | None:
    """A finite number or None."""
    return value if value is not None and math.isfinite(value) else None
