"""`quietstar tasks`: problems with known steps as JSON Lines, and data sets that carry steps turned into the same."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer

from quietstar.errors import QuietStarError

app = typer.Typer(
    help="Text whose answer needs steps, with the true steps known: generated, or converted from data sets.",
    no_args_is_help=True,
)


def _steps(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d{1,6})(?:-(\d{1,6}))?", text.strip())
    if not found:
        raise QuietStarError(f"--steps must be a number or a range such as 1-6, got {text!r}")
    return int(found[1]), int(found[2] or found[1])


def _write(rows: Iterable[dict[str, Any]], out: str | None) -> int:
    """JSON Lines to a file, or to standard output; returns how many."""
    written = 0

    def write(file: TextIO) -> None:
        nonlocal written
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1

    if out is None:
        write(sys.stdout)
        return written
    try:
        with Path(out).open("w", encoding="utf-8") as file:
            write(file)
    except OSError as error:
        raise QuietStarError(f"{out} could not be written: {error.strerror}") from error
    return written


@app.command("list")
def names() -> None:
    """List the tasks."""
    from quietstar.tasks import registry

    for name in registry.names():
        what = (registry.generator(name).__doc__ or "").strip().split("\n")[0]
        print(f"{name:12} {what}")


@app.command("make")
def make(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Its name; `quietstar tasks list` shows all.")],
    count: Annotated[int, typer.Option("--count", "-n", help="How many problems.")] = 1000,
    steps: Annotated[str, typer.Option("--steps", help="Fewest and most steps.")] = "1-6",
    seed: Annotated[int, typer.Option("--seed", help="Same seed, same problems.")] = 0,
    split: Annotated[str, typer.Option("--split", help="Wording: train or heldout.")] = "train",
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="A .jsonl file [standard output].")] = None,
) -> None:
    """Write problems with prompt, thought (the true steps) and answer, one a line."""
    from quietstar.tasks import registry

    _write((one.to_dict() for one in registry.generate(task, count, steps=_steps(steps), seed=seed, split=split)), out)


@app.command("convert")
def convert(
    source: Annotated[str, typer.Argument(metavar="FILE", help="JSON, JSON Lines, CSV or Parquet of the data set.")],
    form: Annotated[str, typer.Option("--format", help="gsm8k, svamp or mawps (MultiArith, AddSub, SingleEq).")],
    out: Annotated[str | None, typer.Option("--out", metavar="FILE", help="A .jsonl file [standard output].")] = None,
) -> None:
    """Turn a data set's own steps (calculator notes, equations) into thoughts; other rows are counted and left out."""
    from quietstar.tasks import conversion

    left_out: Counter[str] = Counter()
    count = _write((one.to_dict() for one in conversion.convert(_rows(source), form, left_out)), out)
    for reason, times in left_out.most_common():
        print(f"left out {times}: {reason}", file=sys.stderr)
    if not count:
        raise QuietStarError(f"no row of {source} gave a problem")


def _rows(source: str) -> Iterable[dict[str, Any]]:
    from quietstar.documents import files as datafiles

    file = datafiles.Source(source, text=None)
    for number, row in datafiles.rows(file):
        if not isinstance(row, dict):
            why = row if isinstance(row, datafiles.Broken) else f"{datafiles.kind_of(row)}, not an object with fields"
            raise QuietStarError(f"{source}, {file.unit} {number}: {why}")
        yield row
    for note in file.notes:
        print(f"note: {note}", file=sys.stderr)
