"""What the page shows, as plain data: the same for the server and for an exported file.

A run is sent in two parts: its whole text with the numbers of every thought as columns, which is little data, and each
thought's tokens, samples and candidates when it is opened. Knows the store; knows nothing about HTTP or HTML.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quietstar._version import __version__
from quietstar.errors import QuietStarError
from quietstar.evals.measures import measures
from quietstar.evals.statistics import early_answering, over
from quietstar.record import overview
from quietstar.record.columns import noise_of, object_of
from quietstar.record.entries import Run
from quietstar.record.search import SQL_OF_MEASURE
from quietstar.record.store import Store

RUNS_AT_ONCE, THOUGHTS_AT_ONCE = 50, 100
_LINE = 240  # characters of a prompt or an answer in a list
_TOKEN_COLUMNS = ("position", "token", "text", "logprob")
_THOUGHT_COLUMNS = ("position", "text", "trigger", "control", "weight", "kl", "gain", "entropy", "flipped")


def about(store: Store, model: str | None = None) -> dict[str, Any]:
    """The record that this page shows, and the name of the model that it can ask: None where there is none."""
    return {
        "version": __version__,
        "record": str(store.path),
        "model": model,
        "facets": overview.facets(store),
        "totals": store.totals(),
    }


# -- runs -------------------------------------------------------------------------------------------------------------


def runs(
    store: Store, query: str = "", tag: str | None = None, after: str | None = None, limit: int = RUNS_AT_ONCE
) -> dict[str, Any]:
    """One page of the list of runs, newest first; `after` is the id of the last run of the previous page."""
    found = list(store.runs(query, tag=tag, after=after, limit=limit + 1))
    return {"runs": [entry(run) for run in found[:limit]], "more": len(found) > limit}


def entry(run: Run) -> dict[str, Any]:
    """A run as an entry of a list: long texts cut, and the end of the prompt where no question was recorded."""
    asked = run.asked[:_LINE] if run.asked else run.prompt[-_LINE:]
    return run.to_dict() | {"asked": asked, "text": run.text[:_LINE], "prompt": ""}


def run(store: Store, name: str) -> dict[str, Any]:
    """A run as its page opens: everything but the samples and candidates of its thoughts.

    `tokens` and `thoughts` are columns, one value a token or thought. `gain` of a thought is log p(said with it) -
    log p(said without it) in nats. `changed` are the positions that have interventions.
    """
    whole = store.run(name)
    tokens = store.rows("tokens", whole.id)
    thoughts = store.thoughts(run=whole.id, order="position", descending=False, limit=None)
    return {
        "run": whole.to_dict() | _origin(store, whole.id) | {"continued": overview.continued(store, whole.id)},
        "tokens": {name: [token[name] for token in tokens] for name in _TOKEN_COLUMNS},
        "thoughts": {name: [getattr(one, name) for one in thoughts] for name in _THOUGHT_COLUMNS},
        "changed": sorted({made.position for made in store.interventions(whole.id)}),
    }


def _origin(store: Store, run: str) -> dict[str, Any]:
    """What computed a run; `noise` is its noise floor, None where it was not measured."""
    row = store.rows("runs", run)[0]
    noise = noise_of(row)
    with store.decoding(f"run {run}"):
        versions = object_of(row["versions"])
    return {
        "device": row["device"],
        "dtype": row["dtype"],
        "version": row["version"],
        "versions": versions,
        "adapter_hash": row["adapter_hash"],
        "chat": bool(row["chat"]),
        "noise": None if noise is None else noise.to_dict(),
    }


def statistics(store: Store, name: str) -> dict[str, Any]:
    """The statistics over a run's thoughts and the curve of early answering.

    `measured` counts the thoughts that the model has measured; where there are none, `missing` are the measures that
    need the model.
    """
    measured = store.measured(name)
    found = over([(store.trace(name), measured)])
    missing = [{"label": one.label, "formula": one.formula} for one in measures().values() if one.model]
    return {
        "statistics": [one.to_dict() for one in found],
        "early": early_answering(measured.values()),
        "measured": len(measured),
        "missing": [] if measured else missing,
    }


def thought(store: Store, name: str, position: int) -> dict[str, Any]:
    """One thought with all its samples and candidates, what was measured about it, and its interventions."""
    return store.thought(name, position).to_dict() | {
        "measures": store.measured(name, position).get(position, {}),
        "tries": [made.to_dict() for made in store.interventions(name, position)],
    }


# -- thoughts over runs -----------------------------------------------------------------------------------------------


def thoughts(
    store: Store,
    chosen: Mapping[str, Any],
    order: str = "kl",
    descending: bool = True,
    offset: int = 0,
    limit: int = THOUGHTS_AT_ONCE,
) -> dict[str, Any]:
    """One page of the list of thoughts; `chosen` are the filters of `Store.thoughts`."""
    found = store.thoughts(**chosen, order=order, descending=descending, offset=offset, limit=limit + 1)
    return {"thoughts": [one.to_dict() for one in found[:limit]], "more": len(found) > limit}


def histograms(store: Store, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A histogram of each measure of the chosen thoughts."""
    return {measure: asdict(overview.histogram(store, measure, **chosen)) for measure in SQL_OF_MEASURE}


def filters(asked: Mapping[str, str]) -> dict[str, Any]:
    """Filters from an address: query, run, tag, model, trigger, control, flipped, min_kl, max_kl, ...

    `noise` is "below", "any" or, when left out, above the noise floor.
    """
    chosen: dict[str, Any] = {
        name: asked[name] for name in ("query", "run", "tag", "model", "trigger", "control") if asked.get(name)
    }
    if asked.get("flipped") in ("0", "1"):
        chosen["flipped"] = asked["flipped"] == "1"
    if asked.get("noise") != "any":
        chosen["above_noise"] = asked.get("noise") != "below"
    for word, bound in (("min_", "least"), ("max_", "most")):
        bounds = {name: _number(name, asked[word + name]) for name in SQL_OF_MEASURE if asked.get(word + name)}
        if bounds:
            chosen[bound] = bounds
    return chosen


def order(asked: Mapping[str, str]) -> tuple[str, bool]:
    """The order from an address."""
    return asked.get("order") or "kl", asked.get("way") != "up"


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise QuietStarError(f"the bound of {name} must be a number, got {text!r}") from None
