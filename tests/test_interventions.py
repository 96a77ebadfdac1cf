"""Controls: what they put in a thought's place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietstar import QuietStarError
from quietstar.engine.model import Place
from quietstar.inference.controls import Control, donor_positions, shuffled


@given(st.integers(2, 300), st.integers(0, 1000))
def test_donors_are_earlier_positions_of_the_same_text(places, seed):
    position = torch.arange(places)
    donor = donor_positions(seed, torch.zeros_like(position), position)
    assert donor[0] == -1 and (donor[1:] >= 0).all() and (donor < position).all()
    half = position[places // 2 :]
    assert (donor_positions(seed, torch.zeros_like(half), half) == donor[places // 2 :]).all()


def test_shuffling_permutes_each_thought_by_place():
    thoughts = torch.arange(60).view(6, 10)
    zero, position = torch.zeros(6, dtype=torch.long), torch.arange(6)
    found = shuffled(thoughts, 0, zero, position, zero)
    assert (found.sort(1).values == thoughts).all()
    assert (found != thoughts).any(1).all()
    assert (shuffled(thoughts[2:4], 0, zero[2:4], position[2:4], zero[2:4]) == found[2:4]).all()


def test_truncation_keeps_the_first_tokens():
    place = Place(*torch.zeros(3, 2, dtype=torch.long))
    control = Control.parse("truncated:2")
    assert control.replace(torch.arange(6).view(2, 3), place, 0, 0).tolist() == [[0, 1], [3, 4]]
    with pytest.raises(QuietStarError, match="more tokens than the thought has"):
        Control.parse("truncated:4").check(3)


def test_names():
    assert str(Control.parse("truncated:3")) == "truncated:3" == str(Control.parse("truncated(3)"))
    for wrong in ("truncated", "fillers", "", "truncated:-1"):
        with pytest.raises(QuietStarError, match="control must be one of"):
            Control.parse(wrong)
