"""What the page shows, as plain data: the same for the server and for an exported file.

A run comes in two helpings: its whole text with the numbers of every thought as columns, which is little, and each
thought's tokens, samples and candidates when it is looked at. Knows the store; knows nothing about HTTP or HTML.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from quietstar._version import __version__
from quietstar.errors import QuietStarError
from quietstar.evals.statistics import MEASURES, early_answering, over
from quietstar.record import overview
from quietstar.record.columns import noise_of
from quietstar.record.entries import Run
from quietstar.record.search import SQL_OF_MEASURE
from quietstar.record.store import Store

RUNS_AT_ONCE, THOUGHTS_AT_ONCE = 50, 100
_LINE = 240  # characters of a prompt or an answer in a list


def about(store: Store, model: str | None = None) -> dict[str, Any]:
    """What this page is over, and whether it can ask: `model` is None where nothing can be computed."""
    return {"version": __version__, "record": str(store.path), "model": model, "facets": overview.facets(store),
            "totals": store.totals()}  # fmt: skip


# -- runs -------------------------------------------------------------------------------------------------------------


def runs(
    store: Store, query: str = "", tag: str | None = None, after: str | None = None, limit: int = RUNS_AT_ONCE
) -> dict[str, Any]:
    """One page of the list of runs, newest first; `after` is the id of the last run of the page before."""
    found = list(store.runs(query, tag=tag, after=after, limit=limit + 1))
    return {"runs": [entry(run) for run in found[:limit]], "more": len(found) > limit}


def entry(run: Run) -> dict[str, Any]:
    """A run as a line of a list: long texts cut."""
    return run.to_dict() | {
        "asked": (run.asked or run.prompt)[-_LINE:] if not run.asked else run.asked[:_LINE],
        "text": run.text[:_LINE], "prompt": "",
    }  # fmt: skip


def run(store: Store, name: str) -> dict[str, Any]:
    """A run as its page opens: everything but the insides of its thoughts.

    `tokens` and `thoughts` are columns, one value a token or thought. `gain` of a thought is log p(said with it) -
    log p(said without it) in nats. `noise` of the run is its noise floor, None where it was not measured.
    """
    whole = store.run(name)
    row = store.rows("runs", whole.id)[0]
    noise = noise_of(row)
    tokens = store.rows("tokens", whole.id)
    thoughts = store.thoughts(run=whole.id, order="position", descending=False, limit=None)
    changed = sorted({made.position for made in store.interventions(whole.id)})
    return {
        "run": whole.to_dict() | {
            "device": row["device"], "dtype": row["dtype"], "version": row["version"], "chat": bool(row["chat"]),
            "versions": json.loads(row["versions"]), "adapter_hash": row["adapter_hash"],
            "noise": None if noise is None else noise.to_dict(), "continued": overview.continued(store, whole.id),
        },
        "tokens": {name: [token[name] for token in tokens] for name in ("position", "token", "text", "logprob")},
        "thoughts": {
            name: [getattr(one, name) for one in thoughts]
            for name in ("position", "text", "trigger", "control", "weight", "kl", "gain", "entropy", "flipped")
        },
        "changed": changed,
    }  # fmt: skip


def statistics(store: Store, name: str) -> dict[str, Any]:
    """The statistics over a run's thoughts, the curve of early answering, and whether the model has measured them."""
    measured = store.measured(name)
    found = over([(store.trace(name), measured)])
    return {
        "statistics": [one.to_dict() for one in found], "early": early_answering(measured.values()),
        "measured": len(measured), "missing": [] if measured else [
            {"label": one.label, "formula": one.formula} for one in MEASURES.values() if one.model
        ],
    }  # fmt: skip


def thought(store: Store, name: str, position: int) -> dict[str, Any]:
    """One thought with all its samples and candidates, what was measured about it and what was tried in its place."""
    return store.thought(name, position).to_dict() | {
        "measures": store.measured(name, position).get(position, {}),
        "tries": [made.to_dict() for made in store.interventions(name, position)],
    }


# -- thoughts over runs -----------------------------------------------------------------------------------------------


def thoughts(
    store: Store, chosen: Mapping[str, Any], order: str = "kl", descending: bool = True, offset: int = 0,
    limit: int = THOUGHTS_AT_ONCE,
) -> dict[str, Any]:  # fmt: skip
    """One page of the list of thoughts; `chosen` are the filters of `Store.thoughts`."""
    found = store.thoughts(**chosen, order=order, descending=descending, offset=offset, limit=limit + 1)
    return {"thoughts": [one.to_dict() for one in found[:limit]], "more": len(found) > limit}


def histograms(store: Store, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """How each measure of the chosen thoughts is spread."""
    return {measure: asdict(overview.histogram(store, measure, **chosen)) for measure in SQL_OF_MEASURE}


def filters(asked: Mapping[str, str]) -> dict[str, Any]:
    """Filters as they stand in an address: query, run, tag, model, trigger, control, flipped, min_kl, max_kl, ...

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
    """The order as it stands in an address."""
    return asked.get("order") or "kl", asked.get("way") != "up"


def _number(name: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise QuietStarError(f"the bound of {name} must be a number, got {text!r}") from None
