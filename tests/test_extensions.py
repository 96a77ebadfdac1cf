"""Triggers and controls of another package: found through its entry points, used like those of quietstar."""

from __future__ import annotations

import pytest
import torch

from quietstar import QuietStarError
from quietstar.inference import controls, triggers
from quietstar.inference.controls import Control
from quietstar.inference.triggers import Trigger

TRIGGER = '''
from quietstar.inference.triggers import Moment, Rule


class Unsure(Rule):
    """Think where the likeliest next token has a probability below p."""

    name = "unsure"
    number_name = "p"
    limits = (0.0, 1.0)

    def fires(self, moment: Moment) -> list[bool]:
        likeliest = moment.logits.softmax(-1).amax(-1)
        return [probability < self.number for probability in likeliest.tolist()]
'''

CONTROL = '''
from torch import Tensor

from quietstar.engine.model import Place
from quietstar.inference.controls import Control


class Reversed(Control):
    """The model's own thought with its tokens in reverse order: the same words, another order."""

    name = "reversed"

    def replace(self, own: Tensor, place: Place, seed: int, filler_token: int) -> Tensor:
        return own.flip(1)
'''

# What pip writes when the package's pyproject.toml has
#     [project.entry-points."quietstar.triggers"]
#     unsure = "my_thoughts.unsure:Unsure"
ENTRY_POINTS = """
[quietstar.triggers]
unsure = my_thoughts.unsure:Unsure
misnamed = my_thoughts.unsure:Unsure
missing = my_thoughts.nowhere:Nothing

[quietstar.controls]
reversed = my_thoughts.reversed:Reversed
own = my_thoughts.reversed:Reversed
"""


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """The package `my_thoughts`, installed."""
    package, metadata = tmp_path / "my_thoughts", tmp_path / "my_thoughts-1.0.dist-info"
    package.mkdir()
    metadata.mkdir()
    (package / "__init__.py").touch()
    (package / "unsure.py").write_text(TRIGGER)
    (package / "reversed.py").write_text(CONTROL)
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: my-thoughts\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_trigger_of_another_package(installed, tiny):
    assert str(Trigger.parse("unsure:0.5 | every(9)")) == "unsure(0.5) | every(9)"
    with pytest.raises(QuietStarError, match="trigger 'unsure' needs a number from 0 to 1, got '2'"):
        Trigger.parse("unsure(2)")
    always, never = (tiny.generate("the", trigger=f"unsure({p})", max_new_tokens=3, thought_length=1) for p in (1, 0))
    assert [thought.trigger for thought in always.trace.thoughts] == ["unsure(1)"] * 3
    assert not never.trace.thoughts


def test_a_control_of_another_package(installed, tiny):
    text = "the quick brown fox"
    score = tiny.score(text, thought_length=3, controls=["reversed"])
    assert (score.controls["reversed"].thoughts == score.thoughts.flip(-1)).all()
    by_hand = tiny.score(text, thoughts=score.thoughts.flip(-1))
    assert torch.allclose(score.controls["reversed"].mixed_logprobs, by_hand.mixed_logprobs)
    own, reversed_ = (
        tiny.generate(text, control=control, max_new_tokens=1, thought_length=3).trace.thoughts[0]
        for control in ("own", "reversed")
    )
    assert reversed_.control == "reversed"
    assert reversed_.samples[0].ids == own.samples[0].ids[::-1]


def test_names_of_other_packages_are_offered(installed):
    with pytest.raises(QuietStarError, match="only, reversed; got 'backwards'"):
        Control.parse("backwards")
    with pytest.raises(QuietStarError, match="did you mean 'unsure'"):
        Trigger.parse("unsur(0.5)")


def test_a_name_of_quietstar_cannot_be_taken_over(installed):
    assert type(Control.parse("own")) is controls.Own
    assert controls.CONTROLS.extensions() == ["reversed"]


def test_a_broken_package_is_named(installed):
    with pytest.raises(QuietStarError, match=r"trigger 'missing' \(my_thoughts.nowhere:Nothing\) could not be loaded"):
        Trigger.parse("missing")
    with pytest.raises(QuietStarError, match=r"must be a subclass of quietstar.inference.triggers.Rule with name"):
        Trigger.parse("misnamed(1)")


def test_without_other_packages_there_are_only_those_of_quietstar():
    assert triggers.RULES.extensions() == controls.CONTROLS.extensions() == []
