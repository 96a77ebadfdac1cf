"""Triggers: the rule that decides whether to think at a position, before any thought is paid for.

always · never · random(p) · weight(t) · entropy(t) · marker · every(k), alone or combined: `a | b` (or `a or b`) thinks
where either asks, `a & b` (or `a and b`) where both do; & binds tighter. `name:x` may stand for `name(x)`, so that a
shell needs no quotes.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from quietstar.arguments import checked, shown
from quietstar.engine.sampling import TRIGGER, best, entropy, uniforms
from quietstar.errors import QuietStarError


@dataclass
class Moment:
    """What is known at M positions (of any sequences) before thinking.

    Args:
        logits: base logits (M, V) in fp32, markers not banned.
        weight: gives w(h, h), (M,), on request.
        step: (M,) how many tokens were emitted before this one.
        sequence, position: (M,) keys of the random trigger. seed: its seed.
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
class Rule:
    """One trigger with its number, e.g. weight(0.05)."""

    name: str
    number: float | None = None

    def __str__(self) -> str:
        return self.name if self.number is None else f"{self.name}({self.number:g})"

    def fires(self, moment: Moment) -> list[bool]:
        """Whether to think, one answer a position."""
        count = len(moment.position)
        number = math.nan if self.number is None else self.number
        if self.name == "random":
            drawn = uniforms(moment.seed, TRIGGER, moment.sequence, moment.position)
            return [bool(u < number) for u in drawn]
        if self.name == "every":
            return [step % int(number) == 0 for step in moment.step]
        if self.name == "weight":
            return [w > number for w in moment.weight().tolist()]
        if self.name == "entropy":
            found = entropy(torch.log_softmax(moment.logits, dim=-1))
            return [e > number for e in found.tolist()]
        if self.name == "marker":
            return [token == moment.marker_id for token in best(moment.logits).tolist()]
        return [self.name == "always"] * count


# name -> (lowest, highest) of its number, None where it takes none
_NUMBERS: dict[str, tuple[float, float] | None] = {
    "always": None, "never": None, "marker": None, "random": (0.0, 1.0), "weight": (-math.inf, math.inf),
    "entropy": (0.0, math.inf), "every": (1.0, math.inf),
}  # fmt: skip


@dataclass(frozen=True)
class Trigger:
    """A trigger expression as alternatives, each a set of rules that must all fire."""

    alternatives: tuple[tuple[Rule, ...], ...]

    @classmethod
    @checked
    def parse(cls, text: str | Trigger) -> Trigger:
        """Read an expression such as "weight(0.05) | random(0.02)".

        Raises:
            QuietStarError: an unknown name, a missing or impossible number; the message says what is allowed.
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
        return any(rule.name == "marker" for rules in self.alternatives for rule in rules)

    def decide(self, moment: Moment) -> list[str | None]:
        """For each position the rules that asked for a thought, or None."""
        answers = {rule: rule.fires(moment) for rules in self.alternatives for rule in rules}
        decided: list[str | None] = []
        for m in range(len(moment.position)):
            fired = [" & ".join(map(str, rules)) for rules in self.alternatives if all(answers[r][m] for r in rules)]
            decided.append(" | ".join(fired) or None)
        return decided


def _allowed() -> str:
    return (
        "allowed: always, never, random(p), weight(threshold), entropy(threshold), marker, every(k), joined by | and &"
    )


def _rule(text: str) -> Rule:
    found = re.fullmatch(r"\s*([a-z_]+)\s*(?:[:(]\s*([^()\s]+)\s*\)?)?\s*", text)
    if not found or found[1] not in _NUMBERS:
        near = difflib.get_close_matches(found[1] if found else text.strip(), _NUMBERS, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise QuietStarError(f"unknown trigger {shown(text.strip())}; {hint}{_allowed()}")
    name, given = found[1], found[2]
    limits = _NUMBERS[name]
    if limits is None:
        if given is not None:
            raise QuietStarError(f"trigger {name!r} takes no number, got {shown(given)}")
        return Rule(name)
    if given is None:
        raise QuietStarError(f"trigger {name!r} needs a number, as in {name}({'4' if name == 'every' else '0.05'})")
    try:
        number = float(given)
    except ValueError:
        number = math.nan
    if not limits[0] <= number <= limits[1] or math.isinf(number) or (name == "every" and number != int(number)):
        kind = "a whole number" if name == "every" else "a number"
        raise QuietStarError(f"trigger {name!r} needs {kind} from {limits[0]:g} to {limits[1]:g}, got {shown(given)}")
    return Rule(name, number)
