"""Triggers: the rule that decides whether to think at a position, before any thought is computed.

always · never · random(p) · weight(threshold) · entropy(threshold) · marker · every(k), alone or combined: `a | b` (or
`a or b`) thinks where either rule fires, `a & b` (or `a and b`) where both do; & binds tighter. `name:x` may stand for
`name(x)`, so that a shell needs no quotes.

Another package adds a rule through the entry point group `quietstar.triggers`: the entry point's name is the rule's,
and it points to a subclass of `Rule`. Knows base predictions and positions; knows nothing about thoughts.
"""

from __future__ import annotations

import difflib
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from quietstar.arguments import checked, shown
from quietstar.engine.sampling import TRIGGER, best, entropy, uniforms
from quietstar.errors import QuietStarError
from quietstar.inference.registry import Registry


@dataclass
class Moment:
    """What is known at M positions (of any sequences) before thinking.

    Args:
        logits: base logits (M, V) in fp32, markers not banned.
        weight: computes the mixing weight w(h, h) of the base states with themselves, (M,).
        step: (M,) how many tokens were emitted before this one.
        sequence, position: (M,) where; with `seed` the keys of random numbers.
        marker_id: vocabulary row of the start marker, or None.
    """

    logits: Tensor
    weight: Callable[[], Tensor]
    step: list[int]
    sequence: list[int]
    position: list[int]
    seed: int
    marker_id: int | None


@dataclass(frozen=True)
class Rule(ABC):
    """One rule with its number, e.g. weight(0.05). A subclass sets the class attributes and says when it fires.

    Args:
        number: the number in parentheses, within `limits`; 0 where the rule takes none.
    """

    number: float = 0.0

    name: ClassVar[str]
    number_name: ClassVar[str | None] = None  # stands for the number in messages; None: the rule takes no number
    limits: ClassVar[tuple[float, float]] = (-math.inf, math.inf)  # lowest and highest number
    whole: ClassVar[bool] = False  # True: the number must be whole
    example: ClassVar[str] = "0.05"  # a number for messages
    needs_marker: ClassVar[bool] = False  # True: it works only with a vocabulary that has a start marker

    def __str__(self) -> str:
        return self.name if self.number_name is None else f"{self.name}({self.number:g})"

    @abstractmethod
    def fires(self, moment: Moment) -> list[bool]:
        """Whether to think, one answer for each of the M positions."""

    @classmethod
    def read(cls, given: str | None) -> Rule:
        """The rule with its number as text, None where none is given.

        Raises:
            QuietStarError: the number is missing, not wanted, or not allowed.
        """
        if cls.number_name is None:
            if given is not None:
                raise QuietStarError(f"trigger {cls.name!r} takes no number, got {shown(given)}")
            return cls()
        if given is None:
            raise QuietStarError(f"trigger {cls.name!r} needs a number, as in {cls.name}({cls.example})")
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        lowest, highest = cls.limits
        if not lowest <= number <= highest or math.isinf(number) or (cls.whole and number != int(number)):
            kind = "a whole number" if cls.whole else "a number"
            raise QuietStarError(
                f"trigger {cls.name!r} needs {kind} from {lowest:g} to {highest:g}, got {shown(given)}"
            )
        return cls(number)


RULES: Registry[Rule] = Registry(Rule, "trigger", "quietstar.triggers")  # type: ignore[type-abstract]


@RULES.add
class Always(Rule):
    """Think at every position."""

    name = "always"

    def fires(self, moment: Moment) -> list[bool]:
        return [True] * len(moment.position)


@RULES.add
class Never(Rule):
    """Think nowhere."""

    name = "never"

    def fires(self, moment: Moment) -> list[bool]:
        return [False] * len(moment.position)


@RULES.add
class Random(Rule):
    """Think with probability p."""

    name, number_name, limits = "random", "p", (0.0, 1.0)

    def fires(self, moment: Moment) -> list[bool]:
        drawn = uniforms(moment.seed, TRIGGER, moment.sequence, moment.position)
        return [bool(u < self.number) for u in drawn]


@RULES.add
class Weight(Rule):
    """Think where the mixing head, given the base state for both of its inputs, is above a threshold."""

    name, number_name = "weight", "threshold"

    def fires(self, moment: Moment) -> list[bool]:
        return [w > self.number for w in moment.weight().tolist()]


@RULES.add
class Entropy(Rule):
    """Think where the base prediction's entropy in nats is above a threshold."""

    name, number_name, limits = "entropy", "threshold", (0.0, math.inf)

    def fires(self, moment: Moment) -> list[bool]:
        found = entropy(torch.log_softmax(moment.logits, dim=-1))
        return [e > self.number for e in found.tolist()]


@RULES.add
class Marker(Rule):
    """Think where the likeliest next token is the start marker."""

    name, needs_marker = "marker", True

    def fires(self, moment: Moment) -> list[bool]:
        return [token == moment.marker_id for token in best(moment.logits).tolist()]


@RULES.add
class Every(Rule):
    """Think before every k-th emitted token, the first included."""

    name, number_name, limits, whole, example = "every", "k", (1.0, math.inf), True, "4"

    def fires(self, moment: Moment) -> list[bool]:
        return [step % int(self.number) == 0 for step in moment.step]


@dataclass(frozen=True)
class Trigger:
    """A trigger expression: thinks where all rules of at least one alternative fire."""

    alternatives: tuple[tuple[Rule, ...], ...]

    @classmethod
    @checked
    def parse(cls, text: str | Trigger) -> Trigger:
        """Read an expression such as "weight(0.05) | random(0.02)".

        Raises:
            QuietStarError: an unknown name, a missing or impossible number; the message lists what is allowed.
        """
        if isinstance(text, Trigger):
            return text
        if not text.strip():
            raise QuietStarError("trigger is empty; " + _allowed())
        return cls(
            tuple(
                tuple(_rule(rule) for rule in re.split(r"&|\band\b", alternative))
                for alternative in re.split(r"\||\bor\b", text)
            )
        )

    def __str__(self) -> str:
        return " | ".join(" & ".join(map(str, rules)) for rules in self.alternatives)

    @property
    def needs_marker(self) -> bool:
        """Whether it works only with a vocabulary that has a start marker."""
        return any(rule.needs_marker for rules in self.alternatives for rule in rules)

    def decide(self, moment: Moment) -> list[str | None]:
        """For each position the alternatives that fired, as text, or None where no thought is wanted."""
        answers = {rule: rule.fires(moment) for rules in self.alternatives for rule in rules}
        decided: list[str | None] = []
        for m in range(len(moment.position)):
            fired = [" & ".join(map(str, rules)) for rules in self.alternatives if all(answers[r][m] for r in rules)]
            decided.append(" | ".join(fired) or None)
        return decided


def _allowed() -> str:
    written = [
        name if rule.number_name is None else f"{name}({rule.number_name})" for name, rule in RULES.built_in.items()
    ]
    return f"allowed: {', '.join([*written, *RULES.extensions()])}, joined by | and &"


def _rule(text: str) -> Rule:
    """Read one rule, `name`, `name(x)` or `name:x`."""
    found = re.fullmatch(r"\s*([a-z_]+)\s*(?:[:(]\s*([^()\s]+)\s*\)?)?\s*", text)
    kind = RULES.find(found[1]) if found else None
    if found is None or kind is None:
        near = difflib.get_close_matches(found[1] if found else text.strip(), RULES.names(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise QuietStarError(f"unknown trigger {shown(text.strip())}; {hint}{_allowed()}")
    return kind.read(found[2])
