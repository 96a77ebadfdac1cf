"""Generation: same seed same output, batches equal single runs, stops, forced thoughts, controls, resampling."""

import itertools
import math

import pytest
import torch

from conftest import TEMPLATE
from quietstar import GenerationSettings, QuietStar, QuietStarError
from quietstar.engine.sampling import THOUGHT, uniforms
from quietstar.events import End, Start, ThoughtEvent, TokenEvent

PROMPTS = ["the quick brown", "it goes", "thinks before it speaks and"]


def test_an_untrained_head_speaks_exactly_as_the_base_model(tiny_folder):
    model = QuietStar.from_pretrained(tiny_folder, dtype="float32")
    ids, _ = model.encode("the fox", raw=True)
    _, trace = model.generate("the fox", raw=True, max_new_tokens=20, stop_ids=[], thought_length=3)
    plain = model.base.generate(
        torch.tensor(ids), max_new_tokens=20, min_new_tokens=20, do_sample=False, pad_token_id=2
    )
    assert trace.ids == plain[0].tolist()
    assert len(trace.thoughts) == 20 and all(t.weight == 0 and not t.flipped for t in trace.thoughts)
    assert trace.start.untrained


@pytest.mark.parametrize(
    "options",
    [
        dict(),
        dict(temperature=1.0, top_p=0.9, seed=3, thought_temperature=1.0),
        dict(samples=3, seed=1, trigger="random(0.5)", temperature=0.7),
        dict(control="shuffled", thought_temperature=1.0),
        dict(control="donor", trigger="every(2)"),
        dict(control="filler"),
        dict(control="truncated:1"),
        dict(control="none"),
        dict(control="only"),
    ],
)
def test_the_first_of_a_batch_equals_a_run_of_its_own(tiny, options):
    options = dict(options, raw=True, max_new_tokens=8, thought_length=3, stop_ids=[])
    batch = tiny.generate(PROMPTS, **options)
    alone = tiny.generate(PROMPTS[0], **options)
    assert batch[0].trace.ids == alone.trace.ids
    assert [t.samples[0].ids for t in batch[0].trace.thoughts] == [t.samples[0].ids for t in alone.trace.thoughts]
    assert [len(one.trace.tokens) for one in batch] == [8, 8, 8]
    again = tiny.generate(PROMPTS, **options)
    assert [one.text for one in again] == [one.text for one in batch]


def test_greedy_batches_equal_single_runs(tiny):
    options = dict(raw=True, max_new_tokens=10, thought_length=3)
    for prompt, one in zip(PROMPTS, tiny.generate(PROMPTS, **options), strict=True):
        assert tiny.generate(prompt, **options).trace.ids == one.trace.ids


def test_padding_side_of_id_tensors_does_not_matter(tiny):
    ids = [tiny.encode(prompt, raw=True)[0][0] for prompt in PROMPTS]
    width = max(map(len, ids))
    found = []
    for side in ("left", "right"):
        rows = torch.full((3, width), 2)
        mask = torch.zeros(3, width)
        for b, one in enumerate(ids):
            place = slice(width - len(one), None) if side == "left" else slice(0, len(one))
            rows[b, place], mask[b, place] = torch.tensor(one), 1
        found.append([one.trace.ids for one in tiny.generate(rows, attention_mask=mask, max_new_tokens=4)])
    assert found[0] == found[1]


def test_different_seeds_differ(tiny):
    options = dict(temperature=1.0, max_new_tokens=12, stop_ids=[], trigger="never")
    assert tiny.generate("the", seed=1, **options).trace.ids != tiny.generate("the", seed=2, **options).trace.ids


