"""Speculative thinking: drafts change the cost and nothing else, whatever the model, trigger, control or ending."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy import stats
from transformers import LlamaConfig, LlamaForCausalLM

from oracle import Oracle
from quietstar import QuietStar, QuietStarError
from quietstar.engine.rows import Prefix
from quietstar.engine.sampling import nucleus
from quietstar.events import End, TokenEvent, Trace
from quietstar.inference import generation
from quietstar.inference.speculation import MOST_DRAFTS, Pace, lookup
from tiny import FAMILIES, VOCABULARY, thinking

TEXT = torch.randint(2, VOCABULARY, (3, 14), generator=torch.Generator().manual_seed(5))
PROMPTS = [TEXT[0].tolist(), TEXT[1, :6].tolist(), TEXT[2, :9].tolist()]


def modest(family: str, seed: int):
    """`tiny.thinking` with mixing weights below 1, as trained heads give, so that 1e-5 says something about them."""
    model, base = thinking(family, seed)
    with torch.no_grad():
        model.head.last.weight.mul_(0.1)
    return model, base


def story(trace: Trace) -> list[tuple]:
    """Everything of a trace that is a choice: tokens, thoughts, triggers, texts, endings."""
    thoughts = [
        (t.position, t.trigger, t.control, [(s.ids, s.text) for s in t.samples], t.flipped, t.mixed[0].id, t.base[0].id)
        for t in trace.thoughts
    ]
    tokens = [(t.position, t.id, t.text, t.thought) for t in trace.tokens]
    return [thoughts, tokens, (trace.end.reason, trace.end.text, trace.end.tokens, trace.end.thoughts)]


def numbers(trace: Trace) -> list[float]:
    """Everything of a trace that is rounded."""
    found = [t.logprob for t in trace.tokens]
    for t in trace.thoughts:
        found += [
            t.weight,
            t.kl,
            t.entropy,
            *(s.weight for s in t.samples),
            *itertools.chain(*(s.logprobs for s in t.samples)),
        ]
        found += [c.prob for c in (*t.base, *t.mixed, *t.only)]
    return found


def same(one: Trace, other: Trace) -> None:
    assert story(one) == story(other)
    assert [t.weight for t in one.thoughts] == pytest.approx([t.weight for t in other.thoughts], rel=1e-5, abs=1e-5)
    assert numbers(one) == pytest.approx(numbers(other), abs=1e-4)


def traces(model, prompts, speculate=0, **options) -> list[Trace]:
    """One by one, unless said otherwise."""
    return Trace.collect(model.stream(prompts, speculate=speculate, **options))


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_and_thoughts_equal_one_by_one_and_full_recomputation(family):
    """For a batch of unequal lengths, past the window of the families that have one."""
    model, base = modest(family, seed=1)
    oracle = Oracle(base, model.markers.start * 100, model.markers.end * 100, model.head.layers)
    options = dict(thought_length=3, max_new_tokens=9, stop_ids=[])
    alone = traces(model, PROMPTS[:2], **options)
    drafted = 0
    for speculate in (1, 4, "auto"):
        for one, other in zip(alone, traces(model, PROMPTS[:2], speculate=speculate, **options), strict=True):
            same(one, other)
            drafted += other.end.drafted
            assert 0 <= other.end.accepted <= other.end.drafted
    assert drafted and all(trace.end.drafted == 0 for trace in alone)
    for prompt, trace in zip(PROMPTS[:2], alone, strict=True):
        ids, thoughts = oracle.generate(prompt, 3, 9)
        assert trace.ids == ids and [t.samples[0].ids for t in trace.thoughts] == thoughts


TRIGGERS = ["always", "never", "random(0.4)", "every(3)", "entropy(1.2)", "weight(0.0)", "random(0.3) | every(4)"]
CONTROLS = ["own", "none", "filler", "shuffled", "donor", "truncated:1", "only"]


@pytest.mark.parametrize("trigger", TRIGGERS)
@pytest.mark.parametrize("speculate", [1, 3, 8, "auto"])
def test_every_trigger(trigger, speculate):
    model, _ = modest("llama", seed=2)
    for sampling in (dict(), dict(temperature=0.8, top_p=0.9, thought_temperature=1.0, seed=4)):
        options = dict(thought_length=2, max_new_tokens=13, stop_ids=[], trigger=trigger, **sampling)
        for one, other in zip(
            traces(model, PROMPTS, **options), traces(model, PROMPTS, speculate=speculate, **options), strict=True
        ):
            same(one, other)


@pytest.mark.parametrize("control", CONTROLS)
@pytest.mark.parametrize("samples", [1, 3])
def test_every_control_and_several_samples(control, samples):
    model, _ = modest("mistral", seed=3)
    options = dict(thought_length=3, max_new_tokens=11, stop_ids=[], control=control, samples=samples, seed=6,
                   thought_temperature=1.0, temperature=0.7, mixing_weight=0.2)  # fmt: skip
    for one, other in zip(
        traces(model, PROMPTS, **options), traces(model, PROMPTS, speculate=4, **options), strict=True
    ):
        same(one, other)


@pytest.mark.parametrize("covered", [1, 4, 5, 30])
def test_forced_thoughts_that_end_inside_a_draft(covered):
    model, _ = modest("llama", seed=2)
    thoughts = torch.randint(2, VOCABULARY, (3, covered, 2, 3), generator=torch.Generator().manual_seed(covered))
    options = dict(max_new_tokens=10, thoughts=thoughts, stop_ids=[], mixing_weight=0.1)
    for one, other in zip(
        traces(model, PROMPTS, **options), traces(model, PROMPTS, speculate=3, **options), strict=True
    ):
        same(one, other)
        for step, thought in enumerate(other.thoughts[:covered]):
            assert [s.ids for s in thought.samples] == thoughts[other.sequence, step].tolist()


def test_models_with_markers_in_their_vocabulary():
    model, _ = modest("llama", seed=2)
    model.config.marker_ids = [7, 8]
    for trigger in ("marker", "always"):
        options = dict(thought_length=2, max_new_tokens=12, stop_ids=[], trigger=trigger, temperature=1.0, seed=1)
        for one, other in zip(
            traces(model, PROMPTS, **options), traces(model, PROMPTS, speculate=4, **options), strict=True
        ):
            same(one, other)
            assert not {7, 8} & set(other.ids[len(other.prompt_ids) :])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_ending(tiny, data):
    """Stop ids, stop strings, the length and the context, wherever in a draft they fall."""
    options = dict(raw=True, thought_length=2, seed=data.draw(st.integers(0, 5)), mixing_weight=0.05,
                   temperature=data.draw(st.sampled_from([0.0, 1.0])), trigger=data.draw(st.sampled_from(TRIGGERS)))  # fmt: skip
    prompts = ["the quick brown", "it", "x" * data.draw(st.sampled_from([5, 490]))]
    free = tiny.generate(prompts, max_new_tokens=20, stop_ids=[], speculate=0, **options)
    said = [t.id for t in free[0].trace.tokens]
    options |= dict(
        max_new_tokens=data.draw(st.integers(1, 20)),
        stop_ids=data.draw(st.lists(st.sampled_from(said), max_size=2)),
        stop=[t for t in data.draw(st.lists(st.sampled_from([free[0].text[n : n + 3] for n in range(12)]), max_size=2)) if t],
    )  # fmt: skip
    wanted = [one.trace for one in tiny.generate(prompts, speculate=0, **options)]
    speculate = data.draw(st.sampled_from([1, 2, 5, 40, "auto"]))
    for one, other in zip(wanted, tiny.generate(prompts, speculate=speculate, **options), strict=True):
        same(one, other.trace)


def test_a_model_with_learned_positions_speaks_to_the_end_of_its_context():
    model, _ = modest("gpt2", seed=1)
    prompts = [(TEXT[0].tolist() * 9)[:115], PROMPTS[1]]
    options = dict(thought_length=3, max_new_tokens=40, stop_ids=[])
    for one, other in zip(
        traces(model, prompts, **options), traces(model, prompts, speculate=16, **options), strict=True
    ):
        same(one, other)
    assert one.end.reason == "length" and traces(model, prompts, speculate=16, **options)[0].end.reason == "context"


def test_events_of_rejected_drafts_are_never_seen():
    """The stream of each sequence is that of one by one, and ends carry the counts."""
    model, _ = modest("llama", seed=2)
    options = dict(thought_length=2, max_new_tokens=20, stop_ids=[], temperature=1.0, seed=3)
    one, other = (list(model.stream(PROMPTS, speculate=k, **options)) for k in (0, 4))
    for b in range(3):
        kinds = [
            [(type(e), getattr(e, "position", None)) for e in events[1:] if getattr(e, "sequence", None) == b]
            for events in (one, other)
        ]
        assert kinds[0] == kinds[1]
    ends = [e for e in other if isinstance(e, End)]
    assert any(e.accepted < e.drafted for e in ends), "no draft was rejected: this test shows nothing"
    assert all(isinstance(e, TokenEvent) or e.event != "token" for e in other)


def test_thoughts_that_change_nothing_accept_every_draft():
    model, _ = modest("llama", seed=2)
    for sampling in (dict(), dict(temperature=1.0)):
        options = dict(thought_length=2, max_new_tokens=20, stop_ids=[], mixing_weight=0.0, speculate=4, **sampling)
        (trace,) = traces(model, PROMPTS[:1], **options)
        assert trace.end.drafted == trace.end.accepted == 16  # four rounds of four drafts and a token each


def test_positions_without_a_thought_run_no_row_and_are_told_at_once(monkeypatch):
    model, _ = modest("llama", seed=2)
    rows = []
    think = model.think
    monkeypatch.setattr(
        model, "think", lambda prefix, place, **k: (rows.append(len(place)), think(prefix, place, **k))[1]
    )
    events = model.stream(
        PROMPTS[:1], trigger="every(5)", max_new_tokens=20, thought_length=2, stop_ids=[], speculate=4
    )
    (trace,) = Trace.collect(events)
    assert sum(rows) == len(trace.thoughts) == 4
    rows.clear()
    passes = []
    extend = Prefix.extend
    monkeypatch.setattr(Prefix, "extend", lambda self, *a: (passes.append(1), extend(self, *a))[1])
    for count, _ in enumerate(
        e for e in model.stream(PROMPTS[:1], trigger="never", stop_ids=[], speculate=9) if isinstance(e, TokenEvent)
    ):
        assert len(passes) <= count + 1
    assert not rows


def test_drafts_are_thought_about_together(monkeypatch):
    model, _ = modest("llama", seed=2)
    rows = []
    think = model.think
    monkeypatch.setattr(
        model, "think", lambda prefix, place, **k: (rows.append(len(place)), think(prefix, place, **k))[1]
    )
    options = dict(max_new_tokens=15, thought_length=2, stop_ids=[], mixing_weight=0.0)
    traces(model, PROMPTS[:2], speculate=4, samples=2, **options)
    assert rows == [20, 20, 20]  # five positions x two samples x two sequences


@torch.no_grad()
def test_a_prefix_forgets_what_is_behind_its_length():
    for family in ("mistral", "gpt2"):
        model, _ = modest(family, seed=1)
        prefix, _ = model.read(TEXT[:2], [14, 9])
        prefix.truncate([11, 6])
        extended = prefix.extend(model.embed(TEXT[:2, :3]), [3, 2])
        assert prefix.lengths == [14, 8]
        fresh = [torch.cat([TEXT[0, :11], TEXT[0, :3]]), torch.cat([TEXT[1, :6], TEXT[1, :2]])]
        for b, ids in enumerate(fresh):
            _, hidden = model.read(ids[None])
            count = [3, 2][b]
            torch.testing.assert_close(extended[b, :count], hidden[0, -count:], rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match="lengths must be"):
            prefix.truncate([15, 1])


def test_guesses_are_what_followed_the_longest_match():
    text = [1, 2, 3, 4, 9, 3, 4, 5, 2, 3, 4]
    assert lookup(text, [], 3) == [9, 3, 4]  # 2 3 4 stood before; 3 4 alone did later
    assert lookup(text[4:], [], 3) == [5, 2, 3]
    assert lookup(text[8:], [[7, 4, 6, 6], [3, 4, 8]], 2) == [8]
    assert lookup([1, 2, 1, 2, 1], [], 5) == [2, 1, 2, 1, 2]  # goes round
    assert lookup(text, [[8, 8]], 0) == lookup([4], [], 3) == lookup([4], [[4]], 3) == []


def test_right_guesses_spare_base_passes_and_wrong_ones_change_nothing(monkeypatch):
    """A model that repeats itself drafts many tokens in one pass; its text, thoughts and counts stay the same."""
    model, _ = modest("llama", seed=2)
    prompt = [5, 6, 7]
    base, forward = model.decoder_lm, []
    extend = Prefix.extend
    monkeypatch.setattr(Prefix, "extend", lambda self, *a: (forward.append(a[0].shape[1]), extend(self, *a))[1])
    options = dict(thought_length=2, max_new_tokens=60, stop_ids=[], mixing_weight=0.0, speculate=9)
    with torch.no_grad():
        base.lm_head.weight.zero_()  # every prediction is token 0
    (repeating,) = traces(model, [prompt], **options)
    many = len(forward)
    monkeypatch.setattr(generation, "lookup", lambda *_: [])
    forward.clear()
    (unguessed,) = traces(model, [prompt], **options)
    same(repeating, unguessed)
    assert repeating.end.drafted == unguessed.end.drafted == 54
    assert len(forward) == 60 and many < 20
    monkeypatch.setattr(generation, "lookup", lambda *_: [3, 3, 3])
    (misled,) = traces(model, [prompt], **options)
    same(misled, unguessed)
    assert max(forward) > 1


def test_auto_drafts_more_where_more_is_accepted_and_less_where_rows_are_many():
    def drafts(agreed: float, passes=9, sequences=1, samples=1) -> int:
        pace = Pace("auto", passes, sequences, samples)
        for _ in range(20):
            pace.count_accepted(50, round(50 * agreed))
        return pace.drafts()

    asked = [drafts(a) for a in (0.0, 0.5, 0.8, 0.9, 0.98, 1.0)]
    assert asked == sorted(asked) and asked[0] <= 1 and asked[-1] == MOST_DRAFTS
    assert drafts(0.9, samples=64) < drafts(0.9)
    assert drafts(0.9, passes=2) < drafts(0.9, passes=20)
    spared = Pace("auto", 9, 1, 1)
    before = spared.drafts()
    spared.count_passes(100, 40)
    assert spared.drafts() > before
    assert Pace(7, 9, 1, 1).drafts() == 7 and Pace(0, 9, 1, 1).drafts() == 0


@pytest.mark.parametrize("wrong", [-1, "fast", 2.5, None])
def test_wrong_numbers_of_drafts_are_named(tiny, wrong):
    with pytest.raises(QuietStarError, match="speculate must be 0"):
        tiny.generate("the", speculate=wrong)


def small_vocabulary() -> QuietStar:
    """A model of five tokens, so that all its continuations can be counted."""
    torch.manual_seed(3)
    config = LlamaConfig(vocab_size=5, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
                         num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5)  # fmt: skip
    model = QuietStar.from_base(LlamaForCausalLM(config).eval())
    torch.nn.init.normal_(model.markers.start, std=0.02)
    torch.nn.init.normal_(model.markers.end, std=0.02)
    return model


@torch.no_grad()
def exact(model, prompt: list[int], length: int, **options) -> dict[tuple[int, ...], float]:
    """The probability of every continuation of so many tokens, by enumeration over full recomputation."""
    oracle = Oracle(model.base, model.markers.start * 100, model.markers.end * 100,
                    lambda pair: torch.tensor([options["mixing_weight"]]))  # fmt: skip
    found: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(length):
        longer: dict[tuple[int, ...], float] = {}
        for said, probability in found.items():
            _, seen = oracle.think([*prompt, *said], 2, lambda j, logits: logits.argmax())
            p = nucleus(torch.softmax(seen["mixed"] / options["temperature"], -1)[None].double(), options["top_p"])[0]
            for token in p.nonzero()[:, 0].tolist():
                longer[(*said, token)] = probability * float(p[token])
        found = longer
    return found


def chi_square(model, prompt, length, speculate, runs, **options) -> float:
    """p-value of sampled continuations (one a seed and sequence of a batch) against the exact distribution."""
    wanted = exact(model, prompt, length, **options)
    counts: Counter[tuple[int, ...]] = Counter()
    batch = 100
    for seed in range(-(-runs // batch)):
        done = traces(model, [prompt] * batch, max_new_tokens=length, thought_length=2, stop_ids=[], seed=seed, show=1,
                      speculate=speculate, **options)  # fmt: skip
        counts.update(tuple(trace.ids[len(prompt) :]) for trace in done)
    assert set(counts) <= set(wanted), "a continuation of probability 0 was sampled"
    total = sum(counts.values())
    often = {key: p for key, p in wanted.items() if p * total >= 5}
    seen = [counts[key] for key in often]
    expected = [p * total for p in often.values()]
    if total - sum(expected) > 1:
        seen.append(total - sum(seen))
        expected.append(total - sum(expected))
    expected = np.array(expected) * total / np.sum(expected)
    return float(stats.chisquare(seen, expected).pvalue)


@pytest.mark.parametrize("runs", [1_000, pytest.param(20_000, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("top_p", "temperature"), [(1.0, 1.0), (0.8, 0.7)])
def test_sampled_text_follows_the_mixed_distribution(runs, top_p, temperature):
    """Chi-square against exact enumeration, with thoughts strong enough that many drafts are rejected."""
    options = dict(mixing_weight=0.4, temperature=temperature, top_p=top_p)
    model, prompt = small_vocabulary(), [1, 4, 2]
    (trace,) = traces(model, [prompt], max_new_tokens=50, thought_length=2, stop_ids=[], speculate=2, **options)
    assert 0.2 < trace.end.accepted / trace.end.drafted < 0.95, "too few or too many rejections to show anything"
    assert chi_square(model, prompt, 3, 2, runs, **options) > 1e-3


@pytest.mark.model
@pytest.mark.parametrize("sampling", [dict(), dict(temperature=1.0, seed=3)])
def test_the_default_model_in_fp32(sampling):
    model = QuietStar.from_pretrained("default", dtype="float32")
    options = dict(thought_length=4, max_new_tokens=16, mixing_weight=0.1, **sampling)
    (one,), (other,) = (traces(model, "Why is the sky blue?", speculate=k, **options) for k in (0, "auto"))
    same(one, other)
    assert other.end.accepted
