"""Triggers: what they read, when they fire, and that a skipped thought costs nothing."""

from pathlib import Path

import pytest
import torch

from quietstar import QuietStar, QuietStarError
from quietstar.engine.rows import Rows
from quietstar.inference.triggers import Moment, Trigger


def moment(logits, step=0, weight=(0.0,), position=(0,), seed=0, marker=None) -> Moment:
    logits = torch.tensor(logits)
    return Moment(
        logits,
        lambda: torch.tensor(weight),
        [step] * len(position),
        list(range(len(position))),
        list(position),
        seed,
        marker,
    )


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("always", "always"),
        (" never ", "never"),
        ("random(0.5)", "random(0.5)"),
        ("random:0.5", "random(0.5)"),
        ("weight(-0.1) | entropy:2", "weight(-0.1) | entropy(2)"),
        ("every(3) & weight:0.05 or marker", "every(3) & weight(0.05) | marker"),
        ("every:2 and random:1e-2", "every(2) & random(0.01)"),
    ],
)
def test_expressions(text, canonical):
    assert str(Trigger.parse(text)) == canonical
    assert Trigger.parse(canonical) == Trigger.parse(text)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "empty"),
        ("alway", "did you mean 'always'"),
        ("sometimes", "unknown trigger 'sometimes'"),
        ("random", "needs a number"),
        ("random(2)", "from 0 to 1, got '2'"),
        ("random(x)", "got 'x'"),
        ("random(nan)", "got 'nan'"),
        ("every(0)", "whole number"),
        ("every(1.5)", "whole number"),
        ("always(3)", "takes no number"),
        ("entropy(-1)", "from 0"),
        ("weight(inf)", "got 'inf'"),
        ("always |", "unknown trigger ''"),
    ],
)
def test_wrong_expressions_say_what_is_allowed(text, says):
    with pytest.raises(QuietStarError, match=says.replace("(", r"\(")):
        Trigger.parse(text)


def test_each_rule_fires_on_what_it_reads():
    flat, sharp = [[0.0, 0.0, 0.0]], [[9.0, 0.0, 0.0]]
    assert Trigger.parse("entropy(1)").decide(moment(flat)) == ["entropy(1)"]
    assert Trigger.parse("entropy(1)").decide(moment(sharp)) == [None]
    assert Trigger.parse("weight(0.125)").decide(moment(flat, weight=(0.25,))) == ["weight(0.125)"]
    assert Trigger.parse("weight(0.125)").decide(moment(flat, weight=(0.125,))) == [None]
    assert Trigger.parse("marker").decide(moment(sharp, marker=0)) == ["marker"]
    assert Trigger.parse("marker").decide(moment(sharp, marker=1)) == [None]
    assert [Trigger.parse("every(3)").decide(moment(flat, step=s))[0] is not None for s in range(7)] == [
        True, False, False, True, False, False, True,
    ]  # fmt: skip
    assert Trigger.parse("always").decide(moment(flat)) == ["always"]
    assert Trigger.parse("never").decide(moment(flat)) == [None]


def test_random_has_its_rate_and_depends_on_the_seed():
    rule = Trigger.parse("random(0.3)")
    logits = [[0.0]] * 4000
    fired = [x is not None for x in rule.decide(moment(logits, position=range(4000)))]
    assert 0.26 < sum(fired) / 4000 < 0.34
    assert fired == [x is not None for x in rule.decide(moment(logits, position=range(4000)))]
    assert fired != [x is not None for x in rule.decide(moment(logits, position=range(4000), seed=1))]


def test_combinations_name_the_rules_that_fired():
    both = Trigger.parse("every(2) & entropy(0.5) | weight(0.5)")
    assert both.decide(moment([[0.0, 0.0]])) == ["every(2) & entropy(0.5)"]
    assert both.decide(moment([[0.0, 0.0]], step=1)) == [None]
    assert both.decide(moment([[0.0, 0.0]], weight=(0.6,))) == ["every(2) & entropy(0.5) | weight(0.5)"]


def test_a_skipped_thought_runs_no_row(tiny, monkeypatch):
    monkeypatch.setattr(Rows, "extend", lambda *_: pytest.fail("a row was run"))
    _, trace = tiny.generate("the fox", trigger="never", max_new_tokens=5)
    assert not trace.thoughts and trace.tokens


def test_weight_trigger_reads_w_of_the_base_state_with_itself(tiny):
    ids = tiny.encode("the quick fox", raw=True)[0][0]
    with torch.no_grad():
        _, hidden = tiny.read(torch.tensor([ids]))
        w = float(tiny.weight(hidden[:, -1], hidden[:, -1]))
    for threshold, thinks in ((w - 1e-4, True), (w + 1e-4, False)):
        _, trace = tiny.generate(ids, trigger=f"weight({threshold})", max_new_tokens=1, stop_ids=[])
        assert bool(trace.thoughts) is thinks


def test_marker_needs_a_vocabulary_with_markers(tiny):
    with pytest.raises(QuietStarError, match="needs a vocabulary with a start marker"):
        tiny.generate("the fox", trigger="marker")
    published = QuietStar.from_pretrained(Path(__file__).parent / "golden" / "infer-greedy")
    _, trace = published.generate([3, 4, 5], trigger="marker", max_new_tokens=2)
    assert trace.tokens or trace.end.reason == "stop"


def test_marker_compares_logits_not_hidden_states(tiny):
    tiny.config.marker_ids = [5, 6]
    with torch.no_grad():
        _, hidden = tiny.read(torch.tensor([[7, 8, 9]]))
        logits = tiny.unembed(hidden[0, -1])
    tiny.config.marker_ids = [int(logits.argmax()), 6]
    _, trace = tiny.generate([7, 8, 9], trigger="marker", max_new_tokens=1)
    assert trace.thoughts[0].trigger == "marker"
    assert trace.tokens[0].id not in tiny.config.marker_ids
    assert not set(trace.thoughts[0].samples[0].ids) & set(tiny.config.marker_ids)