def test_the_thought_at_a_place_is_the_same_in_scoring_generating_and_resampling(tiny):
    options = dict(thought_length=4, thought_temperature=1.0, seed=9)
    _, trace = tiny.generate("the quick", raw=True, max_new_tokens=6, stop_ids=[], **options)
    score = tiny.score(trace.ids, **options)
    for thought in trace.thoughts:
        assert score.thoughts[0, thought.position, 0].tolist() == thought.samples[0].ids
        assert float(score.mixing_weight[0, thought.position]) == pytest.approx(thought.weight, abs=1e-4)
        assert float(score.kl[0, thought.position]) == pytest.approx(thought.kl, abs=1e-4)
        again = tiny.resample(thought.position, 2, of=trace, **options)
        assert again.thoughts[0].tolist() == thought.samples[0].ids
    assert uniforms(9, THOUGHT, 0, 3, 0, 0) == uniforms(9, THOUGHT, 0, [3], 0, 0)[0]


def test_several_samples_average_their_probabilities(tiny):
    _, trace = tiny.generate("the quick", raw=True, samples=4, max_new_tokens=1, thought_length=3, stop_ids=[], show=5)
    thought = trace.thoughts[0]
    assert len(thought.samples) == 4
    one = tiny.resample(thought.position, 4, of=trace.prompt_ids, thought_length=3, show=tiny.vocabulary,
                        thoughts=torch.tensor([s.ids for s in thought.samples]))  # fmt: skip
    probabilities = torch.zeros(tiny.vocabulary)
    for choices in one.mixed:
        for choice in choices:
            probabilities[choice.id] += choice.prob / 4
    for choice in thought.mixed:
        assert choice.prob == pytest.approx(float(probabilities[choice.id]), rel=1e-3)
    assert thought.weight == pytest.approx(sum(s.weight for s in thought.samples) / 4)


def test_forced_thoughts_are_thought(tiny):
    thoughts = torch.tensor([[[[5, 6, 7]], [[8, 9, 10]]]])
    _, trace = tiny.generate("the quick", max_new_tokens=2, thoughts=thoughts, stop_ids=[])
    assert [t.samples[0].ids for t in trace.thoughts] == [[5, 6, 7], [8, 9, 10]]
    own = tiny.generate("the quick", max_new_tokens=3, thought_length=3, stop_ids=[]).trace
    given = torch.tensor([[[t.samples[0].ids] for t in own.thoughts]])
    assert tiny.generate("the quick", max_new_tokens=3, thoughts=given, stop_ids=[]).trace.ids == own.ids
    with pytest.raises(QuietStarError, match="shape"):
        tiny.generate(["a", "b"], thoughts=thoughts)


def test_none_and_only_are_the_ends_of_the_mixture(tiny):
    def run(**options):
        return tiny.generate("the quick", max_new_tokens=6, thought_length=3, stop_ids=[], **options).trace

    assert run(control="none").ids == run(trigger="never").ids == run(mixing_weight=0.0).ids
    assert run(control="only").ids == run(mixing_weight=1.0).ids
    assert all(t.mixed[0].id == t.only[0].id and t.weight == 1 for t in run(control="only").thoughts)


def test_the_donor_is_a_thought_of_an_earlier_place(tiny):
    _, trace = tiny.generate("the quick brown fox", raw=True, control="donor", max_new_tokens=4, thought_length=3,
                             stop_ids=[])  # fmt: skip
    score = tiny.score(trace.ids, thought_length=3)
    for thought in trace.thoughts:
        earlier = score.thoughts[0, : thought.position, 0].tolist()
        assert thought.samples[0].ids in earlier
    with pytest.raises(QuietStarError, match="two tokens"):
        tiny.generate([5], control="donor")


def test_stop_strings_end_the_text_before_them_even_across_tokens(tiny):
    whole = tiny.generate("the", raw=True, max_new_tokens=40, stop_ids=[], trigger="never").text
    for start in (3, 8, 15):
        for length in (1, 2, 5):
            stop = whole[start : start + length]
            if not stop or "\ufffd" in stop:
                continue
            events = list(tiny.stream("the", raw=True, max_new_tokens=40, stop=[stop, "never there"], stop_ids=[],
                                      trigger="every(3)", control="none"))  # fmt: skip
            shown = "".join(e.text for e in events if isinstance(e, TokenEvent))
            assert events[-1].reason == "stop_string"
            assert events[-1].text == shown == whole[: whole.find(stop)]


