"""`quietstar show`: one run again, its answer tinted by what the thoughts did, and every thought in its place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quietstar.cli import options, recording
from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from rich.console import Console

    from quietstar.events import Trace
    from quietstar.record.entries import Intervention, Run
    from quietstar.record.store import Store

_MOST = 2000  # characters of a prompt that are printed


def show(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Run id or its beginning; the newest run when left out.")
    ] = None,
    top: Annotated[
        int | None,
        typer.Option(metavar="N", help="Only the N thoughts with the largest --measure, none below the noise floor."),
    ] = None,
    measure: Annotated[
        str, typer.Option(metavar="NAME", help="What tints and ranks: kl, weight, gain, entropy or surprise.")
    ] = "kl",
    as_json: Annotated[bool, typer.Option("--json", help="Print all that is recorded as one JSON object.")] = False,
    db: options.Db = None,
) -> None:
    """Show a recorded run, with what each thought did.

    The answer is tinted by how far each thought moved the prediction (or by another --measure), on a scale that is the
    same for every run, and marked: · where the model thought, ◆ where the likeliest word changed. What lies within the
    noise floor (what reading the same place again in another batch changes) has no tint and no ◆.
    """
    from quietstar.cli.render import MEASURES

    if measure not in MEASURES:
        raise QuietStarError(f"--measure must be one of {', '.join(MEASURES)}; got {measure!r}")
    if top is not None and top < 0:
        raise QuietStarError(f"--top must be at least 0, got {top}")
    with recording.opened(db if db is not None else context.obj) as store:
        entry = store.run(run) if run is not None else next(store.runs(limit=1), None)
        if entry is None:
            raise QuietStarError(f"{store.path} has no runs yet; `quietstar think` records one")
        if as_json:
            from quietstar.record import exchange
            from quietstar.record.columns import to_json

            typer.echo(options.to_json(json.loads(to_json(exchange.line(store, entry.id)))))
            return
        _print(store, entry, top, measure)


def _print(store: Store, entry: Run, top: int | None, measure: str) -> None:
    from rich.text import Text

    from quietstar.cli.render import legend, noise, safe, tinted
    from quietstar.cli.wrapping import console as make

    console = make()
    entries = store.chain(entry.id)
    traces = [store.trace(one.id) for one in entries]
    for one, trace in zip(entries, traces, strict=True):
        _head(console, one, trace)
    console.print()
    asked = entries[0].asked or entries[0].prompt
    console.print(Text(("…" if len(asked) > _MOST else "") + safe(asked[-_MOST:]), style="bold"))
    console.print()
    shown = Text()
    for number, trace in enumerate(traces):
        if number:
            before = traces[number - 1]
            shown.append(safe(_prompt(trace)[len(_prompt(before)) + len(before.text) :]), "dim")
        shown.append_text(tinted(trace, measure))
    console.print(shown)
    if any(trace.thoughts for trace in traces):
        console.print()
        if any(getattr(thought, measure) is not None for trace in traces for thought in trace.thoughts):
            console.print(legend(measure))
        else:
            console.print(Text(f"tint: none, {measure} was not recorded", style="dim"))
        console.print(Text(noise([trace for trace in traces if trace.thoughts]), style="dim"))
    for one, trace in zip(entries, traces, strict=True):
        _thoughts(console, trace, store.interventions(one.id), top, measure)


def _prompt(trace: Trace) -> str:
    return trace.start.prompts[trace.sequence]


def _head(console: Console, run: Run, trace: Trace) -> None:
    from rich.text import Text

    from quietstar.cli.render import floor, safe, times
    from quietstar.record import computed
    from quietstar.text import visible

    head = Text().append(visible(run.id), "bold cyan").append(f"  {when(run.started)}  {visible(run.model)}", "dim")
    if run.base and run.base != run.model:
        head.append(f" on {visible(run.base)}", "dim")
    if run.phase == "reason":
        head.append("  reasoning", "dim")
    if run.untrained:
        head.append("  untrained thoughts", "dim")
    for tag in run.tags:
        head.append(f"  #{visible(tag)}", "magenta")
    console.print(head)
    end = visible(run.reason or "unfinished: still running, or killed")
    seconds = f", {run.seconds:.1f} s" if run.seconds is not None else ""
    counts = f"{run.tokens} tokens, {run.thoughts} thoughts"
    if run.thoughts:
        counts += f", {floor([trace])}, likeliest word changed {times(sum(map(trace.changed, trace.thoughts)))}"
    console.print(Text(f"{counts}{seconds}, {end}", style="dim"))
    console.print(Text(visible(computed.in_words(computed.by(trace.start))), style="dim"))
    console.print(Text(_settings(run.settings), style="dim"))
    if run.note:
        console.print(Text("note: ", style="magenta").append(safe(run.note)))


def _settings(settings: dict[str, Any]) -> str:
    from quietstar.text import visible

    kept = {key: value for key, value in settings.items() if value not in (None, [], "") and key != "show"}
    return ", ".join(f"{visible(key).replace('_', ' ')} {visible(str(value))}" for key, value in kept.items())


def _thoughts(console: Console, trace: Trace, interventions: list[Intervention], top: int | None, measure: str) -> None:
    from rich.text import Text

    from quietstar.cli.render import change, lines, strongest
    from quietstar.cli.wrapping import hanging

    at: dict[int, list[Intervention]] = {}
    for one in interventions:
        at.setdefault(one.position, []).append(one)
    for thought in trace.thoughts if top is None else strongest(trace, measure)[:top]:
        console.print()
        for line in lines(trace, [thought], measure):
            console.print(hanging(console, line, 7))
        for one in at.pop(thought.position, []):
            console.print(hanging(console, Text("       ").append_text(change(one)), 7))
    for position, rest in sorted(at.items()) if top is None else ():
        console.print()
        for one in rest:
            console.print(hanging(console, Text(f"{position:>5}  ", style="dim").append_text(change(one)), 7))


def when(started: str) -> str:
    """A time of the record in this machine's own time zone."""
    from datetime import datetime

    return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")
