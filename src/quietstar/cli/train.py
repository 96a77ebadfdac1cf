"""`quietstar train`: teach a model to think by a recipe."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from quietstar.cli import options
from quietstar.errors import QuietStarError

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
    device: options.Device = "auto",
) -> None:
    """Train markers, mixing head and an adapter (or all weights) so that thoughts help to predict the text.

    Every key of the recipe can be given as a flag: --optimizer.steps 50 --data.train my.jsonl. The run's folder (key
    "out") gets the whole recipe, log.jsonl, checkpoints, and the finished model in "model".
    """
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
    run(chosen, resume, None if device == "auto" else device)


def run(recipe: object, resume: bool, device: str | None) -> None:
    """Train by a recipe and save the finished model."""
    options.quiet()

    from quietstar.training.live import Live, Log
    from quietstar.training.recipe import Recipe
    from quietstar.training.trainer import RECIPE, ThoughtTrainer, last_checkpoint

    assert isinstance(recipe, Recipe)
    out = Path(recipe.out)
    start = last_checkpoint(out) if resume else None
    if resume and start is None:
        raise QuietStarError(f"there is no whole checkpoint in {out} to go on from; leave --resume out to begin anew")
    if not resume and last_checkpoint(out) is not None:
        raise QuietStarError(
            f"{out} has checkpoints of a run; go on with --resume, or choose another folder with --out"
        )
    live = Live()
    trainer = ThoughtTrainer.from_recipe(recipe, device=device, callbacks=[live, Log(out)])
    live.trainer = trainer
    for note in trainer.notes:
        live.say(f"note: {note}")
    main = trainer.args.process_index == 0
    if main:
        out.mkdir(parents=True, exist_ok=True)
        (out / RECIPE).write_text(recipe.to_yaml(), encoding="utf-8")
        live.say(
            f"{len(trainer.train_dataset)} spans of up to {recipe.data.length} tokens, "
            f"{sum(p.numel() for p in trainer.model.parameters() if p.requires_grad) / 1e6:.2f} million weights learn"
        )
    try:
        trainer.train(resume_from_checkpoint=start)
    except KeyboardInterrupt:
        last = last_checkpoint(out)
        live.say(f"stopped; {'go on from ' + last + ' with --resume' if last else 'no checkpoint had been saved yet'}")
        raise
    finally:
        live.stop()
    trainer.save_model(str(out / "model"))
    if main:
        print(f'saved {out / "model"}; use it: quietstar think --model {out / "model"} "..."', file=sys.stderr)


def _overrides(words: list[str]) -> list[tuple[str, str]]:
    """`--a.b value` and `--a.b=value` as pairs."""
    found, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise QuietStarError(f"unexpected argument {word!r}; keys of the recipe are flags: --optimizer.steps 50")
        key, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise QuietStarError(f"--{key} needs a value")
            value = rest.pop(0)
        found.append((key.replace("-", "_"), value))
    return found
