"""Recipes: everything that decides a training run, in one file of plain keys, with presets.

A recipe is a YAML file with sections; every key can be given as a flag (`--optimizer.learning_rate 1e-4`). A key that
does not exist is refused with the nearest name. The recipe is written whole into the run's folder.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from quietstar.errors import QuietStarError
from quietstar.training.data import DataConfig
from quietstar.training.step import StepConfig

PRESETS = ("paper", "default-model", "default-model-2", "smoke")


@dataclass(frozen=True)
class WeightsConfig:
    """Which weights learn.

    Args:
        train: "full" (all of the base, kept in fp32), "lora" (an adapter through PEFT) or "head" (markers and mixing
            head only). Markers and head learn in every case.
        rank, alpha, dropout: of the adapter. targets: its layers, "all-linear" or names such as q_proj.
        weight_floor: w is never below this, in training and after; 0 is none.
    """

    train: str = "lora"
    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: tuple[str, ...] = ("all-linear",)
    weight_floor: float = 0.0

    def __post_init__(self) -> None:
        if self.train not in ("full", "lora", "head"):
            raise QuietStarError(f"train must be full, lora or head; got {self.train!r}")
        if self.rank < 1:
            raise QuietStarError(f"rank must be at least 1, got {self.rank}")
        if not 0 <= self.weight_floor < 1:
            raise QuietStarError(f"weight_floor must be from 0 to below 1, got {self.weight_floor}")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW and its schedule.

    Args:
        learning_rate: of base or adapter. head_learning_rate: of markers and mixing head; the same when 0.
        steps: optimizer steps. warmup: steps of linear warm-up. schedule: a scheduler of transformers.
        batch: sequences a process reads at once. accumulate: such batches a step.
        weight_decay, clip, beta1, beta2: as in AdamW; clip is the largest gradient norm.
    """

    learning_rate: float = 1e-4
    head_learning_rate: float = 0.0
    steps: int = 100
    warmup: int = 10
    schedule: str = "constant_with_warmup"
    batch: int = 1
    accumulate: int = 8
    weight_decay: float = 0.001
    clip: float = 1.0
    beta1: float = 0.9
    beta2: float = 0.999

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "accumulate"):
            if getattr(self, name) < 1:
                raise QuietStarError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.learning_rate > 0:
            raise QuietStarError(f"learning_rate must be above 0, got {self.learning_rate}")


@dataclass(frozen=True)
class WatchConfig:
    """What is told and kept while training.

    Args:
        log_every: steps between log lines. save_every: steps between checkpoints; 0 is none but the last.
        keep: how many checkpoints stay. evaluate_every: steps between held-out evaluations; 0 is none.
        documents, tokens: how many held-out documents are scored, and how many tokens of each at most.
        controls: what stands in a thought's place in them.
        report_to: loggers of transformers (tensorboard, wandb, trackio, ...); the run's own log is always written.
    """

    log_every: int = 1
    save_every: int = 20
    keep: int = 2
    evaluate_every: int = 50
    documents: int = 16
    tokens: int = 96
    controls: tuple[str, ...] = ("filler", "donor")
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """A whole training run.

    Args:
        model: the base model, or a thinking model to train on. out: the run's folder.
        seed: of data order, thoughts and initial weights. precision: "bf16" or "fp32" arithmetic; trained weights are
            kept in fp32 in either case.
        thought_length_schedule, lookahead_schedule: {step: value} that replace `thinking.thought_length` and
            `thinking.objective.lookahead` from that step on.
    """

    model: str = "default"
    out: str = "runs/quietstar"
    seed: int = 0
    precision: str = "bf16"
    data: DataConfig = field(default_factory=DataConfig)
    weights: WeightsConfig = field(default_factory=WeightsConfig)
    thinking: StepConfig = field(default_factory=StepConfig)
    thought_length_schedule: Mapping[int, int] = field(default_factory=dict)
    lookahead_schedule: Mapping[int, int] = field(default_factory=dict)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    watch: WatchConfig = field(default_factory=WatchConfig)

    def __post_init__(self) -> None:
        if self.precision not in ("bf16", "fp32"):
            raise QuietStarError(f"precision must be bf16 or fp32, got {self.precision!r}")

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
        """The recipe as a file that gives it again."""
        return yaml.safe_dump(_plain(asdict(self)), sort_keys=False, allow_unicode=True)


