"""Begin-of-text tokens in every window and span, and borders between documents that share a span."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from fuzzing import fuzz
from quietstar import QuietStar, QuietStarError
from quietstar.documents.framing import frame, pack, windows
from quietstar.documents.reading import Document
from quietstar.evals.losses import evaluate
from quietstar.training import data


@pytest.fixture
def framed(tokenizer):
    """The tokenizer with a template of tokens around a text."""

    def make(single: str, eos: bool = True):
        found = copy.deepcopy(tokenizer)
        special = [
            (name, found.convert_tokens_to_ids(name)) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        ]
        found.backend_tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
        if not eos:
            found.eos_token = None
        return found

    return make


def test_what_a_tokenizer_puts_around_a_text(tokenizer, framed):
    assert frame(None) == frame(tokenizer) == ([], [])
    assert frame(framed("<|im_start|> $A")) == ([1], [])
    assert frame(framed("<|endoftext|> <|im_start|> $A <|im_end|>")) == ([0, 1], [2])
    assert frame(framed("$A <|im_end|>")) == ([], [2])


def with_begin(tiny: QuietStar, tokenizer) -> QuietStar:
    tiny.tokenizer = tokenizer
    return tiny


@pytest.mark.parametrize("single", ["<|im_start|> $A", "<|endoftext|> <|im_start|> $A <|im_end|>"])
def test_every_window_begins_as_the_tokenizer_begins_a_text(tiny, framed, single):
    model = with_begin(tiny, framed(single))
    begin, end = frame(model.tokenizer)
    text = "the quick brown fox thinks before it speaks and then it says the thing"
    body = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    room = 8 - len(begin)
    report = evaluate(model, [Document("a", text)], window=8, thought_length=1, controls=[])
    losses = []
    for at in range(0, len(body + end), room):
        score = model.score(torch.tensor([begin + (body + end)[at : at + room]]), thought_length=1)
        losses += (-score.base_logprobs[0, len(begin) - 1 :]).tolist()
    assert report.tokens == len(losses) == len(body) + len(end)  # every token of the text is predicted
    assert report.losses["base"].mean == pytest.approx(np.mean(losses), rel=1e-5)
    assert report.settings["begin"] == begin
    with pytest.raises(QuietStarError, match="window must be at least"):
        evaluate(model, [Document("a", text)], window=len(begin))


@pytest.mark.parametrize("kind", ["pack", "random"])
def test_every_training_span_begins_as_the_tokenizer_begins_a_text(framed, kind):
    tokenizer = framed("<|im_start|> $A")
    texts = [f"the quick brown fox {n} thinks before it speaks" * (n % 3 + 1) for n in range(9)]
    spans = data.Spans(texts, tokenizer, 16, kind, 8, 0)
    assert all(spans[n]["input_ids"][0] == 1 and len(spans[n]["input_ids"]) <= 16 for n in range(len(spans)))
    if kind == "pack":  # <begin> text <end> <begin> text <end>
        whole = [t for n in range(len(spans)) for t in spans[n]["input_ids"]]
        assert whole.count(2) >= len(texts) - 1  # a short last span is left out
        assert all(whole[at + 1] == 1 for at, token in enumerate(whole[:-1]) if token == 2)
    with pytest.raises(
        QuietStarError, match=r"data.length must be at least 9 tokens \(1 of them begin a text\), got 8"
    ):
        data.Spans(texts, tokenizer, 8, kind, 8, 0)


def test_without_any_border_token_no_span_holds_two_documents(framed):
    tokenizer = framed("$A", eos=False)
    texts = ["alpha beta gamma delta.", "One two three four five."]
    spans = data.Spans(texts, tokenizer, 64, "pack", 8, 0)
    assert [tokenizer.decode(spans[n]["input_ids"]) for n in range(len(spans))] == texts
    assert spans.notes == ["the tokenizer has no token for the border of a text: no span holds two documents"]


def test_tokens_that_are_left_out_are_counted(tokenizer):
    spans = data.Spans(
        ["the quick brown fox thinks before it speaks and says " * 3, "a"], tokenizer, 64, "random", 8, 0
    )
    assert len(spans) == 1 and spans.notes[0].startswith("1 of ")


DOCUMENTS = st.lists(st.lists(st.integers(10, 99), min_size=1, max_size=30), max_size=12)


@fuzz(300)
@given(DOCUMENTS, st.integers(0, 3), st.integers(0, 2), st.integers(4, 12))
def test_packing_keeps_every_token_once_in_order_and_every_border(documents, before, behind, length):
    begin, end = list(range(before)), list(range(3, 3 + behind))  # no document has these
    spans = list(pack(documents, begin, end, length))
    assert all(0 < len(span) <= length and span[:before] == begin for span in spans)
    assert [t for span in spans for t in span if t >= 10] == [t for one in documents for t in one]
    if end:  # behind each document, and nowhere else, in whole (over two spans where it does not fit)
        assert [t for span in spans for t in span if t >= 3] == [t for one in documents for t in [*one, *end]]
    pieces = iter([*one] for one in documents)
    left: list[int] = []
    for span in spans:  # walk: inside a span a new document may only come behind a border
        at = len(begin)
        while at < len(span):
            fresh = not left
            if fresh:
                left = next(pieces) + end
            assert span[at] == left.pop(0)
            at += 1
            if not left and at < len(span):
                assert begin or end
                assert span[at : at + before] == begin
                at += before
    assert not left and next(pieces, None) is None
    if begin or end:  # no span is cut short but the last, or where the next text's beginning would not fit
        assert all(len(span) >= length - before for span in spans[:-1])


@fuzz(200)
@given(st.lists(st.integers(10, 99), max_size=50), st.integers(0, 3), st.integers(4, 12))
def test_windows_hold_every_token_once_each_behind_the_beginning(body, before, length):
    begin = list(range(before))
    found = windows(body, begin, length)
    assert all(piece[:before] == begin and before < len(piece) <= length for piece in found)
    assert [t for piece in found for t in piece[before:]] == body
