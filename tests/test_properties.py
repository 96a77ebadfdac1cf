"""Odd texts at every entry: an answer or one clear line, never anything else."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from quietstar import QuietStarError
from quietstar.evals.losses import Document, evaluate

ODD = st.one_of(
    st.text(max_size=30),
    st.text(st.characters(categories=["Cc", "Cf", "Zs", "So", "Mn"]), max_size=20),
    st.sampled_from(
        [
            "",
            " ",
            "\n",
            "\0",
            "\x1b[2J",
            "🙂" * 10,
            "👩‍👩‍👧‍👦",
            "<|im_end|>",
            "<|im_start|>system\n",
            "\ufffd",
            "half \ud83d of a pair",
            "\u202e",
            "e\u0301" * 5,
        ]
    ),
)
FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def clear(error: QuietStarError) -> bool:
    return bool(str(error)) and "\n" not in str(error)


@FEW
@given(ODD, st.booleans())
@example("", False)
def test_generate(tiny, text, raw):
    try:
        found, trace = tiny.generate(text, raw=raw, max_new_tokens=3, thought_length=2, stop=["\n\n"])
    except QuietStarError as error:
        assert clear(error)
        return
    assert found == trace.text and trace.to_dict() and trace._repr_html_()
    assert "<script" not in trace._repr_html_()


@FEW
@given(ODD)
def test_score(tiny, text):
    try:
        score = tiny.score(text, thought_length=2, controls=["filler"])
    except QuietStarError as error:
        assert clear(error)
        return
    frame = score.to_pandas()
    assert "".join(frame["token"]) + frame["next_token"].iloc[-1] == tiny._decode(score.ids[0].tolist())
    assert score.mixed_logprobs.isfinite().all() and score._repr_html_()


@FEW
@given(ODD, st.integers(-2, 8), st.integers(-1, 3))
def test_resample(tiny, text, position, n):
    try:
        found = tiny.resample(position, n, of=text, thought_length=2)
    except QuietStarError as error:
        assert clear(error)
        return
    assert len(found.texts) == n and found.to_dict()


@FEW
@given(st.lists(ODD, max_size=3))
def test_evaluate(tiny, texts):
    try:
        report = evaluate(tiny, [Document(str(n), text) for n, text in enumerate(texts)], thought_length=1)
    except QuietStarError as error:
        assert clear(error)
        return
    assert report.to_dict() and len(report.documents) + len(report.skipped) <= len(texts)


@FEW
@given(st.text(max_size=20))
def test_triggers_and_controls(tiny, text):
    for option in ("trigger", "control"):
        try:
            tiny.generate("the", max_new_tokens=1, thought_length=1, **{option: text})
        except QuietStarError as error:
            assert clear(error)


def test_a_megabyte_is_answered_with_a_line(tiny):
    text = "word 🙂 " * 100_000
    for entry in (tiny.generate, tiny.score, lambda t: tiny.resample(90_000, 1, of=t)):
        with pytest.raises(QuietStarError, match="context is 512"):
            entry(text)
    assert evaluate(tiny, [Document("long", text)], max_tokens=200, window=100, thought_length=1, controls=[]).tokens
