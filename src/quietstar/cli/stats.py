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
    from quietstar.evals.statistics import Statistic
    from quietstar.events import Start, Trace
    from quietstar.record.store import Store


def stats(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN...", help="Ids or their beginnings; the newest when left out.")
    ] = None,
    tag: Annotated[str | None, typer.Option(metavar="TAG", help="All runs with this tag.")] = None,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="First load the model and compute the measures that are not in the record."),
    ] = False,
    each: Annotated[bool, typer.Option("--each", help="Print the numbers of every thought as JSON Lines.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the statistics as JSON.")] = False,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="NAME", help="The model for --measure; the run's own when left out."),
    ] = None,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
    db: options.Db = None,
) -> None:
    """Report whether thoughts were used, whether they helped and what they consist of, with 95 % intervals.

    Intervals resample whole runs, or stretches of 16 neighbouring thoughts where there are fewer than 5 runs. --measure
    loads the model and adds the effects of compute and content, early answering, and how likely thoughts are as text;
    the results stay in the record.
    """
    from quietstar.evals import statistics
    from quietstar.record import computed

    if names and tag:
        raise QuietStarError("pass run names or --tag, not both")
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
        starts: dict[str, Start] = {}
        found = statistics.over((_kept(store, run, starts), measured[run]) for run in runs)
        curves = statistics.early_answering(one for of_run in measured.values() for one in of_run.values())
        if as_json:
            made = {run: computed.by(start) for run, start in starts.items()}
            told = {"runs": runs, "statistics": [one.to_dict() for one in found], "early": curves, "computed": made}
            print(options.to_json(told, indent=1))
            return
        _print(runs, found)
        _computed(starts)
        for name, shares in curves.items():
            whose = "the thought alone" if name == "early_only" else "the thought mixed in"
            settled = ", ".join(f"{share:.0%}" for share in shares)
            print(f"next token settled after 0, 1, ... tokens of the thought, {whose}: {settled}")
        if not any(measured.values()):
            print("--measure adds compute and content effect, early answering, garble and the base's continuation")


def _measure(store: Store, runs: list[str], model: str | None, dtype: str, device: str, threads: int | None) -> None:
    """Measure run by run, each kept as soon as it is done."""
    from quietstar.evals import thoughts
    from quietstar.text import visible

    loaded: dict[tuple[str, str, str], QuietStar] = {}
    for number, run in enumerate(runs, 1):
        trace = store.trace(run)
        name, start = model or trace.start.model, trace.start
        wanted = name, start.dtype if dtype == "auto" else dtype, start.device if device == "auto" else device
        if wanted not in loaded:
            with Status() as status:
                loaded = {wanted: options.load(*wanted, None, threads=threads, status=status)}
        print(f"measuring {run} ({number} of {len(runs)}), {len(trace.thoughts)} thoughts", file=sys.stderr, flush=True)
        told = thoughts.check_computed(loaded[wanted], trace)
        store.measure(run, thoughts.measure(loaded[wanted], trace))
        if told:
            print(f"note: {visible(told)}", file=sys.stderr)


def _each(store: Store, run: str) -> None:
    from quietstar.evals import statistics

    trace = store.trace(run)
    columns = statistics.of_trace(trace, store.measured(run))
    for n, thought in enumerate(trace.thoughts):
        row = {"run": run, "position": thought.position, "thought": thought.samples[0].text if thought.samples else ""}
        print(options.to_json(row | {name: values[n] for name, values in columns.items()}))


def _kept(store: Store, run: str, starts: dict[str, Start]) -> Trace:
    """A run's trace; its start is kept."""
    trace = store.trace(run)
    starts[run] = trace.start
    return trace


def _print(runs: list[str], found: list[Statistic]) -> None:
    from quietstar.text import visible

    print(
        f"{len(runs)} run{'s' if len(runs) > 1 else ''}: {', '.join(map(visible, runs[:8]))}"
        f"{', ...' if len(runs) > 8 else ''}"
    )
    print(f"{'measure':<27} {'mean':>9}  {'95 % interval':<21} {'unit':<10} {'thoughts':>8}")
    for one in found:
        within = f"{one.low:+.4f} to {one.high:+.4f}" if one.low is not None else "too few values"
        mark = "~" if one.within else " "
        print(f"{one.label:<27} {one.mean:>+9.4f}{mark} {within:<21} {one.unit:<10} {one.count:>8}")
    known = {one.name: f"{one.label} {one.floor:.2g}" for one in found if one.floor is not None}
    if known:
        told = [known[name] for name in ("kl", "weight") if name in known]
        print(f"noise floor: {', '.join(told)}; ~ marks a mean within it")
    elif found:
        print("noise floor not measured in every run: small values and changed words may be rounding")


def _computed(starts: dict[str, Start]) -> None:
    """What computed the runs, with a mark where they differ."""
    from quietstar.record import computed
    from quietstar.text import visible

    made = [computed.by(start) for start in starts.values()]
    other = computed.different(made)
    kinds = list(dict.fromkeys(computed.in_words(one) for one in made))
    if not other:
        print(visible(f"computed in {kinds[0]}"))
        return
    print(visible(f"these runs differ in {', '.join(other)}:"))
    for kind in kinds:
        runs = [run for run, one in zip(starts, made, strict=True) if computed.in_words(one) == kind]
        print(visible(f"  {kind}: {', '.join(runs[:8])}{', ...' if len(runs) > 8 else ''}"))
