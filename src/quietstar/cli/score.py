"""`quietstar score`: what thoughts are worth on given texts, with controls and intervals."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quietstar.cli import options
from quietstar.cli.status import Status

if TYPE_CHECKING:
    from rich.console import Console

    from quietstar.evals.intervals import Interval
    from quietstar.evals.losses import LossReport


def score(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Plain text (one document); JSON, JSON Lines, CSV, TSV or Parquet (one per row); - is standard input.",
        ),
    ],
    model: options.Model = "default",
    field: Annotated[str, typer.Option(metavar="NAME", help="The column of the text.")] = "text",
    controls: Annotated[
        str, typer.Option(metavar="LIST", help="Controls to compare with, separated by commas, or none.")
    ] = "filler,donor,shuffled",
    broken: Annotated[
        str, typer.Option(metavar="WHAT", help="What to do with broken rows: refuse the file, or skip them.")
    ] = "refuse",
    limit: Annotated[int | None, typer.Option(metavar="N", help="Read only the first N documents.")] = None,
    max_tokens: Annotated[int | None, typer.Option(metavar="N", help="Read at most N tokens of each document.")] = None,
    window: Annotated[int, typer.Option(metavar="N", help="Tokens read at once; longer documents are cut.")] = 512,
    thought_length: options.ThoughtLength = None,
    samples: options.Samples = 1,
    thought_temperature: options.ThoughtTemperature = None,
    mixing_weight: options.MixingWeight = None,
    seed: options.Seed = 0,
    cut: Annotated[
        str | None,
        typer.Option(
            "--cut", "--split", metavar="REGEX", help="Cut plain text into documents before each match, as in '^# '."
        ),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="A report (--json) of another model on the same texts, to compare with."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
) -> None:
    """Think at every position of texts and report how well the true next tokens are predicted.

    Losses are nats per predicted token: base (no thought), own (the own thought mixed in), only (the thought alone),
    and each control. Effects are above zero where a thought helps: compute = base - filler,
    content = donor - own. Intervals are 95 % bootstraps over documents.
    """
    from quietstar.documents.reading import Rules, read
    from quietstar.errors import QuietStarError
    from quietstar.evals.losses import Interrupted, check_comparable, evaluate, names_of
    from quietstar.inference.controls import Control

    names = [str(Control.parse(name)) for name in names_of(controls)]
    if limit is not None and limit < 1:
        raise QuietStarError(f"--limit must be at least 1, got {limit}")
    found = read(files, Rules(field=field, broken=broken, limit=limit or 0, cut=cut, option="--{}"))
    for note in found.notes:
        print(f"note: {note}", file=sys.stderr)
    documents = found.documents
    other = None if against is None else _report_of(against)
    with Status(as_json) as status:
        thinker = options.load(model, dtype, device, quantize, threads=threads, status=status)
    if other is not None:
        check_comparable(thinker, documents, other, window=window, max_tokens=max_tokens)

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import Progress

    from quietstar.text import visible

    try:
        with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
            task = progress.add_task("scoring", total=1.0)
            report = evaluate(
                thinker,
                documents,
                controls=names,
                window=window,
                max_tokens=max_tokens,
                thought_length=thought_length,
                samples=samples,
                thought_temperature=thought_temperature,
                mixing_weight=mixing_weight,
                seed=seed,
                told=lambda name, share: progress.update(task, completed=share, description=escape(visible(name[:30]))),
            )
    except Interrupted as stopped:
        if stopped.report is not None:
            _show(stopped.report, as_json, None)
        raise
    _show(report, as_json, other)


def _report_of(file: str) -> dict[str, Any]:
    """A report that --json wrote."""
    from quietstar.errors import QuietStarError

    try:
        found = json.loads(Path(file).read_text(encoding="utf-8-sig"))
        if isinstance(found, dict) and isinstance(found["documents"], list):
            return found
    except OSError as error:
        raise QuietStarError(f"cannot read {file}: {error.strerror}") from error
    except (ValueError, KeyError, RecursionError):
        pass
    raise QuietStarError(
        f"{file} is not a report of `quietstar score --json`; write one with quietstar score FILE --json > REPORT"
    )


def _show(report: LossReport, as_json: bool, other: dict[str, Any] | None) -> None:
    from quietstar.evals.losses import against, differences
    from quietstar.record.computed import different, in_words
    from quietstar.text import visible

    compared = {}
    if other is not None:
        compared = {kind: against(report.to_dict(), other, kind) for kind in ("base", "own")}
        found = other.get("computed")
        told = {name: str(value) for name, value in found.items()} if isinstance(found, dict) else {}
        differ = different([report.computed, told]) if told else []
        if differ:
            print(
                visible(
                    f"note: the reports differ in {', '.join(differ)}: {in_words(report.computed)}; the other "
                    f"{in_words(told)}"
                ),
                file=sys.stderr,
            )
        elif not told:
            print("note: the other report does not say what computed it (dtype, device, versions)", file=sys.stderr)
        for note in differences(report.to_dict(), other):
            print(f"note: {visible(note)}", file=sys.stderr)
    for name in report.skipped:
        print(f"note: {visible(name)} has fewer than two tokens and was skipped", file=sys.stderr)
    if as_json:
        more = {"against": {kind: asdict(found) for kind, found in compared.items()}} if compared else {}
        print(options.to_json(report.to_dict() | more, indent=1))
    else:
        _print(report, compared)


def _print(report: LossReport, compared: dict[str, Interval]) -> None:
    from rich.console import Console
    from rich.text import Text

    from quietstar.evals.intervals import FEWEST

    console = Console(highlight=False)
    kinds = list(report.losses)

    documents = [
        [row["document"], str(row["tokens"]), *(f"{row[kind]:.4f}" for kind in kinds)] for row in report.documents
    ]
    documents.append(["all", str(report.tokens), *(f"{report.losses[kind].mean:.4f}" for kind in kinds)])
    documents.append(["95 % from", "", *(_bound(report.losses[kind].low) for kind in kinds)])
    documents.append(["95 % to", "", *(_bound(report.losses[kind].high) for kind in kinds)])
    _table(console, "Loss, nats per predicted token", ["document", "tokens", *kinds], documents, fixed=2, last=3)

    effects = [[name, f"{found.mean:+.4f}", _range(found)] for name, found in report.effects.items()]
    effects += [
        [f"{name}, hardest fifth", f"{found.mean:+.4f}", _range(found)] for name, found in report.hardest.items()
    ]
    effects += [
        [f"{kind} against the other's base", f"{found.mean:+.4f}", _range(found)] for kind, found in compared.items()
    ]
    for name, one, form in (
        ("thoughts continue the text", report.continues, ".2%"),
        ("likeliest word changed", report.flipped, ".2%"),
        ("mixing weight", report.weight, ".4f"),
        ("KL(mixed || base)", report.kl, ".4f"),
    ):
        effects.append([name, format(one.mean, form), _range(one)])
    _table(console, "Effects, nats; above 0 the thought helps", ["effect", "mean", "95 %"], effects, fixed=3)

    deciles = [
        [
            str(row["decile"]),
            str(row["tokens"]),
            f"{row['from']:.3f}",
            *(f"{row['losses'][kind]:.4f}" for kind in kinds),
        ]
        for row in report.deciles
    ]
    _table(console, "Loss by decile of base difficulty", ["decile", "tokens", "base from", *kinds], deciles, fixed=3)
    changes = [
        [str(row["decile"]), *(_signed(row["effects"][name]) for name in report.effects)] for row in report.deciles
    ]
    _table(console, "Effects by decile of base difficulty, nats", ["decile", *report.effects], changes, fixed=1)
    floor = report.noise
    said = (
        "not measured"
        if floor is None
        else f"KL {floor['kl']:.2g}, w {floor['weight']:.2g} (what rounding alone changes)"
    )
    console.print(Text(f"noise floor: {said}", style="dim"))
    if report.unfinished:
        console.print(Text(f"interrupted: {len(report.unfinished)} documents were not read completely", style="dim"))
    if len(report.documents) < FEWEST:
        console.print(Text(f"fewer than {FEWEST} documents: no intervals", style="dim"))


def _table(console: Console, title: str, columns: list[str], rows: list[list[str]], fixed: int, last: int = 0) -> None:
    """A table as wide as the terminal at most: columns that do not fit go below, behind the first `fixed` ones again.

    A number is never broken over lines, a name only where it alone is too long. `last` rows stand apart at the end.
    """
    from rich.cells import cell_len
    from rich.table import Table
    from rich.text import Text

    from quietstar.text import visible

    rows = [[visible(row[0]), *row[1:]] for row in rows]
    widths = [max(map(cell_len, column)) for column in zip(columns, *rows, strict=True)]
    gap = 2
    kept = sum(widths[1:fixed]) + gap * (fixed - 1)  # beside the first column, which gives way where it must
    first = max(min(widths[0], console.width - kept - max(widths[fixed:], default=0) - gap), len(columns[0]))
    parts: list[list[int]] = [[]]
    used = first + kept
    for n in range(fixed, len(columns)):
        if parts[-1] and used + gap + widths[n] > console.width:
            parts.append([])
            used = first + kept
        parts[-1].append(n)
        used += gap + widths[n]
    for part in parts:
        shown = [*range(fixed), *part]
        made = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0), header_style="bold")
        for n in shown:
            made.add_column(
                columns[n],
                justify="right" if n else "left",
                no_wrap=n > 0,
                overflow="fold",
                width=widths[n] if n else first,
            )
        for number, row in enumerate(rows):
            if last and number == len(rows) - last:
                made.add_section()
            made.add_row(*(Text(row[n]) for n in shown))
        console.print(Text(title, style="bold"))
        console.print(made, crop=False)
        console.print()


def _bound(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _range(found: Interval) -> str:
    return "-" if found.low is None or found.high is None else f"{found.low:.4f}..{found.high:.4f}"


def _signed(found: dict[str, float | None]) -> str:
    """An effect with its interval."""
    mean, low, high = found["mean"], found["low"], found["high"]
    assert mean is not None
    return f"{mean:+.3f}" if low is None or high is None else f"{mean:+.3f} ({low:+.3f}..{high:+.3f})"
