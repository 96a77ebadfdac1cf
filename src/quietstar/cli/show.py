"""`quietstar show`: one run again, its answer tinted by what the thoughts did, and every thought in its place."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quietstar.cli import options, recording
from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from rich.console import Console

    from quietstar.scratchpad.entries import Intervention, Run
    from quietstar.scratchpad.store import Store
    from quietstar.scratchpad.trace import Trace

_MOST = 2000  # characters of a prompt that are printed


def show(
    context: typer.Context,
    run: Annotated[
        str | None, typer.Argument(metavar="RUN", help="Its id or the beginning of it; the newest when left out.")
    ] = None,
    top: Annotated[
        int | None, typer.Option(metavar="N", help="The N most influential thoughts only, instead of all in order.")
    ] = None,
    measure: Annotated[
        str, typer.Option(metavar="NAME", help="What tints the answer: kl, weight, gain, entropy or surprise.")
    ] = "kl",
    as_json: Annotated[bool, typer.Option("--json", help="Print all that is recorded as one JSON object.")] = False,
    db: options.Db = None,
) -> None:
    """Read a recorded run again, with what each thought did.

    The answer is tinted by how far each thought moved the prediction (or by another --measure), and marked: · where the
    model thought, ◆ where the thought changed which word was likeliest.
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
            from quietstar.scratchpad import exchange
            from quietstar.scratchpad.columns import to_json

            typer.echo(options.to_json(json.loads(to_json(exchange.line(store, entry.id)))))
            return
        _print(store, entry, top, measure)


def _print(store: Store, entry: Run, top: int | None, measure: str) -> None:
    from rich.console import Console
    from rich.text import Text

    from quietstar.cli.render import safe, tinted

    console = Console(highlight=False, soft_wrap=True)
    entries = store.chain(entry.id)
    traces = [store.trace(one.id) for one in entries]
    for one in entries:
        _head(console, one)
    console.print()
    asked = entries[0].asked or entries[0].prompt
    console.print(Text(("…" if len(asked) > _MOST else "") + safe(asked[-_MOST:]), style="bold"))
    console.print()
    shown = Text()
    largest = 0.0
    for number, trace in enumerate(traces):
        if number:
            before = traces[number - 1]
            shown.append(safe(_prompt(trace)[len(_prompt(before)) + len(before.text) :]), "dim")
        text, most = tinted(trace, measure)
        shown.append_text(text)
        largest = max(largest, most)
    console.print(shown)
    thoughts = sum(len(trace.thoughts) for trace in traces)
    if thoughts:
        size = f"size of {measure}" if measure in ("weight", "gain") else measure  # these may be below 0
        known = any(getattr(thought, measure) is not None for trace in traces for thought in trace.thoughts)
        nothing = f"{measure} is 0 throughout" if known else f"none, {measure} was not recorded"
        tint = f"{size} from 0 to {largest:.4g}" if largest > 0 else nothing
        console.print(Text(f"\ntint: {tint}; · thought, ◆ changed the likeliest word", style="dim"))
    for one, trace in zip(entries, traces, strict=True):
        _thoughts(console, trace, store.interventions(one.id), top)


def _prompt(trace: Trace) -> str:
    return trace.start.prompts[trace.sequence]


def _head(console: Console, run: Run) -> None:
    from rich.text import Text

    from quietstar.cli.render import safe
    from quietstar.text import visible

    head = Text().append(run.id, "bold cyan").append(f"  {when(run.started)}  {visible(run.model)}", "dim")
    if run.base and run.base != run.model:
        head.append(f" on {visible(run.base)}", "dim")
    if run.phase == "reason":
        head.append("  reasoning", "dim")
    if run.untrained:
        head.append("  untrained thoughts", "dim")
    for tag in run.tags:
        head.append(f"  #{visible(tag)}", "magenta")
    console.print(head)
    end = run.reason or "unfinished: still running, or killed"
    seconds = f", {run.seconds:.1f} s" if run.seconds is not None else ""
    counts = f"{run.tokens} tokens, {run.thoughts} thoughts, {run.flips} changed the likeliest word{seconds}, {end}"
    console.print(Text(counts, style="dim"))
    console.print(Text(_settings(run.settings), style="dim"))
    if run.note:
        console.print(Text("note: ", style="magenta").append(safe(run.note)))


def _settings(settings: dict[str, Any]) -> str:
    from quietstar.text import visible

    kept = {key: value for key, value in settings.items() if value not in (None, [], "") and key != "show"}
    return ", ".join(f"{visible(key).replace('_', ' ')} {visible(str(value))}" for key, value in kept.items())


def _thoughts(console: Console, trace: Trace, interventions: list[Intervention], top: int | None) -> None:
    from rich.text import Text

    from quietstar.cli.render import change, lines

    at: dict[int, list[Intervention]] = {}
    for one in interventions:
        at.setdefault(one.position, []).append(one)
    for thought in trace.thoughts if top is None else trace.most_influential(top):
        console.print()
        for line in lines(trace, [thought]):
            console.print(line)
        for one in at.pop(thought.position, []):
            console.print(Text("       ").append_text(change(one)))
    for position, rest in sorted(at.items()) if top is None else ():
        console.print()
        for one in rest:
            console.print(Text(f"{position:>5}  ", style="dim").append_text(change(one)))


def when(started: str) -> str:
    """A time of the record in this machine's own time zone."""
    from datetime import datetime

    return datetime.fromisoformat(started).astimezone().strftime("%Y-%m-%d %H:%M")
