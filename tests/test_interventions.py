"""Controls: what they put in a thought's place."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from quietstar import QuietStarError
from quietstar.interventions import Control, donors, shuffled, truncated


@given(st.integers(2, 300), st.integers(0, 1000))
def test_nobody_is_his_own_donor_and_everybody_gives_once(places, seed):
    index = donors(places, seed)
    assert sorted(index.tolist()) == list(range(places))
    assert (index != torch.arange(places)).all()


def test_a_single_thought_has_no_donor():
    with pytest.raises(QuietStarError, match="two positions"):
        donors(1, 0)


def test_shuffling_permutes_each_thought_by_place():
    thoughts = torch.arange(60).view(6, 10)
    zero, position = torch.zeros(6, dtype=torch.long), torch.arange(6)
    found = shuffled(thoughts, 0, zero, position, zero)
    assert (found.sort(1).values == thoughts).all()
    assert (found != thoughts).any(1).all()
    assert (shuffled(thoughts[2:4], 0, zero[2:4], position[2:4], zero[2:4]) == found[2:4]).all()


def test_truncation_keeps_the_first_tokens():
    assert truncated(torch.arange(6).view(2, 3), 2).tolist() == [[0, 1], [3, 4]]
    with pytest.raises(QuietStarError, match="more tokens than the thought has"):
        truncated(torch.arange(6).view(2, 3), 4)


def test_names():
    assert str(Control.parse("truncated:3")) == "truncated:3" == str(Control.parse("truncated(3)"))
    for wrong in ("truncated", "fillers", "", "truncated:-1"):
        with pytest.raises(QuietStarError, match="control must be one of"):
            Control.parse(wrong)
