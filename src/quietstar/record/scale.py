"""The scales that measures of thoughts are coloured by: absolute, so that a colour is one size in every run.

A scale is five bounds; a value has the step of the largest bound it reaches, in size, and step 0 (no colour) below the
first. Values up to the noise floor of a run have step 0 too. The page repeats the bounds and colours in
viewer/static/scale.js and style.css; tests/test_scale.py compares them. Knows numbers and colours, nothing about runs.
"""

from __future__ import annotations

import math

BOUNDS: dict[str, tuple[float, ...]] = {
    "kl": (0.0001, 0.001, 0.01, 0.1, 1.0),
    "weight": (0.01, 0.03, 0.1, 0.3, 1.0),
    "gain": (0.001, 0.01, 0.1, 0.5, 2.0),
    "entropy": (0.1, 0.5, 1.0, 2.0, 4.0),
    "surprise": (0.1, 0.5, 1.0, 2.0, 4.0),
}
UNITS = {"kl": "nats", "weight": "", "gain": "nats", "entropy": "nats", "surprise": "nats"}

COLOURS = ("#fdebd3", "#fbcf9d", "#f7a85e", "#e97f26", "#dd6a1c")  # of steps 1 to 5, on a light ground
BELOW_ZERO = ("#eeede9", "#e3e2de", "#d6d5d1", "#c5c4c0", "#afaeaa")  # the same for values below 0


def step(measure: str, value: float | None, floor: float | None = None) -> int:
    """The step of a value on its measure's scale, 0 to 5.

    Args:
        value: None or nan where there is none. floor: sizes up to this are noise and have step 0; None for no floor.
    """
    if value is None or math.isnan(value) or (floor is not None and abs(value) <= floor):
        return 0
    return sum(abs(value) >= bound for bound in BOUNDS[measure])


def colour(measure: str, value: float | None, floor: float | None = None) -> str | None:
    """The colour of a value, None where it has step 0."""
    at = step(measure, value, floor)
    if not at or value is None:
        return None
    return (BELOW_ZERO if value < 0 else COLOURS)[at - 1]
