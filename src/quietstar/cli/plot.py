"""`quietstar plot`: the curves of training runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from quietstar.errors import QuietStarError


def plot(
    runs: Annotated[
        list[str], typer.Argument(metavar="FOLDER", help="Folders of training runs; several are compared.")
    ],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="A .png, .svg or .pdf file [RUN/curves.png].")
    ] = None,
) -> None:
    """Draw losses, reward, mixing weight and held-out effects of training runs into a picture."""
    from quietstar.training import curves, run_log

    logs = {}
    for run in runs:
        lines = run_log.read(run)
        if not lines:
            raise QuietStarError(f"there is no log of a training run in {run} (a file {run_log.LOG} with lines)")
        logs[Path(run).name] = lines
    target = Path(out) if out is not None else Path(runs[0]) / "curves.png"
    curves.draw(logs, target)
    print(target)