def test_stop_ids_length_and_context_end_the_text(tiny):
    first = tiny.generate("the", max_new_tokens=5, stop_ids=[], trigger="never").trace
    assert first.end.reason == "length" and first.end.tokens == 5
    stop = first.tokens[2].id
    second = tiny.generate("the", max_new_tokens=5, stop_ids=[stop], trigger="never").trace
    assert second.end.reason == "stop"
    assert [t.id for t in second.tokens] == [t.id for t in first.tokens][: second.end.tokens]
    filled = tiny.generate("x" * 495, raw=True, max_new_tokens=100, stop_ids=[], thought_length=4).trace
    assert filled.end.reason == "context" and len(filled.ids) + 4 + 2 > 512


def test_events_come_in_order_and_add_up(tiny):
    events = list(tiny.stream(PROMPTS, raw=True, max_new_tokens=6, trigger="every(2)", thought_length=2, stop_ids=[]))
    assert isinstance(events[0], Start) and sum(isinstance(e, Start) for e in events) == 1
    for b in range(3):
        mine = [e for e in events[1:] if getattr(e, "sequence", None) == b]
        assert isinstance(mine[-1], End)
        kinds = [type(e) for e in mine[:-1]]
        assert kinds == [ThoughtEvent, TokenEvent, TokenEvent] * 3
        assert mine[-1].text == "".join(e.text for e in mine if isinstance(e, TokenEvent))
        assert mine[-1].thoughts == 3 and mine[-1].tokens == 6
        positions = [e.position for e in mine if isinstance(e, TokenEvent)]
        assert positions == list(range(positions[0], positions[0] + 6))
        for thought, token in itertools.pairwise(mine):
            if isinstance(thought, ThoughtEvent):
                assert token.position == thought.position + 1 and token.thought


def test_chat_template_system_prompt_and_conversations(tiny):
    _, texts = tiny.encode("hi", system="be brief")
    assert texts[0] == "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    turns = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "yes"},
        {"role": "user", "content": "so"},
    ]
    assert tiny.encode(turns)[1][0].count("<|im_start|>") == 4
    assert tiny.encode("hi", raw=True)[1] == ["hi"]
    assert tiny.generate("hi", max_new_tokens=1).trace.start.chat
    assert not tiny.generate("hi", max_new_tokens=1, raw=True).trace.start.chat
    assert TEMPLATE


def test_reason_then_answer_forces_a_short_answer(tiny):
    events = list(tiny.reason_then_answer("what", max_new_tokens=5, answer_tokens=3, reason_prompt="Think.",
                                          answer_prompt="\nSo:", thought_length=2, stop_ids=[]))  # fmt: skip
    starts = [e for e in events if isinstance(e, Start)]
    assert [s.phase for s in starts] == ["reason", "answer"]
    ends = [e for e in events if isinstance(e, End)]
    assert starts[0].prompts[0].endswith("Think.")
    assert starts[1].prompts[0] == starts[0].prompts[0] + ends[0].text + "\nSo:"
    assert ends[1].tokens <= 3


def test_resampling_tells_what_each_thought_does(tiny):
    tiny.score("the quick brown fox", thought_length=2)
    many = tiny.resample(2, 6, thought_length=3, seed=4)
    assert many.thoughts.shape == (6, 3) and len(set(map(tuple, many.thoughts.tolist()))) > 1
    assert many.to_pandas().shape[0] == 6 and len(many.to_dict()["texts"]) == 6 and "<table" in many._repr_html_()
    one = tiny.resample(2, 1, thoughts=many.thoughts[2:3])
    assert float(one.kl[0]) == pytest.approx(float(many.kl[2]), abs=1e-4)
    filler = tiny.resample(2, 1, control="filler", thought_length=3, of="the quick brown fox")
    assert len(set(filler.thoughts[0].tolist())) == 1
    for options, says in (({"position": 99}, "position must be from 0"), ({"n": 0}, "n must be at least 1"),
                          ({"control": "none"}, "no thought to resample")):  # fmt: skip
        with pytest.raises(QuietStarError, match=says):
            tiny.resample(**{"position": 1, "n": 2, **options})


