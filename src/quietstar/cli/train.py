"""`quietstar train`: teach a model to think by a recipe."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from quietstar.cli import options
from quietstar.errors import QuietStarError

if TYPE_CHECKING:
    from quietstar.training.progress import ProgressDisplay
    from quietstar.training.recipe import Recipe
    from quietstar.training.trainer import ThoughtTrainer

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True}


def train(
    context: typer.Context,
    recipe: Annotated[
        str | None, typer.Argument(metavar="RECIPE", help="A YAML file, or a preset such as paper or smoke.")
    ] = None,
    print_recipe: Annotated[
        str | None, typer.Option("--print-recipe", metavar="PRESET", help="Print a complete recipe and leave.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from the newest checkpoint in the run's folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Remove the run that is in the folder and begin anew.")
    ] = False,
    device: options.Device = "auto",
    threads: options.Threads = None,
) -> None:
    """Train markers, mixing head and an adapter (or all weights) so that thoughts help to predict the text.

    Every key of the recipe can be given as a flag: --optimizer.steps 50 --data.train my.jsonl. The run's folder (key
    "out") gets the whole recipe, log.jsonl, checkpoints, and the finished model in "model".
    """
    from quietstar.engine import threads as threads_
    from quietstar.training import recipe as recipes

    overrides = _overrides(context.args)
    if print_recipe is not None:
        print(recipes.load(print_recipe, overrides).to_yaml(), end="")
        return
    if recipe is None:
        raise QuietStarError(
            f"which recipe? give a YAML file or one of {', '.join(recipes.PRESETS)}; --print-recipe PRESET prints one"
        )
    chosen = recipes.load(recipe, overrides)
    threads_.use(threads)
    run(chosen, resume, None if device == "auto" else device, overwrite)


def run(recipe: object, resume: bool, device: str | None, overwrite: bool = False) -> None:
    """Train by a recipe and save the finished model.

    Raises:
        QuietStarError: wrong data, model or recipe; a folder that cannot be written to, or that holds another run.
    """
    options.quiet()

    from quietstar.training import folder
    from quietstar.training.progress import ProgressDisplay
    from quietstar.training.recipe import Recipe

    assert isinstance(recipe, Recipe)
    if resume and overwrite:
        raise QuietStarError("--resume goes on with a run and --overwrite removes it; give one of them")
    out, display = Path(recipe.out), ProgressDisplay()
    first = int(os.environ.get("RANK", "0")) == 0
    with folder.held(out) if first else contextlib.nullcontext():
        start = folder.to_resume(out, display.say if first else lambda line: None) if resume else None
        if resume and start is None and first:
            display.say(f"no checkpoint had been saved yet in {out}; beginning with the first step")
        if overwrite and first:
            folder.empty(out)
        if not resume and first and (there := folder.occupied(out)):
            raise QuietStarError(
                f"{out} has a run already ({', '.join(there)}); go on with --resume, or choose another folder with "
                "--out, or remove it with --overwrite"
            )
        try:
            _train(recipe, start, device, display)
        finally:
            display.stop()
            _leave_the_group()


def _train(recipe: Recipe, start: str | None, device: str | None, display: ProgressDisplay) -> None:
    from quietstar.training.folder import last_checkpoint
    from quietstar.training.run_log import Log
    from quietstar.training.trainer import ThoughtTrainer

    trainer = ThoughtTrainer.from_recipe(recipe, device=device, callbacks=[display, Log(recipe.out)])
    display.trainer = trainer
    main = trainer.args.process_index == 0
    if main:
        for note in trainer.notes:
            display.say(f"note: {note}")
        display.say(
            f"{len(trainer.train_dataset)} spans of up to {recipe.data.length} tokens, "
            f"{sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6:.2f} million weights learn"
        )
    with _stopped_by_signals(trainer, display.say if main else lambda line: None) as came:
        try:
            trainer.train(resume_from_checkpoint=start)
        except KeyboardInterrupt:
            last = last_checkpoint(recipe.out)
            if main:
                display.say(f"stopped; {f'{last} is whole, go on from it' if last else 'begin anew'} with --resume")
            raise
        if trainer.stopped:
            if main:
                step, steps = trainer.state.global_step, recipe.optimizer.steps
                display.say(f"stopped after step {step} of {steps}; go on with the same command and --resume")
            raise typer.Exit(128 + came[0])
        if trainer.was_finished and trainer.has_final():
            if main:
                display.say(f"{Path(recipe.out) / 'model'} is the finished model; nothing was changed")
            return
        saved = trainer.save_final()
    if main:
        print(f'saved {saved}; use it: quietstar think --model {saved} "..."', file=sys.stderr)


@contextlib.contextmanager
def _stopped_by_signals(trainer: ThoughtTrainer, say: Callable[[str], None]) -> Iterator[list[int]]:
    """Let Ctrl-C and SIGTERM end the run with a checkpoint after the step it is in; a second one ends it at once."""
    came: list[int] = []

    def told(number: int, _: object) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(number)
        trainer.stopping = True
        say("stopping after this step with a checkpoint; once more to stop at once")

    if threading.current_thread() is not threading.main_thread():  # signals reach the main thread alone
        yield came
        return
    before = {number: signal.signal(number, told) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_the_group() -> None:
    """Close the connections of several processes; their threads would otherwise be torn down at exit."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def _overrides(words: list[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise QuietStarError(f"unexpected argument {word!r}; keys of the recipe are flags: --optimizer.steps 50")
        options.check_text(word, "a key of the recipe")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise QuietStarError(f"--{key} needs a value")
            value = rest.pop(0)
        options.check_text(value, f"--{key}")
        found.append((key.replace("-", "_"), value))
    return found
