"""Over many runs at once: histograms of measures, which models and triggers occur, and which run continues which.

Reads through a `Store`; every number is counted by SQLite.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from quietstar.arguments import between, checked
from quietstar.errors import QuietStarError
from quietstar.record import search
from quietstar.record.search import SQL_OF_MEASURE
from quietstar.record.store import Store

_MOST = 200  # values of a facet


@dataclass
class Histogram:
    """Counts of equal bins from `low` to `high`; `count` thoughts in all, `undefined` of them without a number."""

    low: float
    high: float
    counts: list[int]
    count: int
    undefined: int


@checked
def histogram(store: Store, measure: str, bins: Annotated[int, between(1, 10_000)] = 40, **chosen: Any) -> Histogram:
    """A histogram of a measure over thoughts; `chosen` are the filters of `Store.thoughts`.

    Raises:
        QuietStarError: an unknown measure or filter value, bins not from 1 to 10,000.
    """
    if measure not in SQL_OF_MEASURE:
        raise QuietStarError(f"measure must be one of {', '.join(SQL_OF_MEASURE)}; got {measure!r}")
    where, values = search.of_thoughts(store, **chosen)
    source = f"FROM thoughts t CROSS JOIN runs r ON r.id = t.run {where}"
    value = SQL_OF_MEASURE[measure]
    finite = f"CASE WHEN {value} BETWEEN -1e300 AND 1e300 THEN {value} END"
    low, high, count, known = store.select(
        f"SELECT min({finite}), max({finite}), count(*), count({finite}) {source}", values
    )[0]
    counts = [0] * bins
    if known:
        width = (high - low) / bins or 1.0
        for place, many in store.select(
            f"SELECT min({bins - 1}, CAST(({finite} - ?) / ? AS INTEGER)), count(*) {source} GROUP BY 1",
            [low, width, *values],
        ):
            if place is not None:
                counts[place] = many
    return Histogram(low or 0.0, high or 0.0, counts, count, count - known)


@checked
def facets(store: Store) -> dict[str, list[str]]:
    """What thoughts and runs can be filtered by: the models, triggers, controls and tags that occur."""
    asked = {
        "model": "SELECT DISTINCT model FROM runs",
        "tag": "SELECT DISTINCT tag FROM tags",
        "trigger": "SELECT DISTINCT trigger FROM thoughts",
        "control": "SELECT DISTINCT control FROM thoughts",
    }
    return {
        name: [row[0] for row in store.select(f"{query} ORDER BY 1 LIMIT {_MOST}")] for name, query in asked.items()
    }


@checked
def continued(store: Store, run: str) -> list[str]:
    """The runs that continue this one."""
    return [row["id"] for row in store.select("SELECT id FROM runs WHERE continues = ? ORDER BY number", [run])]
