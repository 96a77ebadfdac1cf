"""One colour is one size: in every run, in the terminal and on the page."""

from __future__ import annotations

import io
import json
import math
import re

import pytest
from rich.console import Console

from quietstar.cli.render import legend, tinted
from quietstar.events import NoiseFloor, Trace
from quietstar.record import scale
from quietstar.viewer import files
from recorded import start, thought, token


def of(kls: list[float], noise: NoiseFloor | None = None, **changes) -> Trace:
    """A run with a word a value of KL."""
    made = Trace(start(**changes))
    if noise is not None:
        made.add(noise)
    for n, kl in enumerate(kls):
        made.add(thought(1 + n, "a", kl=kl))
        made.add(token(2 + n, f" w{n}"))
    return made


def colours(made: Trace, measure: str = "kl") -> dict[str, str | None]:
    """The colour of the ground below each word."""
    text = tinted(made, measure)
    found = {}
    for span in text.spans:
        word = text.plain[span.start : span.end]
        if word.startswith("w"):
            found[word] = str(span.style).removeprefix("black on ")
    return found


def test_a_step_is_the_largest_bound_that_is_reached():
    assert [scale.step("kl", value) for value in (0, 0.00009, 0.0001, 0.0009, 0.001, 0.01, 0.1, 1, 50, math.inf)] == [
        0, 0, 1, 1, 2, 3, 4, 5, 5, 5]  # fmt: skip
    assert scale.step("gain", -0.2) == scale.step("gain", 0.2) == 3
    assert scale.step("kl", None) == scale.step("kl", math.nan) == 0
    assert scale.colour("gain", -0.2) == scale.BELOW_ZERO[2] and scale.colour("gain", 0.0001) is None


def test_within_the_noise_floor_there_is_no_colour():
    assert scale.step("kl", 0.005, floor=0.005) == 0 and scale.step("kl", 0.0051, floor=0.005) == 2
    made = of([0.0002, 0.004, 0.02], NoiseFloor(4, kl=0.003, logprob=0.01, weight=0.001))
    assert colours(made) == {"w1": scale.COLOURS[1], "w2": scale.COLOURS[2]}


def test_a_size_has_one_colour_whatever_else_the_run_has():
    weak, strong = of([0.0002, 0.004]), of([0.004, 0.0002, 3.0])
    assert colours(weak) == {"w0": scale.COLOURS[0], "w1": scale.COLOURS[1]}
    assert colours(strong) == {"w0": scale.COLOURS[1], "w1": scale.COLOURS[0], "w2": scale.COLOURS[4]}


def test_the_legend_names_every_bound_in_its_colour():
    for measure, bounds in scale.BOUNDS.items():
        text = legend(measure)
        assert [text.plain[span.start : span.end].strip() for span in text.spans if "black on" in str(span.style)] == [
            f"{bound:g}" for bound in bounds]  # fmt: skip
        console = Console(file=io.StringIO(), force_terminal=True, color_system="truecolor")
        console.print(text)
        assert "48;2;253;235;211" in console.file.getvalue()  # the first colour


def test_the_page_has_the_same_bounds_and_colours():
    script = (files.STATIC / "scale.js").read_text(encoding="utf-8")
    table = re.search(r"BOUNDS = (\{.*?\});", script, re.DOTALL)[1]
    theirs = json.loads(re.sub(r",(\s*\})", r"\1", re.sub(r"(\w+):", r'"\1":', table)))
    assert theirs == {name: list(bounds) for name, bounds in scale.BOUNDS.items()}
    style = (files.STATIC / "style.css").read_text(encoding="utf-8")
    for kind, ours in (("step", scale.COLOURS), ("less", scale.BELOW_ZERO)):
        assert tuple(re.findall(rf"--{kind}-\d: light-dark\((#\w+),", style)) == ours


@pytest.mark.parametrize("measure", scale.BOUNDS)
def test_every_bound_is_larger_than_the_one_before(measure):
    bounds = scale.BOUNDS[measure]
    assert len(bounds) == len(scale.COLOURS) and list(bounds) == sorted(set(bounds)) and measure in scale.UNITS
