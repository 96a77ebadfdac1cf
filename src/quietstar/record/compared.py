"""What a changed thought is compared with: the prediction with the own thought, computed again in the same batch shape.

Never with the numbers in the record, which may come from another precision, batch or library. An intervention stores
this in its settings, so that the page and the terminal always show the same. Knows choices and settings.
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
    """The prediction with the own thought, computed together with that of an intervention.

    Args:
        mixed: likeliest next tokens with the own thought. kl: its KL(mixed || base), nats.
        floor: noise floor of KL ("kl") and of a log-probability ("logprob") here, nats; None where it was not measured.
        changed: whether the intervention makes another token the likeliest, by more than the noise floor.
        computed: what computed both. recorded: what computed the run, None where it is the same.
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
        """From the settings of an intervention; None where older versions stored none, and where they are damaged."""
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


def unless_alike(recorded: By, here: By) -> By | None:
    """What computed the run, None where it is the same as here; shown wherever numbers of both appear together."""
    return recorded if different([here, recorded]) else None


def changed(before: Sequence[Choice], after: Sequence[Choice], floor: float) -> bool:
    """Whether another token is the likeliest: each prediction prefers its own to the other's by more than `floor` nats.

    The rule of `sampling.flipped`, computed from the likeliest tokens alone; a token that is not listed has at most the
    probability of the last one that is.
    """
    if not before or not after or before[0].id == after[0].id:
        return False
    return min(_ahead(before, after[0].id), _ahead(after, before[0].id)) > floor


def _ahead(choices: Sequence[Choice], other: int) -> float:
    """By how many nats, at least, the likeliest token is ahead of another one."""
    least = min(choice.prob for choice in choices)
    prob = next((choice.prob for choice in choices if choice.id == other), least)
    return math.log(max(choices[0].prob, 1e-300)) - math.log(max(prob, 1e-300))
