"""The event stream: its frames are pinned, it survives JSON, and everything a model says is text, never markup."""

import html
import json

import torch

from quietstar.events import (
    SCHEMA_VERSION,
    Choice,
    End,
    NoiseFloor,
    Sample,
    Start,
    ThoughtEvent,
    TokenEvent,
    Trace,
)

# The keys of every frame under schema version 4. A change here needs a new SCHEMA_VERSION and a note in the changelog.
FRAMES = {
    "start": ["event", "schema", "version", "model", "base", "dtype", "device", "untrained", "prompts", "prompt_ids",
              "chat", "settings", "phase", "identity", "versions",
              "asked"],
    "noise": ["event", "places", "kl", "logprob", "weight", "gain"],
    "thought": ["event", "sequence", "position", "trigger", "control", "samples", "weight", "base", "mixed", "only",
                "flipped", "kl", "entropy", "base_logprob", "mixed_logprob", "only_logprob"],
    "token": ["event", "sequence", "position", "id", "text", "logprob", "thought"],
    "end": ["event", "sequence", "reason", "text", "tokens", "thoughts", "seconds", "drafted", "accepted"],
}  # fmt: skip
SETTINGS = ["thought_length", "samples", "trigger", "control", "temperature", "top_p", "thought_temperature",
            "max_new_tokens", "seed", "stop", "stop_ids", "mixing_weight", "show", "speculate"]  # fmt: skip

IDENTITY = ["revision", "base_revision", "base_hash", "head_hash", "adapter", "adapter_hash"]


def test_frames_are_pinned(tiny):
    assert SCHEMA_VERSION == 4
    seen = {}
    for event in tiny.stream("the", max_new_tokens=3, thought_length=2, stop_ids=[]):
        frame = json.loads(json.dumps(event.to_dict()))
        seen[frame["event"]] = frame
    assert {name: list(frame) for name, frame in seen.items()} == FRAMES
    assert list(seen["start"]["settings"]) == SETTINGS
    assert list(seen["thought"]["samples"][0]) == ["ids", "text", "logprobs", "weight", "pieces"]
    assert "".join(seen["thought"]["samples"][0]["pieces"]) == seen["thought"]["samples"][0]["text"]
    assert list(seen["start"]["identity"]) == IDENTITY
    assert list(seen["start"]["versions"]) == ["quietstar", "python", "torch", "transformers"]
    assert list(seen["thought"]["base"][0]) == ["id", "text", "prob"]
    assert seen["start"]["settings"]["thought_length"] == 2


def hostile() -> Trace:
    start = Start(
        1, "0", "m", "b", "float32", "cpu", False, ["<script>alert(1)</script>"], [[1]], False, {"trigger": "always"}
    )
    trace = Trace(start)
    choice = [Choice(1, "<b>", 0.5)]
    trace.add(ThoughtEvent(0, 0, "always", "own", [Sample([1], '"><script>x</script>', [0.0], 0.1)], 0.1, choice, choice,
                           choice, True, 0.2, 1.0))  # fmt: skip
    trace.add(TokenEvent(0, 1, 1, "<img src=x onerror=y>", -0.1, True))
    trace.add(ThoughtEvent(0, 1, "always", "own", [Sample([1], "second", [0.0], 0.1)], 0.1, choice, choice, choice, False,
                           0.4, 1.0))  # fmt: skip
    return trace


def test_notebook_display_escapes_what_the_model_said():
    shown = hostile()._repr_html_()
    assert shown.count("<") == 2 and shown.startswith("<iframe ") and shown.endswith("></iframe>")
    inside = html.unescape(shown)
    assert inside.count("<script") == 2 and "<img" not in inside and "u003cimg src=x" in inside


def test_the_most_influential_come_first():
    trace = hostile()
    assert [t.kl for t in trace.most_influential()] == [0.4, 0.2]
    assert len(trace.most_influential(1)) == 1
    assert len(trace.to_pandas()) == 2


def test_the_noise_floor_stands_before_the_first_thought_and_ranks():
    trace = hostile()
    assert trace.noise is None and all(map(trace.above_noise, trace.thoughts))
    trace.add(NoiseFloor(8, 0.2, 0.01, 0.001))
    assert [e.event for e in trace.events] == ["start", "noise", "thought", "token", "thought"]
    assert [trace.above_noise(t) for t in trace.thoughts] == [False, True]  # 0.2 is no more than rounding
    assert trace.to_dict()["noise"] == {
        "event": "noise",
        "places": 8,
        "kl": 0.2,
        "logprob": 0.01,
        "weight": 0.001,
        "gain": None,
    }
    assert Trace.collect(trace.events) == [trace]
    bare = Trace(trace.start, noise=trace.noise)
    assert [e.event for e in bare.events] == ["start", "noise"]


def test_a_trace_is_whole_even_when_cut_off():
    trace = hostile()
    assert trace.end is None and trace.text == "<img src=x onerror=y>"
    assert trace.to_dict()["end"] is None and trace.ids == [1, 1]
    trace.add(End(0, "stop", "done", 1, 2, 0.1))
    assert trace.text == "done"
    trace.add(End(3, "stop", "of another sequence", 1, 2, 0.1))
    assert trace.text == "done"


def test_context_is_what_stood_before(tiny):
    trace = tiny.generate("the quick", raw=True, max_new_tokens=5, thought_length=1, stop_ids=[]).trace
    for thought in trace.thoughts:
        said = "".join(t.text for t in trace.tokens if t.position <= thought.position)
        assert trace.said(thought.position) == said
        assert trace.context(thought.position, 1000) == "the quick" + said
        assert ("the quick" + said).endswith(trace.context(thought.position, 5))


def test_terminal_list_shows_control_characters_as_codes():
    from quietstar.cli.render import lines

    trace = hostile()
    trace.thoughts[0].samples[0].text = "\x1b[31mred\x07"
    plain = "\n".join(line.plain for line in lines(trace, trace.thoughts))
    assert "\x1b" not in plain and "\\x1b[31mred\\x07" in plain


def test_the_start_says_what_was_asked(tiny):
    def asked(prompt, **options):
        return next(iter(tiny.stream(prompt, max_new_tokens=1, **options))).asked

    assert asked("the fox") == asked("the fox", raw=True) == ["the fox"]
    assert asked(["the", "fox"]) == ["the", "fox"]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert asked(turns) == ["c"] and asked([turns[:1], turns]) == ["a", "c"]
    assert asked([1, 2]) == [""] and asked(torch.tensor([[1, 2], [3, 4]])) == ["", ""]
    assert [s.asked for s in tiny.reason_then_answer("the", max_new_tokens=1, answer_tokens=1) if s.event == "start"] \
        == [["the"], ["the"]]  # fmt: skip
