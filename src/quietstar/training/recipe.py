"""Recipes: all settings of a training run in one YAML file, with presets.

A recipe is a YAML file with sections; every key can be given as a flag (`--optimizer.learning_rate 1e-4`). A key that
does not exist is refused with the nearest name. The complete recipe is written into the run's folder.
"""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from quietstar import arguments, settings
from quietstar.errors import QuietStarError
from quietstar.inference.controls import Control
from quietstar.settings import BelowOne, Count, Positive, Schedule, Text, Texts, Weight, Whole, checked
from quietstar.training import plain_yaml
from quietstar.training.data import DataConfig
from quietstar.training.step import StepConfig

PRESETS = ("paper", "default-model", "default-model-2", "smoke")
Scheduler = Literal[
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
]
_SEEDS = 2**32  # as many as NumPy takes


@checked
@dataclass(frozen=True)
class WeightsConfig:
    """Which weights learn.

    Args:
        train: "full" (all of the base, kept in fp32), "lora" (an adapter through PEFT) or "head" (markers and mixing
            head only). Markers and head learn in every case.
        rank, alpha, dropout: of the adapter. targets: its layers, "all-linear" or names such as q_proj.
        weight_floor: w is never below this, in training and after; 0 is none.
    """

    train: Literal["full", "lora", "head"] = "lora"
    rank: Count = 16
    alpha: Positive = 32.0
    dropout: BelowOne = 0.0
    targets: Texts = ("all-linear",)
    weight_floor: BelowOne = 0.0

    def __post_init__(self) -> None:
        if not self.targets:
            raise QuietStarError("targets must name at least one layer, or all-linear")


