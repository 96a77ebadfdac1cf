"""The options of `QuietStar`'s methods as typed dictionaries, so that type checkers and editors know each by name.

They repeat the fields of `GenerationSettings` for callers; tests/test_typed_calls.py holds the two equal. What the
options mean and which values are allowed stands in `GenerationSettings`, which checks them.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from typing_extensions import TypedDict

from quietstar.inference.controls import Control
from quietstar.inference.generation import GenerationSettings
from quietstar.inference.triggers import Trigger


class GenerationOptions(TypedDict, total=False):
    """The fields of `GenerationSettings`."""

    thought_length: int | None
    samples: int
    trigger: str | Trigger
    control: str | Control
    temperature: float
    top_p: float
    thought_temperature: float | None
    max_new_tokens: int
    seed: int
    stop: str | Sequence[str]
    stop_ids: Sequence[int] | None
    mixing_weight: float | None
    show: int
    speculate: int | str


class StreamOptions(GenerationOptions, total=False):
    """What `stream` and `generate` take beside the prompt."""

    raw: bool
    system: str | None
    attention_mask: Tensor | None
    thoughts: Tensor | None
    settings: GenerationSettings | None


class ResampleOptions(TypedDict, total=False):
    """What `resample` takes beside position, number and text."""

    thought_length: int | None
    thought_temperature: float
    seed: int
    control: str | Control
    mixing_weight: float | None
    thoughts: Tensor | Sequence[Sequence[int]] | None
    show: int
