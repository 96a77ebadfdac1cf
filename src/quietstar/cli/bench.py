"""`quietstar bench`: what thinking costs on this machine."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from quietstar.cli import options

if TYPE_CHECKING:
    from quietstar.evals.bench import Bench

app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)


@app.callback()
def bench(
    context: typer.Context,
    model: options.Model = "default",
    thought_length: Annotated[
        int, typer.Option("--thought-length", "-t", metavar="T", help="Tokens in a thought.")
    ] = 5,
    tokens: Annotated[int, typer.Option("--context", metavar="N", help="Tokens of text before the thought.")] = 512,
    repeats: Annotated[int, typer.Option(metavar="N", help="Measurements of each pair, after one warm-up.")] = 5,
    processes: Annotated[bool, typer.Option(help="Measure peak memory and start-up too, in fresh processes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Measure what thinking costs on this machine, as ratios against plain transformers taken in one run."""
    if context.invoked_subcommand is not None:
        return
    thinker = options.load(model, dtype, device, None)
    from quietstar.evals.bench import run

    report = run(
        thinker, model, dtype, device, thought_length=thought_length, context=tokens, repeats=repeats,
        processes=processes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    _tell(report, as_json)


@app.command("train")
def train(
    model: options.Model = "default",
    thought_length: Annotated[
        int, typer.Option("--thought-length", "-t", metavar="T", help="Tokens in a thought.")
    ] = 5,
    lookahead: Annotated[int, typer.Option(metavar="A", help="True tokens predicted after a thought.")] = 4,
    samples: Annotated[int, typer.Option(metavar="P", help="Thoughts at each position.")] = 2,
    length: Annotated[int, typer.Option(metavar="N", help="Tokens of the sequence.")] = 256,
    repeats: Annotated[int, typer.Option(metavar="N", help="Measurements of each side, after one warm-up.")] = 3,
    processes: Annotated[bool, typer.Option(help="Measure peak memory too, in fresh processes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
) -> None:
    """Measure a training step against plain forward and backward over as many token positions, and its peak memory."""
    thinker = options.load(model, dtype, device, None)
    from quietstar.evals.bench_train import run

    report = run(
        thinker, model, dtype, device, thought_length=thought_length, lookahead=lookahead, samples=samples,
        length=length, repeats=repeats, processes=processes,
        say=lambda text: print(text, file=sys.stderr, flush=True),
    )  # fmt: skip
    _tell(report, as_json)


def _tell(report: Bench, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.to_dict(), indent=1))
    else:
        _print(report)


def _print(report: Bench) -> None:
    print(", ".join(f"{key} {value}" for key, value in report.machine.items()))
    for r in report.ratios:
        print(
            f"{r.ratio:6.2f} x  (from {r.lowest:.2f} to {r.highest:.2f}; at most {r.limit:.2f})  "
            f"{r.what} {r.seconds * 1e3:.1f} ms / {r.against} {r.against_seconds * 1e3:.1f} ms"
        )
    if report.memory:
        print(f"peak memory of {report.memory_of}, whole process (limit {report.memory_limit_mb:.0f} MB):")
        for row in report.memory:
            print(f"{row['tokens']:6.0f} tokens  {row['peak_mb']:7.0f} MB  (after loading {row['loaded_mb']:.0f} MB)")
    if report.start:
        s = report.start
        print(
            f"{s['seconds']:6.2f} s from starting Python to the first token with its thought "
            f"(from {s['lowest']:.2f} to {s['highest']:.2f}; at most {s['limit']:.0f})"
        )