def test_resampling_needs_a_text(tiny):
    with pytest.raises(QuietStarError, match="no text yet"):
        tiny.resample(0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (dict(temperature=-1), "temperature must be 0"),
        (dict(temperature=math.inf), "temperature must be a finite number, got inf"),
        (dict(top_p=0), "top_p must be above 0 and at most 1, got 0"),
        (dict(top_p=1.5), "got 1.5"),
        (dict(max_new_tokens=0), "max_new_tokens must be at least 1, got 0"),
        (dict(stop=[""]), "empty string"),
        (dict(show=0), "show must be"),
        (dict(thought_length=-2), "thought_length must be at least 0"),
        (dict(control="truncated:9", thought_length=3), "keeps more tokens than the thought has"),
        (dict(max_tokens=3), "unknown option 'max_tokens'"),
        (dict(thought_length=600), "context is 512"),
        (dict(trigger="maybe"), "unknown trigger"),
        (dict(mixing_weight=math.nan), "mixing_weight must be a finite number, got nan"),
        (dict(mixing_weight=-math.inf), "mixing_weight must be a finite number, got -inf"),
    ],
)
def test_wrong_values_are_named(tiny, options, says):
    with pytest.raises(QuietStarError, match=says):
        tiny.generate("the", **options)


def test_settings_can_be_given_whole(tiny):
    settings = GenerationSettings(max_new_tokens=3, thought_length=2, stop="x")
    assert settings.stop == ("x",)
    assert len(tiny.generate("the", settings=settings, stop_ids=[]).trace.tokens) <= 3


def test_a_character_cut_by_the_end_of_the_context_is_shown_as_cut(tiny):
    for room in range(1, 40):  # some of these ends lie inside a character
        found = tiny.generate("x" * (500 - room), raw=True, max_new_tokens=100, stop_ids=[], thought_length=4,
                              trigger="never").trace  # fmt: skip
        assert found.end.reason == "context"
        assert found.text == tiny._decode(found.ids)[500 - room :]


@pytest.mark.parametrize(
    ("mask", "says"),
    [
        ([[1, 1, 0, 1]], "has holes"),
        ([[0, 1, 0, 1]], "has holes"),
        ([[1, 1], [1, 1]], r"shape \(2, 2\), but the ids \(1, 4\)"),
        ([[0, 0, 0, 0]], "prompt is empty"),
    ],
)
def test_masks_that_fit_no_padding_are_refused(tiny, mask, says):
    with pytest.raises(QuietStarError, match=says):
        tiny.generate(torch.tensor([[5, 6, 7, 8]]), attention_mask=torch.tensor(mask), max_new_tokens=1)


def test_a_mask_without_a_tensor_is_refused(tiny):
    with pytest.raises(QuietStarError, match="attention_mask belongs to a tensor"):
        tiny.generate([[5, 6], [7, 8]], attention_mask=torch.ones(2, 2), max_new_tokens=1)


def test_numpy_ids_are_tensors(tiny):
    ids = torch.tensor([5, 6, 7])
    wanted = tiny.generate(ids, max_new_tokens=3, thought_length=1)
    assert tiny.generate(ids.numpy(), max_new_tokens=3, thought_length=1).text == wanted.text


def test_a_chat_template_that_refuses_is_one_line(tiny):
    before = tiny.tokenizer.chat_template
    try:
        for template, says in (
            ("{{ raise_exception('no system role') }}", "no system role"), ("{% if", "unexpected"),
            ("{{ messages[0]['content'] + 1 }}", "concatenate"),
        ):  # fmt: skip
            tiny.tokenizer.chat_template = template
            with pytest.raises(QuietStarError, match=f"chat template refuses .*{says}") as caught:
                tiny.generate("the", system="be brief")
            assert "\n" not in str(caught.value)
    finally:
        tiny.tokenizer.chat_template = before
