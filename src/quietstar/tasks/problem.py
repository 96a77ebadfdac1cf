"""A problem whose steps are known, and what every generator of problems gets: randomness of its own, and a wording.

Knows text; knows nothing about models, tokenizers or files.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

TRAIN, HELDOUT = "train", "heldout"
SPLITS = (TRAIN, HELDOUT)

T = TypeVar("T")


@dataclass(frozen=True)
class Problem:
    """A question with the steps that lead to its answer.

    Args:
        task: name of its generator. split: "train" or "heldout" wording. steps: how many steps the answer needs.
        prompt: the question. thought: the true steps, as a thought may hold them. answer: what is right to say.
    """

    task: str
    split: str
    steps: int
    prompt: str
    thought: str
    answer: str

    def to_dict(self) -> dict[str, Any]:
        """Plain Python, ready for a line of JSON; the columns that `quietstar train` reads."""
        return asdict(self)


class Draw:
    """Random choices for one problem, a pure function of its keys, the same on every Python and machine.

    Args:
        keys: what the choices depend on: seed, task, split, number of the problem.
    """

    def __init__(self, *keys: object) -> None:
        self._uniform = random.Random(":".join(map(str, keys))).random

    def one(self, options: Sequence[T]) -> T:
        """One of the options, evenly."""
        return options[self.below(len(options))]

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1, evenly."""
        return int(self._uniform() * limit)

    def between(self, low: int, high: int) -> int:
        """A whole number from `low` to `high`, both included, evenly."""
        return low + self.below(high - low + 1)

    def order(self, options: Sequence[T]) -> list[T]:
        """The options in random order."""
        return sorted(options, key=lambda _: self._uniform())


Generator = Callable[[Draw, int, str], Problem]
