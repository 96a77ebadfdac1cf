"""Measures: one number for one thought, each with a name, a unit, a formula and a source.

Most follow from the record alone; those that need the weights are computed by `quietstar.evals.thoughts.measure` and
kept by `Store.measure`. Means and intervals over thoughts are in `quietstar.evals.statistics`.

Formulas use: x the token that was said after the thought, p0, pm and pt its probability without the thought, with it
(mixed) and from the thought alone; T the thought's tokens. Where a place has several samples, numbers of single samples
are averaged.

A package adds a measure of its own through the entry point group `quietstar.measures`: the object is a `Measure` whose
`of` computes it from the record. `quietstar stats` and the page then show it beside the others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from itertools import pairwise

from quietstar.arguments import checked
from quietstar.errors import QuietStarError
from quietstar.events import ThoughtEvent, Trace

GROUP = "quietstar.measures"
ALIKE = 0.75  # least similarity of near-duplicates; a thought moved on by one token is one where T is 4 or more
_CERTAIN = -1e-9  # log-probabilities above are taken as this, so that log-odds stay finite


@dataclass(frozen=True)
class Measure:
    """What is measured about a thought.

    Args:
        name: identifies the measure in the record and in JSON.
        label, unit: as shown, for example "KL" and "nats"; "share" for values from 0 to 1.
        formula: the definition, as shown.
        source: the paper it is from.
        of: computes it from a trace and an index into its thoughts, None where it has no value there; None for the
            measures that need the weights.
        floor: the field of `NoiseFloor` with what rounding alone makes of it; None where there is none.
    """

    name: str
    label: str
    unit: str
    formula: str
    source: str
    of: Callable[[Trace, int], float | None] | None = None
    floor: str | None = None

    @property
    def model(self) -> bool:
        """Whether the weights are needed."""
        return self.of is None


# -- the registry -----------------------------------------------------------------------------------------------------


@checked
def measures() -> dict[str, Measure]:
    """All measures by name: those of quietstar, then those of other packages in the order of their names.

    Raises:
        QuietStarError: a package's measure cannot be loaded, is no `Measure`, has no `of`, or has the name of another.
    """
    found = dict(_OWN)
    for entry in sorted(entry_points(group=GROUP), key=lambda entry: entry.name):
        try:
            measure = entry.load()
        except Exception as error:
            raise QuietStarError(f"measure {entry.name!r} ({entry.value}) could not be loaded: {error}") from error
        if not isinstance(measure, Measure) or measure.of is None:
            raise QuietStarError(f"measure {entry.name!r} ({entry.value}) must be a Measure with a function `of`")
        if measure.name in found:
            raise QuietStarError(f"there are two measures named {measure.name!r}; rename the one in {entry.value}")
        found[measure.name] = measure
    return found


# -- numbers of one thought -------------------------------------------------------------------------------------------


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


@checked
def area_over(same: Sequence[float]) -> float:
    """1 - area under a curve at equal steps from 0 to 1, by trapezoids."""
    if len(same) < 2:
        return 0.0
    return 1.0 - sum((a + b) / 2 for a, b in pairwise(same)) / (len(same) - 1)


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


# -- quietstar's own --------------------------------------------------------------------------------------------------

_QUIET = "Zelikman et al. 2024, arXiv 2403.09629"
_LANHAM = "Lanham et al. 2023, arXiv 2307.13702"
_ROUGE = "ROUGE-L recall, Lin 2004"
_HERE = "quietstar"

_MEASURES = (
    Measure("weight", "mixing weight", "", "w", _QUIET, lambda t, n: t.thoughts[n].weight, floor="weight"),
    Measure("kl", "KL", "nats", "KL(pm ‖ p0) over the next token", _HERE, lambda t, n: t.thoughts[n].kl, floor="kl"),
    Measure("above_noise", "above the noise floor", "share", "KL > what rounding alone makes of it", _HERE, _above),
    Measure(
        "flipped",
        "likeliest word changed",
        "share",
        "argmax pm ≠ argmax p0, by more than rounding",
        _HERE,
        lambda t, n: float(t.changed(t.thoughts[n])),
    ),
    Measure(
        "gain",
        "information gain",
        "nats",
        "log pm(x) − log p0(x)",
        _QUIET,
        lambda t, n: t.thoughts[n].gain,
        floor="gain",
    ),
    Measure("helped", "gain above zero", "share", "log pm(x) > log p0(x), KL above the noise floor", _HERE, _helped),
    Measure("only_gain", "gain, thought alone", "nats", "log pt(x) − log p0(x)", _HERE, _only_gain),
    Measure("surprise", "surprise", "nats", "−log pm(x)", _HERE, lambda t, n: t.thoughts[n].surprise),
    Measure(
        "compute",
        "compute effect",
        "nats",
        "log p(x | filler) − log p0(x)",
        "Pfau et al. 2024, arXiv 2404.15758",
    ),
    Measure("content", "content effect", "nats", "log pm(x) − log p(x | an earlier place's thought)", _HERE),
    Measure(
        "early_area",
        "early answering",
        "area",
        "1 − area under the share of argmax pm(T cut to j tokens) = argmax pm(T) over j / |T|; 0: no token of "
        "the thought is needed",
        _LANHAM,
    ),
    Measure("early_area_only", "early answering, alone", "area", "the same with pt instead of pm", _LANHAM),
    Measure(
        "garble", "garble", "nats/token", "−1/|T| Σ log p0(T_j | text, T_<j): unlikely as text under the base", _HERE
    ),
    Measure(
        "repetition",
        "repetition",
        "share",
        "1 − distinct tokens / |T|",
        _HERE,
        lambda t, n: _samples(repetition, t.thoughts[n]),
    ),
    Measure(
        "continuation", "continues what is said", "share", "LCS(T, next |T| said tokens) / |T|", _ROUGE, _continuation
    ),
    Measure("greedy", "continues as the base", "share", "LCS(T, base's greedy next |T| tokens) / |T|", _ROUGE),
    Measure(
        "duplicate",
        "near-duplicate",
        "share",
        f"2 LCS(T, T before) / (|T| + |T before|) ≥ {ALIKE}, neighbours only",
        _HERE,
        _duplicate,
    ),
    Measure(
        "agreement",
        "agreement with what is said",
        "log-odds",
        "logit pt(x) − logit pm(x); below 0: the thought alone speaks for something else",
        _HERE,
        _agreement,
    ),
)
_OWN = {one.name: one for one in _MEASURES}
