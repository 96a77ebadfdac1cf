"""`quietstar runs`: list and search what is recorded, name it, delete it, take it elsewhere."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quietstar.cli import options, recording
from quietstar.cli.show import show, when
from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.record.entries import Run

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    help="List and search the recorded runs, newest first.\n\n"
    "A search matches the beginnings of words in prompts, answers and thoughts.",
)
app.command(name="show")(show)

_RUN = typer.Argument(metavar="RUN", help="Its id or the beginning of it.")
Search = Annotated[
    str,
    typer.Option("--search", "-s", metavar="WORDS", help='Words in prompt, answer or thoughts; a phrase "in quotes".'),
]
Tag = Annotated[str | None, typer.Option(metavar="TAG", help="Runs with this tag only.")]


@app.callback()
def runs(
    context: typer.Context,
    search: Search = "",
    tag: Tag = None,
    limit: Annotated[int, typer.Option(metavar="N", help="List at most N runs; 0 lists all.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print one run a line as JSON.")] = False,
    db: options.Db = None,
) -> None:
    """List and search the recorded runs, newest first.

    A search matches the beginnings of words in prompts, answers and thoughts.
    """
    context.obj = db
    if context.invoked_subcommand is not None:
        if search or tag or as_json:
            raise QuietStarError(f"options of `runs {context.invoked_subcommand}` go after its name")
        return
    if limit < 0:
        raise QuietStarError(f"--limit must be at least 0, got {limit}")
    with recording.opened(db) as store:
        count = 0
        for run in store.runs(search, tag=tag, limit=limit + 1 if limit else None):
            if limit and count == limit:
                print(f"there are more; --limit {limit * 5} lists more of them", file=sys.stderr)
                break
            count += 1
            if as_json:
                print(options.to_json(run.to_dict()), flush=True)
            else:
                _print(run)
        if not count:
            what = "no run matches" if search or tag else "there are no runs yet; `quietstar think` records one"
            print(what, file=sys.stderr)


def _print(run: Run) -> None:
    """One run on one line, cut to the width of a terminal, whole in a pipe."""
    from rich.console import Console
    from rich.text import Text

    from quietstar.text import visible

    console = Console(highlight=False, soft_wrap=True)
    line = Text().append(visible(run.id), "bold cyan").append(f"  {when(run.started)}  ", "dim")
    line.append(f"{run.thoughts:>5} thoughts {run.flips:>3} {'◆' if run.flips else ' '}  ", "dim")
    if run.flips and run.noise_kl is None:
        line.append("(noise floor not measured) ", "dim")
    for tag in run.tags:
        line.append(f"#{visible(tag)} ", "magenta")
    if run.phase == "reason":
        line.append("(reasoning) ", "dim")
    most = None if not console.is_terminal else max(console.width, 60)
    asked, text = run.asked or run.prompt, run.text
    if most is not None:
        asked, text = asked[:most], text[:most]
    line.append(visible(asked)).append("  →  ", "dim").append(visible(text) or "(empty answer)", "")
    if run.reason is None:
        line.append("  (unfinished)", "dim")
    if most is not None:
        line.truncate(most, overflow="ellipsis")
    console.print(line)


@app.command()
def tag(
    context: typer.Context,
    run: Annotated[str, _RUN],
    tags: Annotated[list[str], typer.Argument(metavar="TAG...", help="One or more tags.")],
    remove: Annotated[bool, typer.Option("--remove", help="Remove the tags instead.")] = False,
    db: options.Db = None,
) -> None:
    """Tag a run, so that `runs --tag` finds it."""
    with recording.opened(db or context.obj) as store:
        (store.untag if remove else store.tag)(run, *tags)
        print(f"{store.find(run)}: {', '.join(store.run(run).tags) or 'no tags'}")


@app.command()
def note(
    context: typer.Context,
    run: Annotated[str, _RUN],
    text: Annotated[str, typer.Argument(metavar="TEXT", help='The note; "" removes it.')],
    db: options.Db = None,
) -> None:
    """Write a note on a run; it replaces the previous one."""
    with recording.opened(db or context.obj) as store:
        store.note(run, text)
        print(f"{store.find(run)}: {'noted' if text else 'no note'}")


@app.command()
def delete(
    context: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Ids or their beginnings.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    db: options.Db = None,
) -> None:
    """Delete runs with their thoughts and interventions, and erase their text from the file."""
    with recording.opened(db or context.obj) as store:
        ids = list(dict.fromkeys(store.find(name) for name in names))
        if not yes:
            if sys.stdin is None or not sys.stdin.isatty():
                raise QuietStarError(
                    "deleting cannot be undone and standard input is not a terminal to confirm it; pass --yes"
                )
            for one in ids:
                _print(store.run(one))
            question = f"Delete {'this run' if len(ids) == 1 else f'these {len(ids)} runs'} for good?"
            if not typer.confirm(question):
                print("nothing was deleted")
                return
        print(f"deleted {', '.join(store.delete(*ids))}")


@app.command(name="export")
def export_(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="The file to write; - is standard output.")],
    names: Annotated[list[str] | None, typer.Argument(metavar="RUN...", help="Which runs; all when left out.")] = None,
    search: Search = "",
    tag: Tag = None,
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="jsonl, csv, parquet or html; inferred from the file's suffix when left out."
        ),
    ] = None,
    table: Annotated[
        str,
        typer.Option(metavar="NAME", help="Of csv and parquet: runs, tags, tokens, thoughts, samples, interventions."),
    ] = "thoughts",
    db: options.Db = None,
) -> None:
    """Export runs: complete ones as JSON Lines, one table of them as CSV or Parquet, or an HTML page.

    The page (.html) is a single file that any browser opens, without quietstar and without a network.
    """
    from quietstar.record import exchange

    known = (*exchange.FORMATS, "html")

    with recording.opened(db or context.obj) as store:
        if names and (search or tag):
            raise QuietStarError("pass run names or --search and --tag, not both")
        if names:
            ids = list(dict.fromkeys(store.find(name) for name in names))
        else:
            ids = [run.id for run in store.runs(search, tag=tag)][::-1]
        ending = Path(file).suffix.lower().removeprefix(".")
        if format is None and file != "-" and ending not in known:
            raise QuietStarError(f"cannot infer the format of {file}; pass --format with one of {', '.join(known)}")
        format = format or ("jsonl" if file == "-" else ending)
        if format not in known:
            raise QuietStarError(f"--format must be one of {', '.join(known)}; got {format!r}")
        if format == "html":
            from quietstar.viewer import export

            count = export.write(store, file, ids)
        else:
            count = exchange.export(store, file, ids, format, table)
        if file != "-":
            print(f"{count} runs written to {file}")


@app.command(name="import")
def import_(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="JSON lines that `quietstar runs export` wrote.")],
    db: options.Db = None,
) -> None:
    """Import runs from JSON Lines; a damaged file imports nothing."""
    from quietstar.record import exchange
    from quietstar.record.store import Store

    with Store.open(db or context.obj) as store:
        done = exchange.load(store, file)
        there = f", {len(done.present)} already there" if done.present else ""
        print(f"{len(done.added)} runs imported{there}")
