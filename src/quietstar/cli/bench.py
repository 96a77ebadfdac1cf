"""`quietstar bench`: what thinking costs on this machine."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from quietstar.cli import options
from quietstar.cli.status import Status
from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.bench.engine import Bench
    from quietstar.bench.generate import Report

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
    threads: options.Threads = None,
) -> None:
    """Measure what thinking costs on this machine, as ratios against plain transformers taken in one run."""
    if context.invoked_subcommand is not None:
        return
    with Status(as_json) as status:
        thinker = options.load(model, dtype, device, None, threads=threads, status=status)
    from quietstar.bench.engine import run

    with _telling(as_json, _print) as tell:
        tell(
            run(
                thinker,
                model,
                dtype,
                device,
                thought_length=thought_length,
                context=tokens,
                repeats=repeats,
                processes=processes,
                say=_say,
            )
        )


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
    threads: options.Threads = None,
) -> None:
    """Measure a training step against plain forward and backward over as many token positions, and its peak memory."""
    with Status(as_json) as status:
        thinker = options.load(model, dtype, device, None, threads=threads, status=status)
    from quietstar.bench.train import run

    with _telling(as_json, _print) as tell:
        tell(
            run(
                thinker,
                model,
                dtype,
                device,
                thought_length=thought_length,
                lookahead=lookahead,
                samples=samples,
                length=length,
                repeats=repeats,
                processes=processes,
                say=_say,
            )
        )


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


@contextmanager
def _telling(as_json: bool, show: Callable[[Any], None]) -> Iterator[Callable[[Any], None]]:
    """Print a report; after Ctrl-C, what was finished of it."""
    from quietstar.bench.engine import Interrupted

    def tell(report: Any) -> None:
        if as_json:
            print(options.to_json(report.to_dict(), indent=1))
        else:
            show(report)

    try:
        yield tell
    except Interrupted as stop:
        tell(stop.report)
        raise


@app.command()
def generate(
    model: options.Model = "default",
    contexts: Annotated[
        str, typer.Option("--contexts", metavar="LIST", help="Tokens of text before, separated by commas.")
    ] = "128,512,2048",
    thought_lengths: Annotated[
        str, typer.Option("--thought-lengths", "-t", metavar="LIST", help="Tokens in a thought, separated by commas.")
    ] = "5,8,16",
    tokens: Annotated[int, typer.Option("--tokens", "-n", metavar="N", help="Tokens emitted by each run.")] = 48,
    repeats: Annotated[int, typer.Option(metavar="N", help="Measurements of each, after one warm-up.")] = 3,
    speculate: Annotated[
        str, typer.Option(metavar="K", help="Tokens to draft and think about together, or auto.")
    ] = "auto",
    mixing_weight: options.MixingWeight = None,
    temperature: Annotated[float, typer.Option(metavar="X", help="Of the text; 0 is greedy.")] = 0.0,
    processes: Annotated[bool, typer.Option(help="Measure peak memory too, in fresh processes.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Measure generation: plain, thinking one by one, and thinking speculatively, taken in turn in one run.

    Texts of four kinds; every context at the middle thought length, every thought length at the middle context. Costs
    are multiples of plain generate, the smallest and largest in brackets.
    """
    from quietstar.inference import speculation

    speculation.parse(speculate)
    sizes = [_numbers("--contexts", contexts), _numbers("--thought-lengths", thought_lengths)]
    with Status(as_json) as status:
        thinker = options.load(model, dtype, device, None, threads=threads, status=status)
    from quietstar.bench.generate import run

    with _telling(as_json, _print_generate) as tell:
        tell(
            run(
                thinker,
                model,
                dtype,
                device,
                contexts=sizes[0],
                thought_lengths=sizes[1],
                tokens=tokens,
                repeats=repeats,
                speculate=speculate,
                mixing_weight=mixing_weight,
                temperature=temperature,
                processes=processes,
                say=_say,
            )
        )


def _numbers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise QuietStarError(f"{option} must be whole numbers separated by commas, got {text!r}") from None


def _print_generate(report: Report) -> None:
    print(", ".join(f"{key} {value}" for key, value in report.machine.items()))
    print("kind        context   T    plain, ms  one by one            speculative           drafted tokens accepted")
    for c in report.cells:
        one, ahead = (
            f"{r.middle:5.2f} x ({r.lowest:.2f} to {r.highest:.2f})" for r in (c.one_by_one_ratio, c.speculative_ratio)
        )
        parted = "" if c.parted is None else f"; parts at token {c.parted}, over {c.gap:.4f} nats"
        share = f" ({c.accepted / c.drafted:.0%})" if c.drafted else ""
        print(
            f"{c.kind:<11} {c.context:>7} {c.thought_length:>3} {c.plain * 1e3:>12.1f}  {one:<21} {ahead:<21} "
            f"{c.accepted} of {c.drafted}{share}{parted}"
        )
    if report.row_cost is not None:
        r = report.row_cost
        print(f"one more row adds {r.middle:.4f} ({r.lowest:.4f} to {r.highest:.4f}) of a pass over one row")
    if t := report.throughput:
        print(
            f"{t['prompts']} prompts at once: {t['together']:.1f} tokens/s, one at a time {t['alone']:.1f}: "
            f"{t['ratio']['middle']:.2f} x ({t['ratio']['lowest']:.2f} to {t['ratio']['highest']:.2f})"
        )
    if report.couplings:
        print("share of drafted tokens accepted at temperature 1: the most possible, as here, by inverse CDF; greedy")
    for a in report.couplings:
        print(f"{a.kind:<11} w {a.weight:<5} {a.best:7.1%} {a.raced:7.1%} {a.inverse:7.1%} {a.greedy:7.1%}")
    if report.memory:
        one_mb, ahead_mb = report.memory["one_by_one"], report.memory["speculative"]
        print(f"peak memory, whole process: one by one {one_mb:.0f} MB, speculative {ahead_mb:.0f} MB")


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
