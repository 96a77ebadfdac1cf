"""`quietstar think`: ask, and read what the model thought before each word."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from quietstar.cli import options, recording
from quietstar.cli.status import Status
from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.events import Event


def think(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="The prompt; read from standard input when left out or -.")
    ] = None,
    model: options.Model = "default",
    thought_length: options.ThoughtLength = None,
    samples: options.Samples = 1,
    trigger: Annotated[
        str,
        typer.Option(
            metavar="RULE",
            help="When to think: always, never, random:P, weight:W, entropy:H, marker, every:K; join with 'or', 'and'.",
        ),
    ] = "always",
    control: options.Control = "own",
    mixing_weight: options.MixingWeight = None,
    thought_temperature: options.ThoughtTemperature = None,
    temperature: Annotated[float, typer.Option(metavar="X", help="Temperature of the answer; 0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(metavar="X", help="Nucleus sampling of the answer, above 0 to 1.")] = 1.0,
    max_new_tokens: Annotated[
        int, typer.Option("--max-new-tokens", "-n", metavar="N", help="Most tokens of the answer.")
    ] = 128,
    speculate: Annotated[
        str,
        typer.Option(
            metavar="K",
            help="Draft K tokens and think about them together; in fp32 the output is the same. 0 thinks one by one.",
        ),
    ] = "auto",
    seed: options.Seed = 0,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End the answer before this text; may be repeated.")
    ] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Continue the prompt as it is, without the chat template.")
    ] = False,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    reason_then_answer: Annotated[
        bool, typer.Option("--reason-then-answer", help="Reason step by step aloud, then a forced short answer.")
    ] = False,
    reason_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Opens the reasoning [Let's think step by step.].")
    ] = None,
    answer_prompt: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Forces the answer [Therefore, the answer is].")
    ] = None,
    answer_tokens: Annotated[int, typer.Option(metavar="N", help="Longest forced answer.")] = 16,
    show: Annotated[int, typer.Option(metavar="N", help="Print the N most influential thoughts below.")] = 8,
    all_: Annotated[bool, typer.Option("--all", help="Print all thoughts below, in order.")] = False,
    live: Annotated[bool, typer.Option("--live", help="Print each thought as it happens, one token a line.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one event a line, for pipes.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the answer only.")] = False,
    db: options.Db = None,
    no_record: Annotated[
        bool, typer.Option("--no-record", help="Do not keep this run; QUIETSTAR_DB=off keeps none.")
    ] = False,
    dtype: options.Dtype = "auto",
    device: options.Device = "auto",
    quantize: options.Quantize = None,
    threads: options.Threads = None,
) -> None:
    """Ask a language model something and read what it thought before each word.

    A position where the model thought is marked: · before the word, ◆ where the likeliest word changed. Below, each
    thought stands in braces behind its context, with the mixing weight w, how far it moved the prediction (KL), and the
    likeliest next token without it, with it, and from it alone. Thoughts within the noise floor (what rounding alone
    makes of these numbers) are no change and listed by --all only.

    The run is kept, with all its thoughts, in a file on this machine: `quietstar runs` lists what is there.
    """
    if sum((live, as_json, quiet)) > 1:
        raise QuietStarError("give at most one of --live, --json and --quiet")
    if show < 0:
        raise QuietStarError(f"--show must be at least 0, got {show}")
    prompt = _prompt(prompt)
    recorder = recording.start(db, no_record)

    from quietstar.inference.generation import GenerationSettings

    settings = GenerationSettings(
        thought_length=thought_length,
        samples=samples,
        trigger=trigger,
        control=control,
        temperature=temperature,
        top_p=top_p,
        thought_temperature=thought_temperature,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=tuple(stop or ()),
        mixing_weight=mixing_weight,
        speculate=speculate,
    )
    status = Status(quiet or as_json)
    with status:
        thinker = options.load(model, dtype, device, quantize, threads=threads, status=status)
    if reason_then_answer:
        from quietstar.api import ANSWER_PROMPT, REASON_PROMPT

        events = thinker.reason_then_answer(
            prompt,
            raw=raw,
            system=system,
            settings=settings,
            answer_tokens=answer_tokens,
            reason_prompt=REASON_PROMPT if reason_prompt is None else reason_prompt,
            answer_prompt=ANSWER_PROMPT if answer_prompt is None else "\n" + answer_prompt,
        )
    else:
        events = thinker.stream(prompt, raw=raw, system=system, settings=settings)
    events = _told(events, status)
    if recorder is not None:
        events = recorder.record(events)
    interrupted = False
    try:
        if as_json:
            interrupted = _print_json(events)
        else:
            from quietstar.cli.render import Screen

            screen = Screen(live=live, quiet=quiet, show=None if all_ else show)
            try:
                for event in events:
                    screen.event(event)
            except KeyboardInterrupt:
                interrupted = True
    finally:
        status.clear()
        if recorder is not None:
            recorder.close()
    again = recording.finish(recorder, db, model)
    if not as_json:
        screen.finish(interrupted, again)
    elif again:
        print(again, file=sys.stderr)
    if interrupted:
        raise KeyboardInterrupt


def _told(events: Iterator[Event], status: Status) -> Iterator[Event]:
    """Pass events on; while none comes after a start, tell what is being done."""
    from quietstar.events import Start

    for event in events:
        status.clear()
        yield event
        if isinstance(event, Start):
            status("reading the prompt and thinking")


def _prompt(given: str | None) -> str:
    if given is None or given == "-":
        if sys.stdin is None or sys.stdin.isatty():
            raise QuietStarError('there is no prompt; give one, as in: quietstar think "Why is the sky blue?"')
        given = options.decoded(sys.stdin.buffer.read(), "the prompt")
    else:
        given = options.argument(given, "the prompt")
    if not given.strip():
        raise QuietStarError("the prompt is empty; give at least one word")
    return given


def _print_json(events: Iterator[Event]) -> bool:
    """One event a line, flushed at once; after Ctrl-C an `end` event of reason "interrupted". True if interrupted."""
    from quietstar.events import End, Start, Trace

    trace: Trace | None = None
    try:
        for event in events:
            with options.uninterrupted():  # a line is printed and recorded whole or not at all
                print(options.to_json(event.to_dict()), flush=True)
                if isinstance(event, Start):
                    trace = Trace(event)
                elif trace is not None:
                    trace.add(event)
    except KeyboardInterrupt:
        if trace is not None and trace.end is None:
            end = End(0, "interrupted", trace.text, len(trace.tokens), len(trace.thoughts), 0.0)
            print(options.to_json(end.to_dict()), flush=True)
        return True
    return False