@checked
@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Args:
        learning_rate: of base or adapter. head_learning_rate: of markers and mixing head; the same when 0.
        steps: optimizer steps. warmup: steps of linear warm-up. schedule: a scheduler of transformers.
        batch: sequences a process reads at once. accumulate: such batches a step.
        weight_decay, clip, beta1, beta2: as in AdamW; clip is the largest gradient norm, 0 is no limit.
    """

    learning_rate: Positive = 1e-4
    head_learning_rate: Weight = 0.0
    steps: Count = 100
    warmup: Whole = 10
    schedule: Scheduler = "constant_with_warmup"
    batch: Count = 1
    accumulate: Count = 8
    weight_decay: Weight = 0.001
    clip: Weight = 1.0
    beta1: BelowOne = 0.9
    beta2: BelowOne = 0.999


@checked
@dataclass(frozen=True)
class WatchConfig:
    """What is reported and kept while training.

    Args:
        log_every: steps between log lines. save_every: steps between checkpoints; 0 is none but the last.
        keep: number of checkpoints kept. evaluate_every: steps between held-out evaluations; 0 is none.
        documents, tokens: how many held-out documents are scored, and how many tokens of each at most.
        controls: the controls that these are scored with.
        report_to: loggers of transformers (tensorboard, wandb, trackio, ...); the run's own log is always written.
    """

    log_every: Count = 1
    save_every: Whole = 20
    keep: Count = 2
    evaluate_every: Whole = 50
    documents: Whole = 16
    tokens: Annotated[Count, Field(ge=2)] = 96
    controls: Texts = ("filler", "donor")
    report_to: Texts = ()

    def __post_init__(self) -> None:
        for name in self.controls:
            Control.parse(name)


@checked
@dataclass(frozen=True)
class Recipe:
    """Everything that decides a training run.

    Args:
        model: the base model, or a thinking model to train on. out: the run's folder.
        seed: of data order, thoughts and initial weights. precision: "bf16" or "fp32" arithmetic; trained weights are
            kept in fp32 in either case.
        thought_length_schedule, lookahead_schedule: {step: value} that replace `thinking.thought_length` and
            `thinking.objective.lookahead` from that step on.
    """

    model: Text = "default"
    out: Text = "runs/quietstar"
    seed: Annotated[Whole, Field(lt=_SEEDS)] = 0
    precision: Literal["bf16", "fp32"] = "bf16"
    data: DataConfig = field(default_factory=DataConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    thinking: StepConfig = field(default_factory=StepConfig)
    thought_length_schedule: Schedule = field(default_factory=dict)
    lookahead_schedule: Schedule = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        for step, ahead in self.lookahead_schedule.items():
            if ahead < 1:
                raise QuietStarError(f"lookahead_schedule.{step} must be at least 1, got {ahead}")

    def thinking_at(self, step: int) -> StepConfig:
        """The step's configuration, schedules applied."""
        thinking = self.thinking
        if self.thought_length_schedule:
            thinking = replace(
                thinking, thought_length=_at(self.thought_length_schedule, step, thinking.thought_length)
            )
        if self.lookahead_schedule:
            ahead = _at(self.lookahead_schedule, step, thinking.objective.lookahead)
            thinking = replace(thinking, objective=replace(thinking.objective, lookahead=ahead))
        return thinking

    def to_yaml(self) -> str:
        """The recipe as YAML that `load` reads back."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)


def _at(schedule: Mapping[int, int], step: int, otherwise: int) -> int:
    begun = [start for start in schedule if start <= step]
    return schedule[max(begun)] if begun else otherwise


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


@arguments.checked
def preset(name: str) -> Recipe:
    """A recipe that comes with the package.

    Raises:
        QuietStarError: no such preset.
    """
    return from_mapping(_preset(name), name)


def _preset(name: str) -> dict[str, Any]:
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise QuietStarError(f"unknown preset {settings.shown(name)}; {hint}presets: {', '.join(PRESETS)}")
    file = resources.files("quietstar.training").joinpath("presets").joinpath(f"{name}.yaml")
    found: dict[str, Any] = plain_yaml.read(file.read_text(encoding="utf-8"))
    return found


@arguments.checked
def load(source: str, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """A recipe from a YAML file or the name of a preset, with keys such as "optimizer.steps" overridden.

    Raises:
        QuietStarError: no such file or preset, broken YAML, an unknown key, a wrong value.
    """
    try:
        path = Path(source)
        is_file = path.suffix in (".yaml", ".yml") or path.exists()
        raw = plain_yaml.load(path) if is_file else _preset(source)
    except plain_yaml.NotPlain as error:
        raise QuietStarError(f"the recipe {settings.clean(source)} is not valid YAML: {error}") from error
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        if isinstance(error, QuietStarError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise QuietStarError(f"cannot read the recipe {settings.shown(source)}: {reason}") from error
    recipe = from_mapping({} if raw is None else raw, source)
    if not overrides:
        return recipe
    nested: Any = copy.deepcopy(raw or {})
    for key, text in overrides:
        _put(nested, key, text)
    return from_mapping(nested, source)


def _put(raw: dict[str, Any], key: str, text: str) -> None:
    """Set a dotted key to what a flag says."""
    try:
        value = plain_yaml.read(text)
    except plain_yaml.NotPlain as error:
        raise QuietStarError(f"--{settings.clean(key)}: {settings.shown(text)} is not a value: {error}") from error
    *sections, last = key.split(".")
    where = raw
    for depth, section in enumerate(sections, start=1):
        where = where.setdefault(section, {})
        if not isinstance(where, dict):
            name = settings.clean(".".join(sections[:depth]))
            reason = f"{name} has the value {settings.shown(where)}, and no keys below it"
            raise QuietStarError(f"--{settings.clean(key)}: {reason}")
    where[last] = value


@arguments.checked
def from_mapping(raw: Any, where: str) -> Recipe:
    """A recipe from plain Python, as YAML gives it; what is not named keeps its default.

    Raises:
        QuietStarError: an unknown key, a wrong type or value; names key, value and what is allowed.
    """
    if not isinstance(raw, Mapping):
        raise QuietStarError(f"the recipe {settings.clean(where)} should hold keys and values")
    return settings.build(Recipe, raw, "recipe key")


def key_names() -> list[str]:
    """All keys of a recipe, dotted."""
    return settings.key_names(Recipe)


@arguments.checked
def flat(recipe: Recipe) -> dict[str, Any]:
    """{dotted key: value} of a recipe, as plain JSON gives it back."""
    plain = _plain(asdict(recipe))

    def value(key: str) -> Any:
        where = plain
        for part in key.split("."):
            where = where[part]
        return {str(k): v for k, v in where.items()} if isinstance(where, dict) else where

    return {key: value(key) for key in key_names()}