def _at(schedule: Mapping[int, int], step: int, otherwise: int) -> int:
    begun = [start for start in schedule if start <= step]
    return schedule[max(begun)] if begun else otherwise


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, (list, tuple)) else value


def preset(name: str) -> Recipe:
    """A recipe that comes with the package.

    Raises:
        QuietStarError: no such preset.
    """
    if name not in PRESETS:
        near = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise QuietStarError(f"unknown preset {name!r}; {hint}presets: {', '.join(PRESETS)}")
    text = (
        resources.files("quietstar.training").joinpath("presets").joinpath(f"{name}.yaml").read_text(encoding="utf-8")
    )
    return from_mapping(yaml.safe_load(text), name)


def load(source: str, overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """A recipe from a YAML file or the name of a preset, with keys such as "optimizer.steps" overridden.

    Raises:
        QuietStarError: no such file or preset, broken YAML, an unknown key, a wrong value.
    """
    path = Path(source)
    if path.suffix not in (".yaml", ".yml") and not path.exists():
        recipe = preset(source)
    else:
        try:
            raw = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise QuietStarError(f"cannot read the recipe {source}: {error.strerror}") from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise QuietStarError(f"the recipe {source} is not valid YAML: {' '.join(str(error).split())}") from error
        recipe = from_mapping({} if raw is None else raw, source)
    nested: dict[str, Any] = {}
    for key, text in overrides:
        *sections, last = key.split(".")
        where = nested
        for section in sections:
            where = where.setdefault(section, {})
        try:
            where[last] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise QuietStarError(f"--{key}: {text!r} is not a value") from error
    return _overlay(recipe, nested, "")


def from_mapping(raw: Any, where: str) -> Recipe:
    """A recipe from plain Python, as YAML gives it; what is not named keeps its default."""
    if not isinstance(raw, Mapping):
        raise QuietStarError(f"the recipe {where} should hold keys and values")
    recipe: Recipe = _overlay(Recipe(), raw, "")
    return recipe


def key_names(config: Any = None, prefix: str = "") -> list[str]:
    """All keys of a recipe, dotted."""
    config = Recipe() if config is None else config
    found: list[str] = []
    for one in fields(config):
        value = getattr(config, one.name)
        found += key_names(value, f"{prefix}{one.name}.") if is_dataclass(value) else [prefix + one.name]
    return found


def _overlay(config: Any, raw: Mapping[str, Any], prefix: str) -> Any:
    """`config` with the values of `raw`, checked and converted."""
    kinds = typing.get_type_hints(type(config))
    changed: dict[str, Any] = {}
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if key not in kinds:
            every = key_names()
            near = difflib.get_close_matches(name, every, n=1, cutoff=0.5) or [
                one for one in every if one.rpartition(".")[2] == str(key)
            ]
            hint = f"; did you mean {near[0]!r}?" if near else f"; keys: {', '.join(every)}"
            raise QuietStarError(f"unknown recipe key {name!r}{hint}")
        current = getattr(config, key)
        if is_dataclass(current):
            if not isinstance(value, Mapping):
                raise QuietStarError(f"{name} is a section with keys of its own, got {value!r}")
            changed[key] = _overlay(current, value, f"{name}.")
        else:
            changed[key] = _converted(name, value, kinds[key])
    try:
        return replace(config, **changed)
    except QuietStarError as error:
        raise QuietStarError(f"{prefix}{error}") from error


def _converted(name: str, value: Any, kind: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin is tuple:
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, (list, tuple)) or not all(isinstance(one, str) for one in values):
            raise QuietStarError(f"{name} must be a list of texts, got {value!r}")
        return tuple(values)
    if origin is not None and issubclass(origin, Mapping) and typing.get_args(kind)[0] is str:
        if not isinstance(value, Mapping):
            raise QuietStarError(f"{name} must map fields to lists of values, as in {{license: [MIT]}}; got {value!r}")
        return {str(key): _converted(f"{name}.{key}", values, tuple[str, ...]) for key, values in value.items()}
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(
            isinstance(k, int) and isinstance(v, int) and k >= 0 and v >= 0 for k, v in value.items()
        ):
            raise QuietStarError(f"{name} must map steps to whole numbers, as in {{0: 12, 50: 8}}; got {value!r}")
        return dict(value)
    if kind is float and isinstance(value, str):  # YAML reads 1e-6 as a text
        try:
            return float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(kind, types.UnionType) or not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        words = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
        raise QuietStarError(f"{name} must be {words.get(kind, kind)}, got {value!r}")
    return value
