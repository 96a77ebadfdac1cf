"""`quietstar stats`: statistics over the thoughts of recorded runs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from quietstar.cli import options, recording
from quietstar.cli.status import Status
from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.api import QuietStar
    from quietstar.scratchpad.statistics import Statistic
    from quietstar.scratchpad.store import Store


def stats(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Ids or their beginnings; the newest when left out.")
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="All runs with this tag instead.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="First let the model measure what the record alone cannot tell.")
    ] = False,
    each: Annotated[bool, typer.Option("--each", help="Numbers of every single thought, one a line as JSON.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the statistics as JSON.")] = False,
    model: Annotated[
        str | None, typer.Option("--model", "-m", metavar="NAME", help="With --measure; the run's own when left out.")
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    db: options.Db = None,
) -> None:
    """Tell whether thoughts were used, helped, and what they are made of, with 95 % intervals.

    Intervals resample whole runs, or stretches of 16 neighbouring thoughts where there are fewer than 5 runs. --measure
    loads the model and adds the effects of compute and content, early answering, and how likely thoughts are as text;
    the results stay in the record.
    """
    from quietstar.scratchpad import statistics

    if names and tag:
        raise QuietStarError("name runs, or choose them by --tag, not both")
    with recording.opened(db) as store:
        runs = list(dict.fromkeys(store.find(name) for name in names or ()))
        if not runs:
            runs = [run.id for run in store.runs(tag=tag, limit=None if tag else 1)]
        if not runs:
            what = f"no run has the tag {tag!r}" if tag else f"{store.path} has no runs yet"
            raise QuietStarError(f"{what}; `quietstar runs` lists them")
        if measure:
            _measure(store, runs, model, dtype, device, threads)
        if each:
            for run in runs:
                _each(store, run)
            return
        measured = {run: store.measured(run) for run in runs}
        found = statistics.over((store.trace(run), measured[run]) for run in runs)
        curves = statistics.early_answering(one for of_run in measured.values() for one in of_run.values())
        if as_json:
            report = {"runs": runs, "statistics": [one.to_dict() for one in found], "early": curves}
            print(options.to_json(report, indent=1))
            return
        _print(runs, found)
        for name, shares in curves.items():
            whose = "the thought alone" if name == "early_only" else "the thought mixed in"
            settled = ", ".join(f"{share:.0%}" for share in shares)
            print(f"next token settled after 0, 1, ... tokens of the thought, {whose}: {settled}")
        if not any(measured.values()):
            print("--measure adds compute and content effect, early answering, garble and the base's continuation")


def _measure(store: Store, runs: list[str], model: str | None, dtype: str, device: str, threads: int | None) -> None:
    """Measure run by run, each kept as soon as it is done."""
    from quietstar.evals import thoughts

    loaded: dict[str, QuietStar] = {}
    for number, run in enumerate(runs, 1):
        trace = store.trace(run)
        name = model or trace.start.model
        if name not in loaded:
            with Status() as status:
                kind = trace.start.dtype if dtype == "auto" else dtype
                loaded = {name: options.load(name, kind, device, None, threads=threads, status=status)}
        print(f"measuring {run} ({number} of {len(runs)}), {len(trace.thoughts)} thoughts", file=sys.stderr, flush=True)
        store.measure(run, thoughts.measure(loaded[name], trace))


def _each(store: Store, run: str) -> None:
    from quietstar.scratchpad import statistics

    trace = store.trace(run)
    columns = statistics.of_trace(trace, store.measured(run))
    for n, thought in enumerate(trace.thoughts):
        row = {"run": run, "position": thought.position, "thought": thought.samples[0].text if thought.samples else ""}
        print(options.to_json(row | {name: values[n] for name, values in columns.items()}))


def _print(runs: list[str], found: list[Statistic]) -> None:
    print(f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(runs[:8])}{', ...' if len(runs) > 8 else ''}")
    print(f"{'measure':<27} {'mean':>9}  {'95 % interval':<21} {'unit':<10} {'thoughts':>8}")
    for one in found:
        within = f"{one.low:+.4f} to {one.high:+.4f}" if one.low is not None else "too few to tell"
        print(f"{one.label:<27} {one.mean:>+9.4f}  {within:<21} {one.unit:<10} {one.count:>8}")
