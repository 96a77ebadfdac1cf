"""What a changed thought is compared with: the thought that was there, predicted with again beside it.

Never with the number in the record, which another precision, batch or library may have made. An intervention keeps this
among its settings, so that the page and the terminal tell the same whenever they are read. Knows choices and settings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quietstar.events import Choice
from quietstar.record.computed import By, different

_KEY = "compared"


@dataclass
class Compared:
    """The own thought's prediction, computed beside that of the try.

    Args:
        mixed: likeliest next tokens with the own thought. kl: its KL(mixed || base), nats.
        floor: what rounding alone makes of a KL and of a log-probability here, nats; None where it was not measured.
        changed: whether the try makes another word the likeliest, by more than that.
        computed: what computed both. recorded: what computed the run, where that is something else.
    """

    mixed: list[Choice]
    kl: float
    floor: dict[str, float] | None
    changed: bool
    computed: By
    recorded: By | None

    def to_settings(self) -> dict[str, Any]:
        """As an entry of the settings of an intervention."""
        return {
            _KEY: {
                "mixed": [[one.id, one.text, one.prob] for one in self.mixed],
                "kl": self.kl,
                "floor": self.floor,
                "changed": self.changed,
                "computed": self.computed,
                "recorded": self.recorded,
            }
        }

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Compared | None:
        """From the settings of an intervention; None in records from before, and where they are damaged."""
        found: Any = settings.get(_KEY)
        try:
            mixed = [Choice(int(token), str(text), float(prob)) for token, text, prob in found["mixed"]]
            floor = None if found["floor"] is None else {k: float(v) for k, v in found["floor"].items()}
            by = {str(name): str(value) for name, value in found["computed"].items()}
            was = found["recorded"]
            recorded = None if was is None else {str(name): str(value) for name, value in was.items()}
            return cls(mixed, float(found["kl"]), floor, bool(found["changed"]), by, recorded)
        except (TypeError, KeyError, ValueError, AttributeError):
            return None


def otherwise(here: By, recorded: By) -> By | None:
    """What computed the run, None where it is what computes here; it is told wherever numbers of both are near."""
    return recorded if different([here, recorded]) else None


def changed(before: Sequence[Choice], after: Sequence[Choice], floor: float) -> bool:
    """Whether another token is the likeliest: each prediction prefers its own to the other's by more than `floor` nats.

    As `sampling.flipped` has it, from the likeliest tokens alone; one that is not listed has at most the probability of
    the last that is.
    """
    if not before or not after or before[0].id == after[0].id:
        return False
    return min(_ahead(before, after[0].id), _ahead(after, before[0].id)) > floor


def _ahead(choices: Sequence[Choice], other: int) -> float:
    """By how many nats, at least, the likeliest token is ahead of another one."""
    least = min(choice.prob for choice in choices)
    prob = next((choice.prob for choice in choices if choice.id == other), least)
    return math.log(max(choices[0].prob, 1e-300)) - math.log(max(prob, 1e-300))
